"""What the decoder is to go on from: token ids, some of which stand for embeddings of an image or a region."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from ferret_core.model import FerretForConditionalGeneration

Digest = bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions of a prompt whose embeddings are not those of their token ids."""

    start: int
    """The first of them."""
    length: int
    digest: Digest
    """Of all that the embeddings depend on."""
    embeddings: abc.Callable[[int, int], Tensor]
    """From one of its positions to another, `(end - start, D)`. Not asked for where the cache has their keys and values."""

    def overlap(self, start: int, end: int) -> range:
        """Which of the positions from `start` to `end` are its own."""
        return range(max(start, self.start), min(end, self.start + self.length))


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and the segments among them. Raises `ValueError` if there is nothing to go on from."""

    token_ids: tuple[int, ...]
    """What stands at a segment's positions is never looked up."""
    segments: tuple[Segment, ...] = ()
    """In order and without overlap."""

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("the prompt is empty")


def content(token_ids: abc.Sequence[int], segments: abc.Sequence[Segment], start: int, end: int) -> bytes:
    """What positions `start` to `end` hold, in bytes that differ wherever the embeddings do."""
    parts = [np.asarray(token_ids[start:end], np.int64).tobytes()]
    for segment in segments:
        if own := segment.overlap(start, end):
            places = np.asarray([own.start - start, own.start - segment.start, len(own)], np.int64)
            parts.append(segment.digest + places.tobytes())
    return b"".join(parts)


def tensor_digest(tensor: Tensor) -> Digest:
    """Of a tensor's values, type and shape."""
    digest = blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def ferret_prompt(
    model: FerretForConditionalGeneration,
    input_ids: abc.Sequence[int],
    image_features: Tensor | None,
    region_features: Tensor | None = None,
) -> Prompt:
    """A Ferret's prompt, as `FerretModel.embed_prompt` understands it.

    The features themselves tell images and regions apart, and not what they were made from: whatever changed them, be it
    the picture, the mask, the encoder's revision or its precision, changes the keys of what is cached.

    Args:
        model: whose projector is used.
        input_ids: N times `image_token_id` for the image, one `region_token_id` for each region.
        image_features: `(1, N, d)` of `encode_images`; on any device.
        region_features: `(R, D)` of `encode_regions`, in the order of their tokens; on any device.

    Raises:
        ValueError: the tokens and the features do not match in number, or the features do not fit the model, or are no numbers.
    """
    ids, config = np.asarray(input_ids, np.int64), model.config
    is_image, places = ids == config.image_token_id, np.flatnonzero(ids == config.region_token_id)
    image = torch.empty(0, config.vision_config.hidden_size) if image_features is None else image_features.flatten(0, -2)
    regions = torch.empty(0, config.text_config.hidden_size) if region_features is None else region_features
    if is_image.sum() != len(image):
        raise ValueError(f"the prompt has {is_image.sum()} image tokens, but {len(image)} image patches were given")
    if len(places) != len(regions):
        raise ValueError(f"the prompt has {len(places)} <region_fea> tokens, but {len(regions)} regions were given")
    for name, features, width in (
        ("image", image, config.vision_config.hidden_size),
        ("region", regions, config.text_config.hidden_size),
    ):
        if features.shape[-1] != width:
            raise ValueError(f"{name} features: {features.shape[-1]} wide, but the model takes {width}")
        if not features.isfinite().all():  # what is computed beside them would be no numbers either, and be kept for others
            raise ValueError(f"{name} features: some are no numbers")
    segments = []
    if len(image):
        start = int(is_image.argmax())
        if not is_image[start : start + len(image)].all():
            raise ValueError("the image tokens of the prompt are apart")

        def project(first: int, last: int) -> Tensor:
            return model.model.multi_modal_projector(image[first:last].to(model.device, model.dtype))

        segments.append(Segment(start, len(image), tensor_digest(image), project))
    for place, region in zip(places.tolist(), regions, strict=True):
        segments.append(Segment(place, 1, tensor_digest(region), lambda *_, region=region: region[None].to(model.device)))
    return Prompt(tuple(ids.tolist()), tuple(sorted(segments, key=lambda segment: segment.start)))
