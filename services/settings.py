"""Configuration of the platform: the typed arguments of the Serve application, and Ray's environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ferret_core.checkpoint import bundled
from ferret_core.disk import ferret_home
from ferret_core.images import MAX_BYTES, MAX_PIXELS
from ferret_core.s3 import split_url
from services.problems import problems

GRPC_PORT, GRPC_TLS_PORT, HTTP_PORT, METRICS_PORT, UI_PORT = 9000, 9443, 8000, 9464, 8501
RETRY_SECONDS = 2  # after which whom a busy platform refused may ask again

RemoteCalls = Literal["any", "tls", "none"]
"""Serve's gRPC port listens on every interface, whatever one wants; what comes from elsewhere can be refused."""

_LOOK_SECONDS = 0.1  # from one look for a place at a decoder to the next
_LOOK_BACK_SECONDS = 5.0  # the load is its mean over so long

# Must be set on every node before Ray starts.
RAY_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # deployments talk gRPC to each other, not actor calls
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(64 * 2**20),  # of anybody's, read before a token is asked for: by default 2 GiB
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # the gateway, not Ray, says what is too large
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a dead proxy is back in seconds
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine takes longer than 5 to start one, which was killed for it
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # load is seen, and answered by replicas, in seconds
    "RAY_AUTH_MODE": "token",  # left unset, a cluster started by ray.init has a token that other processes do not look for
}


def _path_from(variable: str) -> Path | None:
    return Path(value) if (value := os.environ.get(variable)) else None


def redis_password() -> str | None:
    """The password in this process's environment, if there is one."""
    in_url = urlsplit(os.environ.get("FERRET_REDIS_URL", "")).password
    return os.environ.get("FERRET_REDIS_PASSWORD") or (unquote(in_url) if in_url else None)


def read_yaml(path: Path) -> dict[str, Any]:
    """What a file of settings holds. Raises `ValueError` that names the file."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold settings by name")
    return values


class Settings(BaseModel):
    """Base of all settings: unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    @classmethod
    def load(cls, config: Path | None, **values: Any) -> Self:
        """From a YAML file, if there is one, and values that take precedence unless None.

        Raises `ValueError`: a line for each problem, that names the file and the key, or the variable.
        """
        from_file = read_yaml(config) if config else {}
        values = {name: value for name, value in values.items() if value is not None}
        try:
            return cls.model_validate(from_file | values)
        except ValidationError as error:
            in_file = {name: value for name, value in from_file.items() if name not in values}
            raise ValueError(problems(error, cls, in_file, f"{config}: " if config else "")) from None


class DeploymentSettings(Settings):
    """Size of one deployment."""

    min_replicas: int = Field(1, ge=0)
    """Replicas when idle."""
    max_replicas: int = Field(1, ge=1)
    """Replicas under load."""
    upscale_delay_seconds: float = Field(3, ge=0)
    """How long there must be too few replicas before there are more."""
    downscale_delay_seconds: float = Field(60, ge=0)
    """How long there must be too many before there are fewer, or none at all."""
    drain_seconds: float = Field(300, ge=0)
    """How long a replica that goes has to finish what it has begun."""
    max_ongoing_requests: int = Field(32, ge=1)
    """Requests a replica takes at a time."""
    max_queued_requests: int = Field(128, ge=-1)
    """Requests that wait for a replica; more are refused."""
    max_surge_percent: int = Field(100, ge=0, le=100)
    """Replicas that an update may start beside those it replaces, which serve until then; 0 where no GPU is left for them."""
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
            "autoscaling_config": self.autoscaling(),
            "graceful_shutdown_timeout_s": self.drain_seconds,
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_SECONDS},  # of HTTP; gRPC has a status for it
            "max_surge_percent": self.max_surge_percent,
            "ray_actor_options": {
                "num_cpus": self.num_cpus,
                "num_gpus": self.num_gpus,
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.threads)}},
            },
        }

    def autoscaling(self) -> dict[str, Any]:
        """As arguments of `AutoscalingConfig`."""
        return {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "upscale_delay_s": self.upscale_delay_seconds,
            "downscale_delay_s": self.downscale_delay_seconds,
            "look_back_period_s": _LOOK_BACK_SECONDS,
        }


class StageSettings(DeploymentSettings):
    """Size of a deployment that is scaled by requests, running and queued."""

    target_ongoing_requests: float = Field(4, gt=0)
    """Requests a replica should have; more start another."""

    def autoscaling(self) -> dict[str, Any]:
        """As arguments of `AutoscalingConfig`."""
        return super().autoscaling() | {"target_ongoing_requests": self.target_ongoing_requests}


class EncoderSettings(StageSettings):
    """Size of a deployment that computes what waits in batches."""

    max_batch_size: int = Field(8, ge=1)
    """Most pictures, or regions, that are computed at a time: more take more memory, and all wait for the last of them."""


class DecoderSettings(DeploymentSettings):
    """Size of a decoder, which is scaled by tokens and not by requests."""

    max_ongoing_requests: int = Field(64, ge=1)
    """Requests a replica takes at a time."""
    target_tokens: int = Field(8192, ge=1)
    """Tokens, prompts included, that the streams of a replica should hold together; more start another."""
    cache_tokens: int = Field(16384, ge=1)
    """Tokens that a replica has memory for: those of its streams, and of earlier ones that a question may go on from."""
    step_tokens: int = Field(512, ge=1)
    """Tokens of a step: more read prompts faster, fewer let running answers wait less for them."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that the layers of one replica are divided among, each in a process of its own; num_gpus is as many, or 0."""
    quantization: Literal["int8"] | None = None
    """Of the weights, on a CPU with AVX512-BF16: half the memory, and faster where memory is what holds up."""

    @model_validator(mode="after")
    def _a_gpu_for_each_rank(self) -> Self:
        if self.tensor_parallel > 1 and self.num_gpus not in (0, self.tensor_parallel):
            raise ValueError(
                f"num_gpus: must be {self.tensor_parallel} as tensor_parallel is, or 0 for CPUs, got {self.num_gpus:g}"
            )
        if self.tensor_parallel > 1 and self.quantization:
            raise ValueError("quantization: only where tensor_parallel is 1")
        return self

    def options(self, name: str) -> dict[str, Any]:
        """As arguments of `Deployment.options`."""
        router = {"request_router_class": "services.routing.PictureRouter", "max_backoff_s": _LOOK_SECONDS}
        return super().options(name) | {"request_router_config": router}

    def autoscaling(self) -> dict[str, Any]:
        """As arguments of `AutoscalingConfig`."""
        policy = {
            "policy_function": "services.autoscaling:TokensPerReplica",
            "policy_kwargs": {"target_tokens": self.target_tokens},
        }
        return super().autoscaling() | {"policy": policy}


class ModelSettings(Settings):
    """One model and its three stages."""

    path: str
    """A bundled checkpoint, a directory, or a name on the hub."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Of weights and arithmetic; by default bfloat16 on a GPU, and on a CPU with AVX512-BF16 unless the checkpoint is in
    float32; else float32."""
    image_encoder: EncoderSettings = EncoderSettings()
    """Its vision tower."""
    region_sampler: EncoderSettings = EncoderSettings()
    """Its spatial-aware sampler."""
    llm_decoder: DecoderSettings = DecoderSettings()
    """Its projector and language model."""


class StoreSettings(Settings):
    """What is kept between questions, and where. FERRET_REDIS_URL is the default of redis_url, and so on for all of them."""

    directory: Path = Field(default_factory=ferret_home)
    """Images, conversations and logs are kept here, or wait here for a server that is away."""
    redis_url: str | None = None
    """Keeps conversations and what need not be computed twice: redis://HOST:PORT. A password stays in the environment, in
    FERRET_REDIS_PASSWORD or as a part of FERRET_REDIS_URL."""
    s3_url: str | None = None
    """Keeps images and logs: s3://BUCKET/PREFIX, with who we are and where to go in AWS_ variables as for data."""
    image_bytes: int = Field(2 * 2**30, ge=1)
    """The least recently used go when those in the directory outgrow it."""
    conversation_bytes: int = Field(2**30, ge=1)
    """As image_bytes."""
    conversation_days: float = Field(30, gt=0)
    """Those that nobody used for so many days go."""
    cache_bytes: int = Field(256 * 2**20, ge=0)
    """Most that a replica keeps of what need not be computed twice; Redis has a limit of its own."""
    cache_seconds: float = Field(3600, gt=0)
    """What nobody used for so long is computed anew."""
    spool_bytes: int = Field(2**30, ge=1)
    """Most of each kind that waits for a server that is away."""
    feedback_images: bool = False
    """Write down the image with a rating, not only its hash."""
    log_conversations: bool = False
    """Write down every finished answer of a conversation with its question, as ratings are."""

    @model_validator(mode="before")
    @classmethod
    def _from_environment(cls, values: Any) -> Any:
        variables = {name: os.environ.get(f"FERRET_{name.upper()}") for name in cls.model_fields}
        if url := variables["redis_url"]:
            variables["redis_url"] = re.sub(r":[^:@/]*@", "@", url).replace("//@", "//")  # without the password
        return {name: value for name, value in variables.items() if value} | values if isinstance(values, dict) else values

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str | None) -> str | None:
        if url is not None:
            if not url.startswith(("redis://", "rediss://", "unix://")):
                raise ValueError(f"must be redis://HOST:PORT, got {url!r}")
            if urlsplit(url).password is not None:
                raise ValueError("must hold no password; FERRET_REDIS_PASSWORD in the environment is the place for it")
        return url

    @field_validator("s3_url")
    @classmethod
    def _s3(cls, url: str | None) -> str | None:
        if url is not None:
            split_url(url)
        return url


class PlatformSettings(Settings):
    """The whole application."""

    models: dict[str, ModelSettings] = Field({bundled.DEFAULT: ModelSettings(path=bundled.DEFAULT)}, min_length=1)
    """By name; the first is the default."""
    gateway: StageSettings = StageSettings(max_ongoing_requests=256)
    """In front of all models."""
    tokens_file: Path | None = Field(default_factory=lambda: _path_from("FERRET_TOKENS_FILE"))
    """Who may call, as `ferret token` writes it, on every node with a gateway; without it everybody may."""
    remote_calls: RemoteCalls = "any"
    """Which gRPC calls from other machines are answered; `ferret up --host` sets it."""
    stores: StoreSettings = Field(default_factory=StoreSettings)
    """What is kept between questions."""
    allowed_image_hosts: tuple[str, ...] = ()
    """Hosts from which pictures are fetched over HTTPS, where a request names them by their address; from none by default."""
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
