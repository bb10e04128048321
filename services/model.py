"""A model, as the gateway knows it."""

from __future__ import annotations

from collections.abc import Sequence

from ray.serve.handle import DeploymentHandle

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.model import FerretConfig, FerretProcessor
from services.features import Features
from services.settings import ModelSettings
from services.stages import Stages
from services.stores import Cache


class Model:
    """What the gateway knows of a model, and how it reaches it. Holds no weights."""

    def __init__(self, name: str, settings: ModelSettings, cache: Cache, handles: Sequence[DeploymentHandle]) -> None:
        path = checkpoint_path(settings.path)
        self.name = name
        self.processor = FerretProcessor.from_pretrained(path)
        self.context_length = FerretConfig.from_pretrained(path).context_length
        self.stages = Stages(name, *handles)
        self.features = Features(settings, cache, self.stages.encode_image, self.stages.encode_regions)
        self.revision = self.features.versions.weights
