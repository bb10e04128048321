"""Configuration of the page: `ferret ui` reads it from a file, flags and the environment, and hands it to Streamlit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, FilePath, model_validator

from ferret_core.images import MAX_BYTES
from services.client import DEFAULT_SERVER
from services.settings import Settings

_VARIABLE = "FERRET_UI_SETTINGS"


class UISettings(Settings):
    """What the page needs to know. The platform's token is not here: it comes from `$FERRET_TOKEN` alone."""

    server: str = DEFAULT_SERVER
    """HOST:PORT of the platform's gRPC."""
    tls: bool = False
    """Whether the platform is behind TLS."""
    tls_certificate: FilePath | None = None
    """PEM of the authority that signed the platform's certificate; by default those the system trusts."""
    tls_client_certificate: FilePath | None = None
    """PEM of the page's own certificate, for a platform that asks for one."""
    tls_client_key: FilePath | None = None
    """PEM of its key."""
    timeout: float = Field(300, gt=0)
    """Seconds an answer may take."""
    max_image_bytes: int = Field(MAX_BYTES, ge=1)
    """Largest picture that can be opened."""
    max_image_side: int = Field(2048, ge=64, le=8192)
    """Larger pictures are scaled down to this many pixels, once."""
    max_regions: int = Field(64, ge=1)
    """Most regions on a picture; the platform has a limit of its own."""
    temperature: float = Field(0.0, ge=0, le=5)
    """How varied answers are before somebody sets it: 0 takes the likeliest word."""
    max_new_tokens: int = Field(256, ge=1)
    """Most tokens of an answer before somebody sets it."""
    seed: int | None = Field(None, ge=0, lt=2**31)
    """Of the random choices before somebody sets it; by default another for each question."""
    examples: Path = Path(__file__).parent / "example_pictures"
    """Directory of pictures to try, with an examples.json."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        for name in ("tls_certificate", "tls_client_certificate", "tls_client_key"):
            if getattr(self, name) and not self.tls:
                raise ValueError(f"{name}: only with tls: true")
        if (self.tls_client_certificate is None) != (self.tls_client_key is None):
            raise ValueError("tls_client_certificate and tls_client_key go together")
        return self

    @classmethod
    def from_environment(cls) -> Self:
        """What `ferret ui` handed over; the defaults without it."""
        return cls.model_validate_json(os.environ.get(_VARIABLE, "{}"))

    def to_environment(self) -> dict[str, str]:
        """As a variable for `from_environment`."""
        return {_VARIABLE: self.model_dump_json()}
