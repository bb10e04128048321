"""From text, image and regions to what the model takes, and back to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessorPil, ProcessorMixin

from ferret_core.checkpoint import original
from ferret_core.geometry import ImageSize, Region
from ferret_core.model.configuration import FerretConfig
from ferret_core.model.region_encoder import sample_points
from ferret_core.model.tokenizer import FerretLlamaTokenizer
from ferret_core.prompt import IMAGE_TOKEN, REGION_TOKEN

PREPROCESSING = 1  # goes up when the same picture and settings come to give other pixel values: caches must not mix them


class FerretImageProcessor(CLIPImageProcessorPil):
    """CLIP's preprocessing without its crop: to RGB, squashed to a square (bicubic, aspect ratio not kept), normalised."""

    do_center_crop = False

    def __call__(self, images: Sequence[Image.Image], **kwargs: Any) -> BatchFeature:
        # PIL's own conversion: transparency is dropped, not blended with white as transformers would.
        return super().__call__([image.convert("RGB") for image in images], **kwargs)


class FerretProcessor(ProcessorMixin):
    """Image processor and tokenizer of a Ferret, with what they must know of its configuration."""

    def __init__(
        self,
        image_processor: FerretImageProcessor,
        tokenizer: Any,
        num_patches: int = 576,
        image_token_id: int = -200,
        sampler_points: int = 512,
        repeat_points: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            image_processor: makes pixel values.
            tokenizer: has `<region_fea>` among its added tokens and starts a text with BOS.
            num_patches: tokens that an image takes.
            image_token_id: the id they have.
            sampler_points: points taken from a region.
            repeat_points: fill up small regions with repeats (spatial-aware sampler) or not (mean-pool adapter).
            kwargs: of `ProcessorMixin`.
        """
        super().__init__(image_processor, tokenizer, **kwargs)
        self.num_patches = num_patches
        self.image_token_id = image_token_id
        self.sampler_points = sampler_points
        self.repeat_points = repeat_points

    @classmethod
    def for_config(cls, config: FerretConfig, tokenizer: Any) -> FerretProcessor:
        """The processor that goes with a model configuration."""
        side = config.vision_config.image_size
        return cls(
            FerretImageProcessor(size={"height": side, "width": side}),
            tokenizer,
            num_patches=config.num_patches,
            image_token_id=config.image_token_id,
            sampler_points=config.sampler_points,
            repeat_points=config.region_encoder == "spatial_aware",
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> FerretProcessor:
        """As in transformers; a directory in the original layout works too."""
        path = pretrained_model_name_or_path
        if original.is_original_directory(path):
            return cls.for_config(FerretConfig.from_pretrained(path), FerretLlamaTokenizer.from_original(path))
        # Not through AutoImageProcessor, as the base class would: some releases have none without torchvision.
        settings, _ = cls.get_processor_dict(path, **kwargs)
        settings = {k: v for k, v in settings.items() if k not in ("image_processor", "processor_class")}
        return cls(
            FerretImageProcessor.from_pretrained(path, **kwargs), AutoTokenizer.from_pretrained(path, **kwargs), **settings
        )

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] = "",
        regions: Sequence[Region] = (),
        generator: torch.Generator | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Inputs of `FerretForConditionalGeneration`.

        Args:
            images: one per `<image>`, in order; EXIF rotation already applied.
            text: prompts of `build_prompt`; several are padded on the left.
            regions: one per `<region_fea>`, in order, in pixels of the image before it.
            generator: makes the points of regions random, for training.

        Returns:
            `input_ids` and `attention_mask` `(B, L)`; `pixel_values` `(images, 3, S, S)` and `region_points` `(R, P, 2)`
            where there are any.

        Raises:
            ValueError: images or regions do not match the text in number. RegionError: a region does not fit its image.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pictures = [images] if isinstance(images, Image.Image) else list(images or ())
        tokens = [self.token_ids(each) for each in texts]
        data = dict(self.tokenizer.pad({"input_ids": tokens}, padding_side="left", return_tensors="pt"))
        places = sum(each.count(IMAGE_TOKEN) for each in texts)
        if places != len(pictures):
            raise ValueError(f"images: the text has {places} {IMAGE_TOKEN}, but {len(pictures)} were given")
        owners = self._images_of_regions(texts)
        if len(owners) != len(regions):
            raise ValueError(f"regions: the text has {len(owners)} {REGION_TOKEN}, but {len(regions)} were given")
        if pictures:
            data["pixel_values"] = self.pixel_values(pictures)
        if regions:
            points = [
                self.region_points(region, ImageSize(*pictures[owner].size), generator)
                for region, owner in zip(regions, owners, strict=True)
            ]
            data["region_points"] = torch.stack(points)
        return BatchFeature(data)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a prompt: pieces around `<image>` encoded alone, `num_patches` image tokens between them."""
        first, *rest = text.split(IMAGE_TOKEN)
        ids = list(self.tokenizer(first).input_ids)
        for piece in rest:
            ids += [self.image_token_id] * self.num_patches
            ids += self.tokenizer(piece).input_ids[1:]  # without its BOS
        return ids

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixel values float32 `(images, 3, S, S)`."""
        return self.image_processor(images, return_tensors="pt")["pixel_values"]

    def region_points(self, region: Region, size: ImageSize, generator: torch.Generator | None = None) -> Tensor:
        """Points `(P, 2)` of one region, see `sample_points`. Raises `RegionError` if it does not fit the image."""
        return sample_points(region.to_mask(size), self.sampler_points, generator, self.repeat_points)

    def _images_of_regions(self, texts: Sequence[str]) -> list[int]:
        """For each `<region_fea>` of the texts, the number of the image before it."""
        owners, images = [], 0
        for text in texts:
            before, *pieces = text.split(IMAGE_TOKEN)
            if REGION_TOKEN in before:
                raise ValueError(f"text: {REGION_TOKEN} needs an {IMAGE_TOKEN} before it")
            for piece in pieces:
                owners += [images] * piece.count(REGION_TOKEN)
                images += 1
        return owners
