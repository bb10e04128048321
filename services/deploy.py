"""`ferret deploy`: a Serve config put on a running Ray cluster, and followed until it serves.

A Serve config is a file that Serve's own tools and KubeRay's `serveConfigV2` take as well; `cluster/serve` has some. The
`args` of its one application are `PlatformSettings`, and what must be the same on every cluster is as in `serve_config`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from ferret_core.cli.cluster import TokenWantedError
from services.access import is_loopback
from services.platform import APPLICATION
from services.problems import problems
from services.settings import GRPC_PORT, HTTP_PORT, PlatformSettings, read_yaml

if TYPE_CHECKING:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

Answer = TypeVar("Answer")

DEFAULT_CLUSTER = "http://localhost:8265"

_MUST_BE = ("applications.0.name", "applications.0.import_path", "grpc_options.grpc_servicer_functions")
_PROXY_OPTIONS = ("http_options.host", "http_options.port", "grpc_options.port", "grpc_options.grpc_servicer_functions")
_POLL_SECONDS = 1.0


def serve_config(settings: dict[str, Any]) -> dict[str, Any]:
    """The Serve config of a platform with these values of `PlatformSettings`, and defaults for the others."""
    from services.app import GRPC_SERVICERS

    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},
        "grpc_options": {"port": GRPC_PORT, "grpc_servicer_functions": GRPC_SERVICERS},
        "logging_config": {"encoding": "JSON"},
        "applications": [
            {"name": APPLICATION, "route_prefix": "/", "import_path": "services.app:build", "args": settings},
        ],
    }


def load_serve_config(path: Path) -> dict[str, Any]:
    """The Serve config in a YAML file. Raises `ValueError` that says what in it is wrong."""
    from ray.serve.schema import ServeDeploySchema

    config = read_yaml(path)
    if unknown := set(config) - set(ServeDeploySchema.model_fields):  # Serve itself would pass over them
        raise ValueError(f"{path}: Serve has no setting {', '.join(sorted(map(str, unknown)))}")
    _validate(ServeDeploySchema, config, f"{path}: ")
    if len(config["applications"]) != 1:
        raise ValueError(f"{path}: applications: must be one, the platform; got {len(config['applications'])}")
    expected = serve_config({})
    for name in _MUST_BE:
        if _at(config, name) != _at(expected, name):
            raise ValueError(f"{path}: {name}: must be {_at(expected, name)!r}, got {_at(config, name)!r}")
    _validate(PlatformSettings, _at(config, "applications.0.args") or {}, f"{path}: applications.0.args.")
    return config


def is_open(config: dict[str, Any]) -> bool:
    """Whether whoever reaches a cluster may ask what is deployed there, as far as a Serve config and this environment tell."""
    settings = PlatformSettings.model_validate(_at(config, "applications.0.args") or {})
    local = settings.remote_calls == "none" and is_loopback(_at(config, "http_options.host") or "0.0.0.0")
    return not (settings.tokens_file or local)


def deploy(config: dict[str, Any], address: str, timeout: float, log: Callable[[str], None]) -> None:
    """Puts a Serve config on a cluster, and returns when all of it runs.

    Args:
        config: of `load_serve_config`.
        address: of the cluster's dashboard, `http://HOST:8265`.
        timeout: seconds until it must run.
        log: takes a line whenever there is progress.

    Raises:
        ConnectionError: no cluster at the address.
        TokenWantedError: it wants a token.
        RuntimeError: it runs something else, cannot take this config, or the deployment failed; the message
            says whether what was deployed before still serves.
        TimeoutError: it does not run yet. The cluster goes on.
    """
    cluster = _connect(address)
    before = cluster.get_serve_details()
    _check_acceptable(config, before, address)
    deployed_before = before["applications"].get(APPLICATION, {}).get("last_deployed_time_s", 0)
    for model in _other_weights(config, before):
        log(f"{model}: other weights under the same name; while they are replaced, answers may mix both")
    deadline, shown = time.monotonic() + timeout, ""
    _insist(lambda: cluster.deploy_applications(config), deadline)
    while True:
        details = _insist(cluster.get_serve_details, deadline)
        application = details["applications"].get(APPLICATION, {})
        status = application.get("status") if application.get("last_deployed_time_s", 0) > deployed_before else "DEPLOYING"
        if (line := _progress(application)) != shown:
            log(line)
            shown = line
        if status == "DEPLOY_FAILED":
            raise RuntimeError(f"DEPLOY_FAILED; {_what_serves(application)}\n{_reasons(application)}")
        if status == "RUNNING" and any(proxy["status"] == "HEALTHY" for proxy in details["proxies"].values()):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {status} after {timeout:.0f} s; the cluster goes on\n{_reasons(application)}")
        time.sleep(_POLL_SECONDS)


def _check_acceptable(config: dict[str, Any], before: dict[str, Any], address: str) -> None:
    """Whether a cluster's Serve, which is as in `before`, can become as in `config`."""
    if others := before["applications"].keys() - {APPLICATION}:
        raise RuntimeError(f"{address} also runs {', '.join(sorted(others))}, which a Serve config without it would end")
    for name in _PROXY_OPTIONS if before["proxies"] else ():
        if _at(config, name) not in (None, _at(before, name)):
            raise RuntimeError(
                f"{name}: is {_at(before, name)!r} on {address} as long as Serve runs there; keep it, or end Serve with "
                f"`serve shutdown --address {address}` first"
            )


def _other_weights(config: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """The models that a Serve config would take from another place than the cluster does."""
    models = PlatformSettings.model_validate(_at(config, "applications.0.args") or {}).models
    deployed = _at(before, f"applications.{APPLICATION}.deployed_app_config.args.models") or {}
    return [name for name in models.keys() & deployed if models[name].path != deployed[name]["path"]]


def _connect(address: str) -> ServeSubmissionClient:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
    from ray.exceptions import AuthenticationError

    try:
        return ServeSubmissionClient(address)
    except AuthenticationError as error:
        raise TokenWantedError(address) from error


def _insist(request: Callable[[], Answer], deadline: float) -> Answer:
    """The answer to a request that the cluster may fail for a while: its first config starts Serve, which gives up on a slow
    proxy, and goes on if it is asked again."""
    while True:
        try:
            return request()
        except RuntimeError as error:
            if "status code 5" not in str(error) or time.monotonic() > deadline:
                raise RuntimeError(f"the cluster refused: {_last_line(str(error))}") from error
        time.sleep(_POLL_SECONDS)


def _progress(application: dict[str, Any]) -> str:
    """What runs of each deployment, and what else there is of it."""
    parts = []
    for name, deployment in sorted(application.get("deployments", {}).items()):
        states = [replica["state"] for replica in deployment["replicas"]]
        others = [f"{states.count(state)} {state.lower()}" for state in sorted({*states} - {"RUNNING"})]
        parts.append(f"{name} {', '.join([str(states.count('RUNNING')), *others])}")
    return "; ".join(parts) or "building the application"


def _what_serves(application: dict[str, Any]) -> str:
    deployments = application.get("deployments", {}).values()
    running = [any(replica["state"] == "RUNNING" for replica in deployment["replicas"]) for deployment in deployments]
    return "what was deployed before still serves" if running and all(running) else "nothing serves"


def _reasons(application: dict[str, Any]) -> str:
    """Why it does not run, a line for each deployment that says so; the dashboard shows where in the code."""
    deployments = application.get("deployments", {}).items()
    messages = {name: one["message"] for name, one in deployments if one["status"] != "HEALTHY" and one["message"]}
    messages = messages or {APPLICATION: application.get("message") or "no reason given yet"}
    return "\n".join(f"{name}: {_last_line(message)}" for name, message in messages.items())


def _last_line(text: str) -> str:
    """Of a traceback, what happened."""
    return text.strip(" .\n").splitlines()[-1]


def _at(values: Any, name: str) -> Any:
    """The value at a path such as `applications.0.name`; None if there is none."""
    for key in name.split("."):
        try:
            values = values[int(key) if key.isdecimal() else key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _validate(model: type[BaseModel], values: dict[str, Any], origin: str) -> None:
    try:
        model.model_validate(values)
    except ValidationError as error:
        raise ValueError(problems(error, model, values, origin)) from None
