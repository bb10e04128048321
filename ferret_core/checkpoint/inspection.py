"""What is in a checkpoint, by its headers: no weight is loaded but one norm, which tells a delta from a model.

print(inspect_checkpoint("checkpoints/ferret-7b-start"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferret_core.checkpoint.checksums import provenance
from ferret_core.checkpoint.layouts import open_checkpoint
from ferret_core.checkpoint.original import is_original, read_weights
from ferret_core.checkpoint.parts import PARTS, are_differences, parameters, part_of, problems
from ferret_core.checkpoint.settings import read_json
from ferret_core.checkpoint.weights import Weight, by_name
from ferret_core.model import FerretConfig


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's configuration and weights."""

    path: str
    kind: str
    """What it is, in words."""
    config: FerretConfig | None
    """None for parts of a model."""
    weights: tuple[Weight, ...]
    problems: tuple[str, ...]
    """Weights that the configuration asks for and the files lack, or have in another shape, and such as it does not know."""

    @property
    def complete(self) -> bool:
        """Whether all that a model needs was found, and nothing is wrong with it."""
        return self.config is not None and not self.problems

    def to_json(self) -> dict[str, Any]:
        """Parts with their parameters, and what is wrong."""
        parts = {part: self._of(part) for part in PARTS}
        return {
            "path": self.path,
            "kind": self.kind,
            "parts": {
                part: {
                    "parameters": sum(map(parameters, weights)),
                    "bytes": sum(w.bytes for w in weights),
                    "dtypes": sorted({w.dtype_name for w in weights}),
                }
                for part, weights in parts.items()
            },
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        shapes = _shapes(self.config) if self.config else dict.fromkeys(PARTS, "")
        lines = [self.kind, f"{'':<16}{'parameters':>16}{'GiB':>8}  dtype"]
        for part, shape in shapes.items():
            weights = self._of(part)
            dtypes = ", ".join(sorted({w.dtype_name for w in weights})) or "-"
            lines.append(f"{_row(part.replace('_', ' '), weights)}  {dtypes:<10}  {shape if weights else ''}".rstrip())
        lines.append(_row("total", self.weights))
        if self.complete:
            but = "" if self._of("vision_tower") else " but for the vision tower"
            lines.append(f"complete{but}: every weight that the configuration asks for is there, in its shape")
        return "\n".join([*lines, *(f"problem: {problem}" for problem in self.problems)])

    def _of(self, part: str) -> list[Weight]:
        return [weight for weight in self.weights if part_of(weight.name) == part]


def inspect_checkpoint(name_or_path: str | Path) -> Inspection:
    """Looks at a bundled checkpoint, a directory in our layout or the original one, a delta, or a file with parts of a model.

    Raises:
        ValueError: there are no weights, or a file is damaged.
    """
    path = Path(name_or_path)
    settings = read_json(path / "config.json")
    other = "" if settings.get("model_type") == "ferret" or is_original(settings) else settings.get("model_type", "")
    if path.is_file() or (path.is_dir() and (other or not settings)):
        weights = by_name(read_weights(path))
        if not weights:
            raise ValueError(f"{path}: no weights; must be a checkpoint's directory, or a file of weights")
        strange = tuple(f"{name} is no weight of a Ferret" for name in weights if not part_of(name))
        kind = f"a {other}: parts of a model, as `assemble` and `delta` take them" if other else "parts of a model"
        return Inspection(str(path), kind, None, tuple(weights.values()), strange)
    checkpoint = open_checkpoint(name_or_path, quantized=True)
    optional = () if checkpoint.layout == "ferret" else ("vision_tower",)  # as deltas, and what is made from them, have none
    found = problems(checkpoint.weights, checkpoint.config, without=optional)
    kind = f"a checkpoint in {'the original' if checkpoint.is_original else 'our'} layout"
    if are_differences(checkpoint.weights):
        kind = "a delta: differences from a base, to be added to it by `ferret checkpoint delta apply`"
        if base := provenance(checkpoint.directory).get("inputs", {}).get("base"):
            kind += f"; its base is {base['name']}"
    elif checkpoint.is_original and not checkpoint.has_tower:
        kind += f", without its vision tower: {checkpoint.tower_name} is looked for when it is loaded"
    if quantized := getattr(checkpoint.config, "quantization_config", None):
        kind += f", its decoder's matrices quantized to {8 if quantized.get('load_in_8bit') else 4} bits"
    return Inspection(str(checkpoint.directory), kind, checkpoint.config, tuple(checkpoint.weights.values()), tuple(found))


def _row(name: str, weights: Sequence[Weight]) -> str:
    """How large it is, in columns."""
    return f"{name:<16}{sum(map(parameters, weights)):>16,}{sum(w.bytes for w in weights) / 2**30:>8.2f}"


def _shapes(config: FerretConfig) -> dict[str, str]:
    """What each part looks like, in words."""
    vision, text = config.vision_config, config.text_config
    points = " to ".join(map(str, (config.sampler_points, *config.sampler_stages)))
    return {
        "vision_tower": f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {config.num_patches} patches of "
        f"{vision.image_size} x {vision.image_size} pixels",
        "projector": f"{vision.hidden_size} to {text.hidden_size}",
        "region_encoder": f"{points} points" if config.region_encoder == "spatial_aware" else "mean over the region",
        "decoder": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.vocab_size} tokens, context "
        f"{config.context_length}",
    }
