"""Configuration of the platform: the typed arguments of the Serve application, and Ray's environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ferret_core.checkpoint import bundled
from ferret_core.images import MAX_BYTES, MAX_PIXELS

GRPC_PORT, HTTP_PORT, UI_PORT = 9000, 8000, 8501

# Must be set on every node before Ray starts.
RAY_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # deployments talk gRPC to each other, not actor calls
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # the gateway, not Ray, says what is too large
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a dead proxy is back in seconds
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # load is seen, and answered by replicas, in seconds
    "RAY_AUTH_MODE": "token",  # left unset, a cluster started by ray.init has a token that other processes do not look for
}


def ferret_home() -> Path:
    """This user's directory: `$FERRET_HOME`, by default `~/.ferret`."""
    return Path(os.environ.get("FERRET_HOME") or Path.home() / ".ferret")


class Settings(BaseModel):
    """Base of all settings: unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def load(cls, config: Path | None, **values: Any) -> Self:
        """From a YAML file, if there is one, and values that take precedence unless None. Raises `ValueError`."""
        try:
            from_file = yaml.safe_load(config.read_text()) or {} if config else {}
        except yaml.YAMLError as error:
            raise ValueError(f"--config {config}: {error}") from error
        if not isinstance(from_file, dict):
            raise ValueError(f"--config {config}: must hold settings by name")
        return cls(**from_file | {name: value for name, value in values.items() if value is not None})


class DeploymentSettings(Settings):
    """Size of one deployment."""

    min_replicas: int = Field(1, ge=0)
    """Replicas when idle."""
    max_replicas: int = Field(1, ge=1)
    """Replicas under load."""
    target_ongoing_requests: float = Field(4, gt=0)
    """Requests a replica should have; more start another."""
    max_ongoing_requests: int = Field(32, ge=1)
    """Requests a replica takes at a time."""
    max_queued_requests: int = Field(128, ge=-1)
    """Requests that wait for a replica; more are refused."""
    num_cpus: float = Field(0.1, ge=0)
    """CPU cores that Ray reserves for a replica."""
    num_gpus: float = Field(0, ge=0)
    """GPUs that Ray reserves for a replica."""
    threads: int = Field(1, ge=1)
    """CPU threads a replica computes with."""

    def options(self, name: str) -> dict[str, Any]:
        """As arguments of `Deployment.options`."""
        return {
            "name": name,
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
            },
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "ray_actor_options": {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.threads)}},
            },
        }


class ModelSettings(Settings):
    """One model and its three stages."""

    path: str
    """A bundled checkpoint, a directory, or a name on the hub."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Of weights and arithmetic; by default bfloat16 on a GPU, else float32."""
    image_encoder: DeploymentSettings = DeploymentSettings()
    """Its vision tower."""
    region_sampler: DeploymentSettings = DeploymentSettings()
    """Its spatial-aware sampler."""
    llm_decoder: DeploymentSettings = DeploymentSettings(max_ongoing_requests=64)
    """Its projector and language model."""


class PlatformSettings(Settings):
    """The whole application."""

    models: dict[str, ModelSettings] = Field({bundled.DEFAULT: ModelSettings(path=bundled.DEFAULT)}, min_length=1)
    """By name; the first is the default."""
    gateway: DeploymentSettings = DeploymentSettings(max_ongoing_requests=256)
    """In front of all models."""
    image_directory: Path = Field(default_factory=lambda: ferret_home() / "images")
    """Where images are kept between questions."""
    image_directory_bytes: int = Field(2 * 2**30, ge=1)
    """The least recently used go when it outgrows this."""
    conversation_directory: Path = Field(default_factory=lambda: ferret_home() / "conversations")
    """Where conversations are kept."""
    conversation_days: float = Field(30, gt=0)
    """Those that nobody used for so many days go."""
    feedback_directory: Path = Field(default_factory=lambda: ferret_home() / "feedback")
    """Where ratings of answers are written down, a file a day."""
    max_image_bytes: int = Field(MAX_BYTES, ge=1)
    """Largest encoded image."""
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, le=150_000_000)
    """Largest decoded image."""
    max_text_length: int = Field(1_000_000, ge=1)
    """Most characters of a question and the turns before it."""
    max_turns: int = Field(1000, ge=0)
    """Most turns before a question."""
    max_regions: int = Field(64, ge=1)
    """Most regions of one request, or of a conversation."""
    max_comment_length: int = Field(10_000, ge=0)
    """Most characters of what is said with a rating."""
