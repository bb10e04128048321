"""The platform in one replica: the gateway with the stages of its models in its own process, for `serving.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray import serve
from ray.serve import Application

from services.gateway import Gateway
from services.image_encoder import ImageEncoder
from services.llm_decoder import LLMDecoder
from services.region_sampler import RegionSampler
from services.settings import PlatformSettings


class Here:
    """In place of a deployment's handle: the deployment itself, in this process."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment

    def options(self, **options: Any) -> Here:
        return self

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._deployment, method))


class Colocated(Gateway):
    """A gateway that has the stages of its models in its own process."""

    def __init__(self, settings: PlatformSettings) -> None:
        stages = (ImageEncoder, RegionSampler, LLMDecoder)
        models = settings.models.items()
        super().__init__(settings, {name: tuple(Here(stage(model)) for stage in stages) for name, model in models})


def build(settings: PlatformSettings) -> Application:
    """As `services.app.build`, in one replica."""
    return serve.deployment(serve.ingress()(Colocated), **settings.gateway.options("gateway")).bind(settings)
