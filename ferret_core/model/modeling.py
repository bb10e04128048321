"""The Ferret model in transformers' conventions: vision tower, projector, region encoder and LLaMA decoder.

Shapes: B conversations, L tokens, N patches an image, d vision width, D decoder width, R regions, P points a region.

    image_features  = model.encode_images(pixel_values)                        # (B, N, d), before the projector
    region_features = model.encode_regions(image_features, region_points)      # (R, D)
    embeddings      = model.embed_prompt(input_ids, image_features, region_features)  # (B, L, D)

These three steps and the decoder need disjoint weights, so each can run alone, in a process of its own:
`from_pretrained(path, parts=("vision_tower",))` loads nothing else.
"""

from __future__ import annotations

import pickle
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ferret_core import cpu
from ferret_core.checkpoint import original
from ferret_core.checkpoint.weights import refusal
from ferret_core.model.configuration import FerretConfig
from ferret_core.model.packing import LanguageModelHead
from ferret_core.model.region_encoder import build_region_encoder

Part = Literal["vision_tower", "region_encoder", "decoder"]
PARTS: tuple[Part, ...] = ("vision_tower", "region_encoder", "decoder")
IGNORE_INDEX = -100


def default_device() -> str:
    """A CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str, name_or_path: str) -> torch.dtype:
    """Of a checkpoint on a device: bfloat16 on a GPU, and on a CPU that our kernels know, unless the checkpoint is in float32;
    else float32.
    """
    if device != "cpu":
        return torch.bfloat16
    config = FerretConfig.from_pretrained(name_or_path)
    half = config.dtype in (torch.bfloat16, torch.float16)
    return torch.bfloat16 if half and cpu.supports(config.text_config) else torch.float32


class FerretPreTrainedModel(PreTrainedModel):
    """Loading, saving and attention dispatch."""

    config: FerretConfig
    config_class = FerretConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> FerretPreTrainedModel:
        """As in transformers, plus `parts`; a local directory in the original layout works too.

        Args:
            pretrained_model_name_or_path: a local directory or a name on the hub.
            args: passed on.
            kwargs: passed on; `parts` is a subset of `PARTS`, the weights to load.

        Raises:
            ValueError: weights are missing, or are a delta's; a pickle holds more than tensors, of which nothing was run.
        """
        path, told = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        if path is None or kwargs.get("state_dict") is not None or not original.is_original_directory(path):
            try:
                model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
            except pickle.UnpicklingError as error:
                raise refusal(path, error) from error
            if getattr(model.config, "quantization_config", None):  # then transformers leaves weights in the file's type
                for parameter in filter(Tensor.is_floating_point, model.parameters()):
                    parameter.data = parameter.data.to(model.config.dtype)
        else:
            config = kwargs.pop("config", None) or FerretConfig.from_pretrained(path)
            weights = original.read_state_dict(path, vision_tower="vision_tower" in kwargs.get("parts", PARTS))
            model, info = super().from_pretrained(
                None, *args, config=config, state_dict=weights, output_loading_info=True, **kwargs
            )
        if missing := sorted(info["missing_keys"]):  # which transformers would fill with noise
            raise ValueError(f"{path}: has no {missing[0]} ({len(missing)} such weights); see ferret checkpoint inspect")
        norms = [weight for name, weight in model.named_parameters() if name.endswith("language_model.norm.weight")]
        if any(not norm.is_meta and norm.float().mean().abs() < 0.5 for norm in norms):
            raise ValueError(f"{path}: holds differences from a base; add them to it: ferret checkpoint delta apply")
        return (model, info) if told else model  # type: ignore[return-value]  # as in transformers


class FerretModel(FerretPreTrainedModel):
    """Everything but the language-model head."""

    def __init__(self, config: FerretConfig, parts: tuple[Part, ...] = PARTS) -> None:
        super().__init__(config)
        if "vision_tower" in parts:
            self.vision_tower = AutoModel.from_config(config.vision_config)
        if "region_encoder" in parts:
            self.region_encoder = build_region_encoder(config)
        if "decoder" in parts:
            self.multi_modal_projector = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
            self.language_model = LlamaModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Feature maps `(B, N, d)` of images `(B, 3, S, S)`, row-major, without the class token or a final norm."""
        tower = self.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        depth = self.config.vision_feature_layer % (len(tower.encoder.layers) + 1)  # -1 is the last layer's output
        for block in tower.encoder.layers[:depth]:
            hidden = block(hidden, None)
        return hidden[:, 1:]

    def encode_regions(self, image_features: Tensor, region_points: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Region embeddings `(R, D)`.

        Args:
            image_features: `(B, N, d)` of `encode_images`.
            region_points: float32 `(R, P, 2)` of `sample_points`.
            image_index: int64 `(R,)`, the image each region belongs to; the first by default.
        """
        if image_index is None:
            image_index = torch.zeros(len(region_points), dtype=torch.long, device=region_points.device)
        return self.region_encoder(image_features, region_points, image_index)

    def embed_prompt(
        self, input_ids: Tensor, image_features: Tensor | None = None, region_features: Tensor | None = None
    ) -> Tensor:
        """Token embeddings `(B, L, D)` with image patches and regions in their places.

        Args:
            input_ids: int64 `(B, L)`; N times `image_token_id` per image, one `region_token_id` per region.
            image_features: `(images, N, d)`, projected here, in the order of their tokens.
            region_features: `(R, D)`, in the order of their tokens. Without any image, as when decoding goes on after the
                prompt, `<region_fea>` keeps the embedding of its token.

        Raises:
            ValueError: the tokens and the features do not match in number.
        """
        is_image, is_region = input_ids == self.config.image_token_id, input_ids == self.config.region_token_id
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        projected = None if image_features is None else self.multi_modal_projector(image_features).flatten(0, 1)
        embeddings = _replace(embeddings, is_image, projected, "image tokens", "image patches")
        if image_features is None and region_features is None:
            return embeddings
        return _replace(embeddings, is_region, region_features, "<region_fea> tokens", "regions")

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        region_points: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch; see `FerretForConditionalGeneration.forward`."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self.embed_inputs(input_ids, pixel_values, region_points)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )

    def embed_inputs(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, region_points: Tensor | None = None
    ) -> Tensor:
        """`embed_prompt` from raw inputs: encodes images `(images, 3, S, S)` and regions `(R, P, 2)` first."""
        image_features = region_features = None
        if pixel_values is not None:
            image_features = self.encode_images(pixel_values)
            if region_points is not None and len(region_points):
                flat = input_ids.flatten()
                images_before = (flat == self.config.image_token_id).cumsum(0) // self.config.num_patches
                image_index = images_before[flat == self.config.region_token_id] - 1
                _check_counts(len(image_index), "<region_fea> tokens", len(region_points), "regions")
                region_features = self.encode_regions(image_features, region_points, image_index)
        return self.embed_prompt(input_ids, image_features, region_features)


class FerretForConditionalGeneration(FerretPreTrainedModel, GenerationMixin):
    """A Ferret that answers."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: FerretConfig, parts: tuple[Part, ...] = PARTS) -> None:
        super().__init__(config)
        self.model = FerretModel(config, parts)
        if "decoder" in parts:
            self.lm_head = LanguageModelHead(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        else:
            self._tied_weights_keys = {}
        if set(parts) != set(PARTS):  # the rest of the checkpoint is not unexpected
            self._keys_to_ignore_on_load_unexpected = {r".*"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module | None:
        return getattr(self, "lm_head", None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        region_points: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the mean cross-entropy over `labels` if given.

        Args:
            input_ids: int64 `(B, L)`, expanded: N image tokens per image, one `<region_fea>` per region.
            pixel_values: `(images, 3, S, S)`, in the order of their tokens.
            region_points: float32 `(R, P, 2)`, in the order of their tokens; a region belongs to the last image before it.
            attention_mask: `(B, L)`, 0 on padding.
            position_ids: `(B, L)`.
            past_key_values: a transformers `Cache`.
            inputs_embeds: `(B, L, D)` in place of `input_ids`, as from `embed_prompt`.
            labels: int64 `(B, L)`, -100 where there is nothing to learn.
            logits_to_keep: how many trailing positions, or which positions, to compute logits for; all by default.
            kwargs: passed to the decoder.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            region_points=region_points,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        region_points: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | Any:
        """As in transformers: `(B, L + new)` token ids, the prompt included, image patches shown as token 0.

        With `inputs_embeds`, as of `embed_prompt`, in place of `input_ids`: `(B, new)`.
        """
        if input_ids is None:
            return super().generate(attention_mask=attention_mask, **kwargs)
        embeddings = self.model.embed_inputs(input_ids, pixel_values, region_points)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        shown = input_ids.masked_fill(input_ids == self.config.image_token_id, 0)  # logits processors index by id
        return super().generate(shown, inputs_embeds=embeddings, attention_mask=attention_mask, **kwargs)


def _check_counts(expected: int, tokens: str, given: int, things: str) -> None:
    if given != expected:
        raise ValueError(f"the prompt has {expected} {tokens}, but {given} {things} were given")


def _replace(embeddings: Tensor, where: Tensor, values: Tensor | None, tokens: str, things: str) -> Tensor:
    _check_counts(int(where.sum()), tokens, 0 if values is None else len(values), things)
    if values is None:
        return embeddings
    return embeddings.masked_scatter(where[..., None], values.to(embeddings.dtype))
