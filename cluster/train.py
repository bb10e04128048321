"""The training loop on a Ray cluster: `ferret_core.training` in as many workers as the run wants.

    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}' \\
        -- python -m cluster.train --config ferret_core/training/configs/ferret_7b.yaml output=s3://...

The driver (this process) starts the workers, starts them anew when one or its node is lost, and on SIGTERM or SIGINT has them
save and stop; a second signal ends it at once. Ray knows nothing of checkpoints: wherever workers start, they go on from the
newest one in the run's output, which all nodes must reach (a shared directory or a bucket). What another try would only
repeat, as a bad record or a missing file, is not tried again. Exit codes: 0 finished, 143 stopped, 1 failed; the last line
says where the model is, at which step it stopped, or why it failed.

A job that is stopped is killed after RAY_JOB_STOP_WAIT_TIME_S: 3 seconds, unless its environment says otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.training.config import TrainConfig, from_values
from ferret_core.training.stop import EXIT_STOPPED, Stopped
from ferret_core.training.workers import PATIENCE

STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
"""The environment variable of a job that says how long it has for its last checkpoint."""
_POLL_SECONDS = 1.0
_SHOWN_CAUSES = 3  # of workers that failed together

# Ray Train's own defaults look after workers every two seconds; and its patched print() shows lines twice.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


class Control:
    """What the driver tells the workers, and they the driver."""

    def __init__(self) -> None:
        self.stop = False
        self.outcome: tuple[str, str] | None = None

    def ask_to_stop(self) -> None:
        """Has the workers save and stop."""
        self.stop = True

    def should_stop(self) -> bool:
        """Whether they should."""
        return self.stop

    def finish(self, kind: str, message: str) -> bool:
        """Notes how the run ended: `finished`, `stopped`, or `failed` so that another try would fail, too. The first word
        counts; returns whether this was it."""
        first = self.outcome is None
        self.outcome = self.outcome or (kind, message)
        return first

    def get_outcome(self) -> tuple[str, str] | None:
        """How the run ended; None if it did not."""
        return self.outcome


class RayMetrics:
    """The run's numbers as gauges `ferret_train_NAME` of Ray's Prometheus endpoint."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.gauges: dict[str, Gauge] = {}

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Takes the numbers after a step."""
        for name, value in {"step": float(step), **values}.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(f"ferret_train_{name}", f"{name} of a training run", tag_keys=("run",))
            self.gauges[name].set(value, {"run": self.run})


def work(arguments: dict[str, Any]) -> None:
    """One worker, from start to end."""
    from ferret_core.training.loop import train

    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("ferret_core").setLevel(logging.INFO)
    config, control = from_values(TrainConfig, arguments["config"]), arguments["control"]
    stop = threading.Event()

    def watch() -> None:
        while not ray.get(control.should_stop.remote()):
            time.sleep(_POLL_SECONDS)
        stop.set()

    threading.Thread(target=watch, daemon=True, name="watch for stop").start()
    try:
        outcome = "finished", train(config, stop.is_set, [RayMetrics(config.output)])
    except Stopped as stopped:
        outcome = "stopped", str(stopped)
    except (ValueError, FileNotFoundError) as error:
        # Not raised, or Ray Train would start all workers anew: the driver ends the others, who may wait for this one.
        if ray.get(control.finish.remote("failed", str(error))):
            logging.exception("the run cannot go on")
        return
    if ray.train.get_context().get_world_rank() == 0:
        ray.get(control.finish.remote(*outcome))


def run(config: TrainConfig) -> tuple[str, str]:
    """Runs, or resumes, a training run on the cluster.

    Returns:
        `finished`, `stopped` or `failed`; and the model's place, or what there is to say about it.
    """
    context = ray.init()  # its address and runtime environment come from the job, if this is one
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    control = ray.remote(num_cpus=0, scheduling_strategy=here)(Control).remote()  # not lost with another node
    on_gpus = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    workers = (config.min_workers, config.workers) if config.min_workers else config.workers
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": config.to_values(), "control": control},
        torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo", timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=on_gpus, resources_per_worker={"CPU": 1, "GPU": 1} if on_gpus else {"CPU": 1}
        ),
        run_config=ray.train.RunConfig(
            name=f"ferret-{time.time_ns()}",
            storage_path=f"{context.address_info['session_dir']}/ferret-train",  # of Ray's own notes, gone with the cluster
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
        ),
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask_to_stop(number: int, _: object) -> None:
        print(
            f"[driver] signal {number}: the workers save and stop; another one ends the run at once",
            file=sys.stderr,
            flush=True,
        )
        control.ask_to_stop.remote()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:  # after ray.init(), which sets its own
        signal.signal(number, ask_to_stop)
    fit = _start(trainer)
    while not wait([fit], timeout=_POLL_SECONDS).done:
        outcome = ray.get(control.get_outcome.remote())
        if outcome and outcome[0] == "failed":
            return outcome
    failure = fit.exception()
    outcome = ray.get(control.get_outcome.remote())
    if outcome is None and failure is None:
        raise RuntimeError("the workers ended without saying how; see their logs")
    return outcome or ("failed", _cause(failure))


def _start(trainer: TorchTrainer) -> Future[Any]:
    """`trainer.fit()` in a thread: in the main thread it would take SIGINT for itself, and end the workers unsaved."""
    fit: Future[Any] = Future()

    def run_fit() -> None:
        try:
            fit.set_result(trainer.fit())
        except Exception as error:
            fit.set_exception(error)

    threading.Thread(target=run_fit, daemon=True, name="fit").start()
    return fit


def _cause(error: BaseException | None) -> str:
    """One line on why the workers failed, the traces of which are further up in the log."""
    failures = getattr(error, "worker_failures", {})
    lines = [f"worker {rank}: {str(each).strip().splitlines()[-1]}" for rank, each in sorted(failures.items())]
    return "; ".join(lines[:_SHOWN_CAUSES]) or str(error)


def require_reachable(output: str) -> None:
    """Raises `ValueError` if a job's output would be lost with its working directory."""
    if "://" not in output and not Path(output).is_absolute():
        raise ValueError(
            f"output: {output} would lie in the job's own directory; take /a/shared/directory or s3://BUCKET/PREFIX"
        )


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same run wherever its workers are started."""

    def absolute(path: str) -> str:
        return path if not path or "://" in path else str(Path(path).absolute())

    def sources(given: tuple) -> tuple:
        return tuple(replace(each, path=absolute(each.path), images=absolute(each.images)) for each in given)

    data = replace(config.data, sources=sources(config.data.sources), validation=sources(config.data.validation))
    tokenizer = config.tokenizer and absolute(config.tokenizer)
    init = absolute(checkpoint_path(config.init))
    return replace(config, output=absolute(config.output), init=init, tokenizer=tokenizer, data=data)


def main(arguments: list[str] | None = None) -> int:
    """The driver's command line."""
    parser = argparse.ArgumentParser(prog="python -m cluster.train", description="Train on a Ray cluster.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="YAML of the run, see ferret_core/training/configs")
    source.add_argument("--settings", help="all settings as JSON, as `ferret train --address` gives them")
    parser.add_argument("--dry-run", action="store_true", help="print the plan of the run and stop")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's (ferret train --help)"
    )
    options = parser.parse_args(arguments)
    if options.settings and options.overrides:
        parser.error("KEY=VALUE goes with --config; --settings has everything")
    try:
        if options.config:
            config = TrainConfig.load(options.config, options.overrides)
        else:
            config = from_values(TrainConfig, json.loads(options.settings))
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            require_reachable(config.output)
            if STOP_SECONDS not in os.environ:
                print(f"[driver] {STOP_SECONDS} is not set: if this job is stopped, it has 3 seconds to save", file=sys.stderr)
        config = with_absolute_paths(config)
        from ferret_core.training.plan import make_plan

        print(make_plan(config), flush=True)
        if options.dry_run:
            return 0
        kind, message = run(config)
    except (ValueError, OSError, RuntimeError) as error:
        kind, message = "failed", str(error)
    except KeyboardInterrupt:
        kind, message = "failed", "ended at once, as asked; the same command goes on from the last checkpoint"
    ray.shutdown()  # ends all workers, and what they said comes before the last line
    print(f"{kind}: {message}", file=sys.stderr if kind == "failed" else sys.stdout, flush=True)
    return {"finished": 0, "stopped": EXIT_STOPPED}.get(kind, 1)


if __name__ == "__main__":
    os._exit(main())  # not sys.exit(): Ray may crash at the interpreter's end while fit() still waits for workers
