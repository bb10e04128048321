"""Building: scenes into shards of records, resumably and in parallel, the same bytes whatever the number of workers.

A picture's shard follows from its name alone, its conversations from (seed, data set, picture, task) alone. Each shard is
written at once, `shard-00012-of-00064.jsonl`, and one that is there is not made again. `manifest.json` says what the
directory is made of, and no other data gets in.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from ferret_core.data.build.instructions import LanguageModelFoils, instruct
from ferret_core.data.build.language_model import LanguageModel
from ferret_core.data.build.leaks import Exclusions
from ferret_core.data.build.negatives import NEGATIVES, BuiltInFoils
from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Scene, merge_doubles, renumber, to_region
from ferret_core.data.build.sources import SOURCES
from ferret_core.data.build.tasks import TASKS, Exchange
from ferret_core.data.checks import check_record
from ferret_core.data.records import Record
from ferret_core.disk import written_whole
from ferret_core.prompt import Turn

DIALOGUE, INSTRUCT = "dialogue", "instruct"
ALL_TASKS = (*TASKS, *NEGATIVES, DIALOGUE, INSTRUCT)
FREE_TASKS = ALL_TASKS[:-1]
"""Those that need no language model."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is made of each scene."""

    source: str
    split: str = "train"
    seed: int = 0
    tasks: tuple[str, ...] = FREE_TASKS
    per_task: int = 2
    """Most exchanges of one task about one picture."""
    turns: int = 4
    """Most exchanges of one conversation; how many it has is random."""
    llm: LanguageModel | None = None
    """Writes the task `instruct` and, instead of the word lists, foils."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"SOURCE: must be one of {', '.join(SOURCES)}, got {self.source!r}")
        splits = tuple(SOURCES[self.source].splits)
        if self.split not in splits:
            raise ValueError(f"--split: {self.source} has {', '.join(splits)}, not {self.split!r}")
        for task in self.tasks:
            if task not in ALL_TASKS:
                raise ValueError(f"--tasks: {task!r} is none; known: {', '.join(ALL_TASKS)}")
        if not self.tasks:
            raise ValueError(f"--tasks: name at least one of {', '.join(ALL_TASKS)}")
        if INSTRUCT in self.tasks and not self.llm:
            raise ValueError("--tasks: instruct needs a language model, --llm MODEL and --llm-url URL")
        for name in ("per_task", "turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Work:
    """One shard to be made."""

    number: int
    plan: Plan
    scenes: list[Scene]


@dataclass(slots=True)
class Shard:
    """One shard, made: JSON lines of records, how many exchanges of each task, and what was left out."""

    number: int
    text: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


Runner = Callable[[Iterable[Work]], Iterator[Shard]]
"""Calls `build_shard` for each piece of work, somewhere, and yields what comes back in any order."""


def build_shard(work: Work) -> Shard:
    """All records of a shard: a function of its argument alone, the language model's cache aside."""
    shard = Shard(work.number)
    lines = []
    for scene in work.scenes:
        try:
            records, counts = build_records(work.plan, scene)
        except ValueError as error:
            shard.problems.append(f"{work.plan.source}: image {scene.id} ({scene.image}): {error}")
            continue
        shard.counts += counts
        lines += [json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records]
    shard.text = "".join(lines)
    return shard


def build_records(plan: Plan, scene: Scene) -> tuple[list[Record], Counter[str]]:
    """Records about one picture, and the number of exchanges of each task. Nothing is asked and answered twice."""
    scene = merge_doubles(scene)
    said: set[Turn] = set()
    counts: Counter[str] = Counter()
    dialogues: list[Exchange] = []
    exchanges: list[Exchange] = []
    if DIALOGUE in plan.tasks:
        dialogues += dict.fromkeys(scene.dialogues)
        counts[DIALOGUE] = len(dialogues)
    if INSTRUCT in plan.tasks and plan.llm and (turns := instruct(scene, plan.llm)):
        dialogues.append(turns)
        counts[INSTRUCT] = 1
    for task in plan.tasks:
        for exchange in islice(_exchanges(plan, scene, task), plan.per_task):
            if said.isdisjoint(exchange):
                said.update(exchange)
                exchanges.append(exchange)
                counts[task] += 1
    conversations = dialogues + _group(exchanges, plan.turns, _rng(plan, scene, "order"))
    records = [_record(plan, scene, turns, number) for number, turns in enumerate(conversations)]
    for record in records:
        check_record(record)
    return records, +counts


def build(
    request: Request,
    plan: Plan,
    output: Path,
    *,
    shards: int = 64,
    exclude: Iterable[Path] = (),
    run: Runner,
) -> dict[str, Any]:
    """Makes what is missing in `output`. Returns what was done, as `ferret data build` prints it.

    Raises:
        ValueError: the directory holds other data; or more items are broken than `request.problems` allows.
    """
    if shards < 1:
        raise ValueError(f"--shards: must be at least 1, got {shards}")
    exclude = list(exclude)
    excluded = Exclusions.read(exclude)
    scenes = list(SOURCES[plan.source].read(request))
    manifest = _manifest(plan, request, shards, exclude)
    _check_manifest(output, manifest)

    kept = [scene for scene in scenes if not excluded.has(scene)]
    files = [output / f"shard-{i:05d}-of-{shards:05d}.jsonl" for i in range(shards)]
    finished = {i for i, path in enumerate(files) if path.exists()}
    groups: dict[int, list[Scene]] = {i: [] for i in range(shards) if i not in finished}
    for scene in kept:
        number = int.from_bytes(hashlib.sha256(scene.image.encode()).digest()[:8], "big") % shards
        if number in groups:
            groups[number].append(scene)

    counts: Counter[str] = Counter()
    work = [Work(number, plan, group) for number, group in groups.items()]
    for shard in tqdm(run(work), total=len(work), unit="shard", disable=None):
        for problem in shard.problems:
            request.problems.note(problem)
        _write(files[shard.number], shard.text)
        counts += shard.counts
    return {
        "images": len(scenes),
        "excluded": len(scenes) - len(kept),
        "shards": len(work),
        "already finished": len(finished),
        "exchanges": dict(sorted(counts.items())),
        "left out": request.problems.messages,
    }


def run_here(workers: int) -> Runner:
    """Runs work in processes of this machine; in this one if `workers` is 1."""

    def run(work: Iterable[Work]) -> Iterator[Shard]:
        if workers <= 1:
            yield from map(build_shard, work)
            return
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            try:
                for future in as_completed([pool.submit(build_shard, each) for each in work]):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return run


def _exchanges(plan: Plan, scene: Scene, task: str) -> Iterator[Exchange]:
    rng = _rng(plan, scene, task)
    if task in TASKS:
        yield from TASKS[task](scene, rng)
    elif task in NEGATIVES:
        yield from NEGATIVES[task](scene, rng, LanguageModelFoils(plan.llm) if plan.llm else BuiltInFoils())


def _rng(plan: Plan, scene: Scene, purpose: str) -> Random:
    return Random(f"{plan.seed}/{plan.source}/{plan.split}/{scene.id}/{purpose}")


def _group(exchanges: list[Exchange], most: int, rng: Random) -> list[Exchange]:
    """Conversations of 1 to `most` exchanges, mixed."""
    rest = [rng.sample(exchange, len(exchange)) for exchange in rng.sample(exchanges, len(exchanges))]
    conversations = []
    while rest:
        length = rng.randint(1, most)
        conversations.append(tuple(turn for exchange in rest[:length] for turn in exchange))
        rest = rest[length:]
    return conversations


def _record(plan: Plan, scene: Scene, turns: Exchange, number: int) -> Record:
    """The record of a conversation, with what it mentions, in that order, and nothing else."""
    used: dict[str, dict[int, int]] = {"region": {}, "box": {}}

    def numbered(text: str) -> str:
        return renumber(text, lambda kind, i: used[kind].setdefault(i, len(used[kind])))

    return Record(
        id=f"{plan.source}-{plan.split}-{scene.id}-{number}",
        image=scene.image,
        size=scene.size,
        turns=tuple(Turn(numbered(turn.question), numbered(turn.answer or "")) for turn in turns),
        regions=tuple(to_region(scene.objects[i], scene.size) for i in used["region"]),
        boxes=tuple(scene.objects[i].box for i in used["box"]),
        dataset=plan.source,
        license=SOURCES[plan.source].license,
        split=plan.split,
    )


def _manifest(plan: Plan, request: Request, shards: int, exclude: Iterable[Path]) -> dict[str, Any]:
    values = asdict(plan) | {"shards": shards, "tasks": list(plan.tasks)}
    values["llm"] = {"url": plan.llm.url, "model": plan.llm.model} if plan.llm else None
    values["min_score"] = request.min_score
    values["files"] = {str(path.name): _fingerprint(path) for path in dict.fromkeys(request.files)}
    values["exclude"] = sorted(_fingerprint(path) for path in exclude)
    return values


def _check_manifest(output: Path, manifest: dict[str, Any]) -> None:
    path = output / "manifest.json"
    if path.exists():
        there = json.loads(path.read_text())
        for key, value in manifest.items():
            if there.get(key) != value:
                raise ValueError(
                    f"{path}: is of {key} = {there.get(key)}, not {value}; take another --output, or the same {key}"
                )
    else:
        output.mkdir(parents=True, exist_ok=True)
        if stray := sorted(output.glob("shard-*.jsonl")):
            raise ValueError(f"{stray[0]}: lies in {output} without a manifest.json; take an empty --output")
        _write(path, json.dumps(manifest, indent=2) + "\n")


def _fingerprint(path: Path) -> str:
    """SHA-256 of a file's content; of a directory, of the names and sizes in it."""
    if path.is_dir():
        listing = "\n".join(f"{each.name} {each.stat().st_size}" for each in sorted(path.iterdir()))
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    with written_whole(path) as file:
        file.write(text.encode())
