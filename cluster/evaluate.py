"""`ferret eval NAME --ray`: the questions of a benchmark, asked on a Ray cluster with Ray Data.

Each worker is an actor that loads the checkpoint once; the driver, this process, hands out batches and takes answers as they
come. Who got which batch leaves no trace: a batch is the same questions in the same order, whatever the number of workers.

Workers read the checkpoint and the pictures themselves, by the paths that the driver has, and refuse a checkpoint that is
another one than the driver's. A worker that dies, or whose node does, is started anew by Ray Data, elsewhere if need
be, and its batches are asked again; an error that another try would only repeat ends the evaluation, and what was answered
before is kept.
"""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError

from ferret_core.checkpoint.bundled import BUNDLED
from ferret_core.checkpoint.revision import revision
from ferret_core.cli.cluster import TokenWantedError
from ferret_core.evaluation.asking import Asker, Pictures, Predict, ask_here, batches, predictions
from ferret_core.evaluation.benchmark import Item, Prediction
from ferret_core.predictor import FerretPredictor


def predict_on_ray(
    address: str,
    model: str,
    pictures: Pictures,
    *,
    batch_size: int,
    at_a_time: int,
    workers: int,
    cpus: float,
    gpus: float,
) -> Predict:
    """Asks a checkpoint on the cluster, each batch of `at_a_time` items of one of its workers.

    Args:
        address: HOST:PORT of the cluster's head, or `auto` on one of its nodes; `local` starts a cluster for as long as this
            process lives.
        model: a bundled checkpoint, a directory that every node has, or a name on the hub.
        pictures: called by the workers.
        batch_size: questions that a worker answers at a time.
        at_a_time: items of a batch.
        workers: how many, or as many of them as the cluster has room for.
        cpus: of each worker, which computes with so many threads.
        gpus: of each worker; 0 computes on CPUs.

    Raises:
        ConnectionError: no cluster at the address.
        TokenWantedError: it wants a token.
        RuntimeError: when iterated, what a worker could not do.
    """
    _connect(address)
    if not any(node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("GPU", 0) >= gpus for node in _nodes()):
        logging.warning("no node of the cluster has %g CPUs and %g GPUs for a worker: waiting for one that joins", cpus, gpus)
    place = model if model in BUNDLED or not Path(model).is_dir() else str(Path(model).absolute())
    worker = {"model": place, "expected": revision(model), "pictures": pictures, "batch_size": batch_size}

    def predict(items: Sequence[Item], max_new_tokens: int) -> Iterator[list[Prediction]]:
        rows = [{"items": pickle.dumps(batch)} for batch in batches(items, at_a_time)]
        if not rows:
            return
        outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_kwargs={**worker, "max_new_tokens": max_new_tokens},
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        # Not iter_rows(), which holds back an answer until it has the next one: a crash would lose it.
        for table in outcomes.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for outcome in map(pickle.loads, table["outcome"].to_pylist()):
                if isinstance(outcome, str):
                    raise RuntimeError(outcome)
                yield outcome

    return predict


class _Worker:
    """A checkpoint on a node."""

    def __init__(self, model: str, expected: str, pictures: Pictures, batch_size: int, max_new_tokens: int) -> None:
        self.model, self.expected = model, expected
        self.pictures, self.batch_size, self.max_new_tokens = pictures, batch_size, max_new_tokens

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """A batch's predictions, or in words why there are none: Ray would wrap an error in traces of its own."""
        outcome: list[Prediction] | str
        try:
            outcome = predictions(self.ask, pickle.loads(row["items"]), self.max_new_tokens)
        except Exception as error:
            logging.exception("a batch has no answers")
            outcome = f"a worker on {ray.util.get_node_ip_address()}: {error or type(error).__name__}"
        return {"outcome": pickle.dumps(outcome)}

    @cached_property
    def ask(self) -> Asker:
        """Loads the checkpoint. Raises `ValueError` if it is not there, or is not the driver's."""
        if Path(self.model).is_absolute() and not Path(self.model).is_dir():
            raise ValueError(f"the checkpoint {self.model} is not there; every node must have it at the same path")
        if (found := revision(self.model)) != self.expected:
            raise ValueError(f"the checkpoint {self.model} is another one: its revision is {found}, here {self.expected}")
        return ask_here(FerretPredictor.from_pretrained(self.model), self.pictures, self.batch_size)


def _connect(address: str) -> None:
    if address.startswith("ray://"):
        raise ValueError(f"--ray {address}: must be HOST:PORT; run this on a node of the cluster, or by `ray job submit`")
    try:
        if ":" in address:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for minutes
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except AuthenticationError as error:
        raise TokenWantedError(address) from error
    except (OSError, ValueError) as error:
        raise ConnectionError(f"--ray {address}: no Ray cluster answers there ({error})") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False  # there is one bar
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
