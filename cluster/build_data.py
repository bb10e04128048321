"""`ferret data build` on a Ray cluster: shards are made by Ray Data tasks, and written here, by the driver.

    ray job submit --working-dir . -- python -m cluster.build_data coco /data/coco --output /data/grit/coco --workers 64

The same options, the same shards, byte for byte. Only the driver needs the download and the output directory. With a
language model, its server must be reachable from every node, and OPENAI_API_KEY be in the job's environment; give a shared
directory as `--llm-cache`, or a node asks again for what another one knows.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import ray
import typer

from ferret_core.cli.build import command
from ferret_core.data.build.shards import Runner, Shard, Work, build_shard


def run_on_ray(workers: int) -> Runner:
    """Runs work on the cluster, at most `workers` shards at a time."""

    def run(work: Iterable[Work]) -> Iterator[Shard]:
        rows = [{"work": pickle.dumps(each)} for each in work]
        if not rows:
            return
        shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_build, concurrency=workers)
        for row in shards.iter_rows():
            yield pickle.loads(row["shard"])

    return run


def _build(row: dict[str, Any]) -> dict[str, bytes]:
    return {"shard": pickle.dumps(build_shard(pickle.loads(row["work"])))}


if __name__ == "__main__":
    typer.run(command(run_on_ray))
