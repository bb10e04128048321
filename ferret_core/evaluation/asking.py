"""Who answers the questions of a benchmark: a model in this process, or a running platform. The answers are the same.

Models on a Ray cluster are asked in `cluster.evaluate`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import cache
from itertools import chain, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from PIL import Image

from ferret_core.evaluation.answers import Question, answer_all
from ferret_core.evaluation.benchmark import Item, Prediction
from ferret_core.geometry import ImageSize
from ferret_core.images import open_image
from ferret_core.predictor import FerretPredictor

Asker = Callable[[Sequence[Item], int], Sequence[str | None]]
"""Greedy answers to items, in their order, each of at most so many tokens; None if the question cannot be asked."""
Predict = Callable[[Sequence[Item], int], Iterator[list[Prediction]]]
"""Predictions of items as they come, in any order, some at a time; each answer of at most so many tokens."""
Pictures = Callable[[Item], Image.Image]
"""The picture of an item."""


def pictures_below(directory: Path) -> Pictures:
    """Pictures from a directory, by their path or, if that is not there, by their name alone."""

    def picture(item: Item) -> Image.Image:
        path = directory / item.image
        if not path.is_file():
            path = directory / Path(item.image).name
        if not path.is_file():
            raise ValueError(
                f"item {item.id}: neither {directory / item.image} nor {path} is there; --images says where to look"
            )
        image = open_image(path)
        if item.size and image.size == item.size[::-1] != item.size:  # annotated as it is stored, without its EXIF rotation
            with Image.open(path) as stored:
                image = stored.convert("RGB")
            image.info = {}
        if item.size and image.size != item.size:
            raise ValueError(f"item {item.id}: {path} is {ImageSize(*image.size)} pixels, but the data set says {item.size}")
        return image

    return picture


def sizes_below(directory: Path) -> Callable[[str], ImageSize]:
    """Sizes of the pictures of a directory, by their paths; each is read once. For data sets that do not say them."""
    picture = pictures_below(directory)
    return cache(lambda name: ImageSize(*picture(Item(id=name, image=name, question="")).size))


def ask_here(predictor: FerretPredictor, pictures: Pictures, batch_size: int) -> Asker:
    """Asks a model in this process, `batch_size` questions at a time; each picture is read once."""

    def ask(items: Sequence[Item], max_new_tokens: int) -> list[str | None]:
        places = {name: place for place, name in enumerate(dict.fromkeys(item.image for item in items))}
        first = {item.image: item for item in reversed(items)}
        questions = [
            Question(image=places[item.image], text=item.question, regions=dict(enumerate(item.regions))) for item in items
        ]
        return answer_all(predictor, [pictures(first[name]) for name in places], questions, batch_size, max_new_tokens)

    return ask


def predict_on_platform(connect: Callable[[], Any], pictures: Pictures, at_once: int) -> Predict:
    """Asks a running platform, `at_once` questions at a time; waits where it says that it has had too many.

    Args:
        connect: makes a client, which is asked as a `FerretPredictor` is and remembers one picture: one for each question asked
            at a time.
        pictures: where pictures are.
        at_once: how many clients.
    """

    def predict(items: Sequence[Item], max_new_tokens: int) -> Iterator[list[Prediction]]:
        clients: SimpleQueue[Any] = SimpleQueue()

        def ask(item: Item) -> Prediction:
            image, client = pictures(item), clients.get()
            try:
                answer = _patiently(lambda: _ask(client, image, item, max_new_tokens))
            except ValueError as error:
                logging.warning("cannot be asked: %s: %s", item.id, error)
                answer = None
            finally:
                clients.put(client)
            return Prediction(item, answer)

        with ExitStack() as stack:
            for _ in range(min(at_once, len(items))):
                clients.put(stack.enter_context(connect()))
            pool = ThreadPoolExecutor(at_once)
            stack.callback(pool.shutdown, cancel_futures=True)
            futures = [pool.submit(ask, item) for item in chain.from_iterable(batches(items, at_once))]
            failures: list[BaseException] = []
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if error := future.exception():  # no more is asked, and what is on its way is waited for
                    failures.append(error)
                    for other in futures:
                        other.cancel()
                else:
                    yield [future.result()]
            if failures:
                raise failures[0]

    return predict


def _ask(client: Any, image: Image.Image, item: Item, max_new_tokens: int) -> str:
    client.set_image(image)
    return str(client.ask(item.question, dict(enumerate(item.regions)), max_new_tokens=max_new_tokens, temperature=0.0).text)


def _patiently(ask: Callable[[], str]) -> str:
    """Asks again for as long as the platform tells when."""
    while True:
        try:
            return ask()
        except RuntimeError as error:
            if not (pause := getattr(error, "retry_after", None)):
                raise
            time.sleep(pause)


def predict_with(ask: Asker, at_a_time: int) -> Predict:
    """Asks `ask`, `at_a_time` items at a time."""

    def predict(items: Sequence[Item], max_new_tokens: int) -> Iterator[list[Prediction]]:
        for batch in batches(items, at_a_time):
            yield predictions(ask, batch, max_new_tokens)

    return predict


def predictions(ask: Asker, items: Sequence[Item], max_new_tokens: int) -> list[Prediction]:
    """Items with their answers."""
    return [Prediction(item, answer) for item, answer in zip(items, ask(items, max_new_tokens), strict=True)]


def batches(items: Sequence[Item], at_a_time: int) -> Iterator[list[Item]]:
    """All items, `at_a_time` at a time, questions about a picture together."""
    by_image: dict[str, list[Item]] = {}
    for item in items:
        by_image.setdefault(item.image, []).append(item)
    ordered = chain.from_iterable(by_image.values())
    while batch := list(islice(ordered, at_a_time)):
        yield batch
