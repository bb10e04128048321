"""Configuration of a Ferret: a vision tower, a region encoder and a LLaMA decoder."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from ferret_core.checkpoint import original
from ferret_core.checkpoint.settings import read_json


class ConvStemVisionConfig(CLIPVisionConfig):
    """A CLIP vision tower whose patches come from a small convolutional network: it learns faster from scratch.

    Every entry of `stem_widths` is a stage that halves the resolution, so `patch_size` is `2 ** len(stem_widths)` and
    the last width is `hidden_size`; `stem_blocks` counts the residual blocks of each stage.
    """

    model_type = "conv_stem_vision"

    hidden_size: int = 256
    intermediate_size: int = 1024
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    patch_size: int = 16
    stem_widths: list[int] | tuple[int, ...] = (32, 64, 128, 256)
    stem_blocks: list[int] | tuple[int, ...] = (0, 1, 2, 2)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.patch_size != 2 ** len(self.stem_widths):
            raise ValueError(f"patch_size must be {2 ** len(self.stem_widths)} with {len(self.stem_widths)} stem stages")
        if self.stem_widths[-1] != self.hidden_size:
            raise ValueError(f"the last of stem_widths must be hidden_size {self.hidden_size}, got {self.stem_widths[-1]}")


AutoConfig.register("conv_stem_vision", ConvStemVisionConfig, exist_ok=True)


class FerretConfig(PreTrainedConfig):
    """Everything that determines a Ferret's shape and behaviour. Reads the original release's `config.json` as well."""

    model_type = "ferret"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 (transformers' own convention)

    vision_config: Any = None
    """A CLIP (`clip_vision_model`) or convolutional-stem (`conv_stem_vision`) tower."""
    text_config: Any = None
    """A LLaMA decoder."""
    vision_feature_layer: int = -2
    """Which hidden state of the tower is the feature map; layers after it are never run."""
    region_encoder: Literal["spatial_aware", "mean_pool"] = "spatial_aware"
    """The paper's spatial-aware visual sampler (section 3.2), or one linear layer and a mean over the region."""
    sampler_points: int = 512
    """Points taken from a region's mask."""
    sampler_stages: list[int] | tuple[int, ...] = (128, 32)
    """Points that remain after each stage of the spatial-aware sampler."""
    sampler_neighbors: int = 24
    """Neighbours gathered around each of them."""
    sampler_pooling: Literal["max", "mean"] = "max"
    """How neighbours are fused."""
    transposed_region_points: bool = False
    """Read region features with x and y exchanged, as the released system does: checkpoints trained with it need that."""
    image_token_id: int = -200
    """Stands for one patch of the image in `input_ids`. Negative: outside every vocabulary."""
    region_token_id: int = 32000
    """`<region_fea>`: its embedding is replaced by a region's."""
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _sub_config(self.vision_config, "clip_vision_model")
        self.text_config = _sub_config(self.text_config, "llama")
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        for name, known in (("region_encoder", ("spatial_aware", "mean_pool")), ("sampler_pooling", ("max", "mean"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.vision_feature_layer <= layers:
            raise ValueError(f"vision_feature_layer must be in [{-layers - 1}, {layers}], got {self.vision_feature_layer}")
        if self.region_encoder == "mean_pool":
            return  # which has no stages
        points = (self.sampler_points, *self.sampler_stages)
        if any(after >= before for before, after in pairwise(points)):
            raise ValueError(
                f"sampler_stages must decrease from sampler_points {self.sampler_points}, got {self.sampler_stages}"
            )
        if self.sampler_neighbors > min(points[:-1]):
            raise ValueError(f"sampler_neighbors must be at most {min(points[:-1])}, got {self.sampler_neighbors}")

    @property
    def num_patches(self) -> int:
        """Tokens that an image takes in the decoder: 576 for CLIP ViT-L/14 at 336 pixels."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self.text_config.max_position_embeddings

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> FerretConfig:
        """As in transformers; a directory in the original layout works too.

        Raises:
            ValueError: its `config.json` is none.
        """
        read_json(Path(pretrained_model_name_or_path) / "config.json")  # names the file, if it is none
        kwargs.setdefault("name_or_path", str(pretrained_model_name_or_path))  # from_dict finds the vision tower beside
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> FerretConfig:
        """As in transformers; the original release's flat dictionary works too.

        Raises:
            ValueError: a value is missing, or none that its field can have.
        """
        where = kwargs.get("name_or_path")
        try:
            if original.is_original(config_dict):
                config_dict = original.convert_config(config_dict, where)
            if (kind := config_dict.get("model_type", cls.model_type)) != cls.model_type:
                raise ValueError(f"is a {kind}; must be a Ferret, in our layout or the original one")
            return super().from_dict(config_dict, **kwargs)
        except Exception as error:  # what a wrong type leads to is anything
            raise ValueError(f"{where or 'config'}: its configuration is wrong: {' '.join(str(error).split())}") from error


def _sub_config(value: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    value = dict(value or {})
    return AutoConfig.for_model(value.pop("model_type", default_type), **value)
