"""The Serve application: `import_path: services.app:build` in a Serve config, or `serve.run(build(settings))`."""

from ray import serve
from ray.serve import Application

from services.gateway import Gateway
from services.image_encoder import ImageEncoder
from services.llm_decoder import LLMDecoder
from services.region_sampler import RegionSampler
from services.settings import PlatformSettings

GRPC_SERVICERS = ["services.listening.add_ferret_service_to_server"]


def build(settings: PlatformSettings) -> Application:
    """One gateway in front of three deployments for each model."""
    stages = {
        name: (
            serve.deployment(ImageEncoder, **model.image_encoder.options(f"{name}-image-encoder")).bind(model),
            serve.deployment(RegionSampler, **model.region_sampler.options(f"{name}-region-sampler")).bind(model),
            serve.deployment(LLMDecoder, **model.llm_decoder.options(f"{name}-llm-decoder")).bind(model),
        )
        for name, model in settings.models.items()
    }
    gateway = serve.ingress()(Gateway)  # answers HTTP besides gRPC
    return serve.deployment(gateway, **settings.gateway.options("gateway")).bind(settings, stages)
