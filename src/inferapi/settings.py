"""What the operator decides, from the environment: prefix ``INFERAPI_``, units in the names."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from inferapi.application.policy import NEVER_S, checked_threshold_s

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class Settings(BaseSettings):
    """Every setting, with its default; read once, at start."""

    model_config = SettingsConfigDict(env_prefix="INFERAPI_", frozen=True, extra="ignore", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8000, ge=0, le=65535, description="Port to bind.")
    allow_anonymous: bool = Field(False, description="Needed to bind beyond loopback.")
    model: str | None = Field(None, description="Model to load at start.")
    models_dir: Path = Field(Path("models"), description="Local models, <dir>/<org>/<name>/.")
    allowed_models: tuple[str, ...] = Field(("*",), description="JSON list of glob patterns of model names.")
    pinned_models: tuple[str, ...] = Field(
        (), description="JSON list of glob patterns of models that make room for no other and never idle out."
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where models live.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the machine computes in it, else float32.")
    memory_budget_bytes: PositiveInt | None = Field(None, description="Ceiling on the memory of all models.")
    max_resident_models: PositiveInt = Field(1, description="Models in memory at once.")
    inactivity_threshold_s: Annotated[int, AfterValidator(checked_threshold_s)] = Field(
        300, ge=NEVER_S, description="Unload after so long without use; -1 for never."
    )
    session_store_url: str = Field("memory://", description="Where sessions are kept; so far only memory://.")
    session_ttl_s: PositiveInt = Field(604_800, description="Sessions are forgotten so long after their last use.")
    system_prompt: str = Field("You are a helpful assistant.", description="For new sessions.", max_length=65_536)
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level to log.")
    log_format: Literal["json", "text"] | None = Field(None, description="Default: text on a terminal, else json.")
    max_batch: PositiveInt = Field(32, le=1024, description="Requests that a model runs at once.")
    max_queue: int = Field(64, ge=0, le=100_000, description="Requests that may wait for a model.")
    max_new_tokens: PositiveInt = Field(4096, description="The most tokens that one request may ask for.")
    temperature: float = Field(0.7, ge=0, le=100, description="For requests that do not say; 0 is greedy.")
    max_body_bytes: PositiveInt = Field(1_048_576, description="The largest request body.")
    request_timeout_s: Seconds = Field(300.0, description="An answer must be finished by then.")
    load_stall_timeout_s: Seconds = Field(120.0, description="A load that makes no progress for so long is given up.")
    worker_heartbeat_timeout_s: Seconds = Field(
        15.0, description="A worker that gives no sign of life for so long is killed and replaced."
    )
    max_queue_age_s: Seconds = Field(
        10.0, description="A request waits so long for busy models to make room; then they take no new requests."
    )
    drain_timeout_s: Seconds = Field(30.0, description="How long running requests may finish before an unload.")
    session_wait_s: Seconds = Field(10.0, description="How long a turn waits for an earlier one.")
    threads: PositiveInt | None = Field(None, description="CPU threads of a worker; default: torch's own choice.")

    @field_validator("session_store_url")
    @classmethod
    def _known_store(cls, url: str) -> str:
        if url != "memory://":
            raise ValueError("only memory:// is built yet")
        return url

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def logs_as_text(self) -> bool:
        """Text for people, JSON for machines, unless told otherwise."""
        return self.log_format == "text" if self.log_format else sys.stdout.isatty()
