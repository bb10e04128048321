"""`ferret train --address`: a run as a job of a Ray cluster, followed to its end."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.train import STOP_SECONDS, require_reachable
from ferret_core.cli.cluster import TokenWantedError
from ferret_core.training.config import TrainConfig
from ferret_core.training.stop import EXIT_STOPPED

_SECONDS_TO_STOP = 120
_FORWARDED = "AWS_"  # of the environment, for the bucket


def submit(config: TrainConfig, address: str) -> int:
    """Submits a run, shows its log, and returns the exit code: 0 finished, 143 stopped, 1 failed.

    Ctrl-C has the job save and stop, and shows how; whatever else ends this process leaves the job running. In a checkout the
    code goes along; otherwise the cluster must have `ferret-platform[train]` installed. Paths are the cluster's, or relative
    to the checkout.

    Raises:
        ValueError: the output is relative.
        ConnectionError: no cluster at the address.
        TokenWantedError: it wants a token.
    """
    require_reachable(config.output)
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise TokenWantedError(address) from error
    root = Path(__file__).parent.parent
    checkout = {"working_dir": str(root), "excludes": ["/.git", "/.venv", "/runs", "/ui/frontend/node_modules"]}
    variables = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    runtime = (checkout if (root / "pyproject.toml").is_file() else {}) | {
        "env_vars": variables | {STOP_SECONDS: str(_SECONDS_TO_STOP)}
    }
    settings = shlex.quote(json.dumps(config.to_values()))
    job = client.submit_job(entrypoint=f"python -m cluster.train --settings {settings}", runtime_env=runtime)
    print(
        f"submitted {job} to {address}; Ctrl-C stops it, `ray job logs --address {address} {job} --follow` shows it again",
        flush=True,
    )
    log = JobLog(client, job)
    try:
        log.follow()
    except KeyboardInterrupt:
        client.stop_job(job)
        log.follow()
    status, info = client.get_job_status(job), client.get_job_info(job)
    if status == JobStatus.SUCCEEDED:
        return 0
    print(f"{job}: {status}: {info.message}", file=sys.stderr)
    return EXIT_STOPPED if status == JobStatus.STOPPED or info.driver_exit_code == EXIT_STOPPED else 1


class JobLog:
    """What a job says, shown once."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self.client, self.job = client, job
        self._shown = 0

    def follow(self) -> None:
        """Shows it as it grows, to the job's end; from where it was, if it is called again."""
        asyncio.run(self._follow())

    async def _follow(self) -> None:
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            print(text[max(0, self._shown - seen) :], end="", flush=True)
            seen += len(text)
            self._shown = max(self._shown, seen)
