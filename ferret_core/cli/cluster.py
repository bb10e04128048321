"""What the commands that talk to a Ray cluster have in common, and needs no Ray."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

Address = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Ask on a Ray cluster: HOST:PORT of its head, auto on one of its nodes, or local to start one here.",
    ),
]
Workers = Annotated[int, typer.Option(help="With --ray: how many models.", min=1)]
WorkerCPUs = Annotated[float, typer.Option("--worker-cpus", help="With --ray: CPUs of each.", min=0)]
WorkerGPUs = Annotated[float, typer.Option("--worker-gpus", help="With --ray: GPUs of each; 0 computes on CPUs.", min=0)]


def predict_on_ray(*arguments: Any, **named: Any) -> Any:
    """As `cluster.evaluate.predict_on_ray`. Raises `RuntimeError` if no Ray is installed."""
    try:
        (entry,) = entry_points(group="ferret.predictors", name="ray")
        predict = entry.load()
    except (ValueError, ModuleNotFoundError) as error:
        raise RuntimeError(f"--ray needs Ray: pip install 'ferret-platform[train]' ({error})") from error
    return predict(*arguments, **named)


class TokenWantedError(RuntimeError):
    """A cluster asks for a token, and this process has none that it knows."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
