"""What the operator decides, from the environment: prefix ``INFERAPI_``, units in the names."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, unquote, urlsplit

from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from inferapi.application.policy import NEVER_S, checked_threshold_s
from inferapi.domain.model import Quantization

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
_DEFAULT_PORTS = {"http": 80, "https": 443}


def _checked_origin(origin: str) -> str:
    """An origin as browsers write it (RFC 6454, section 6.2), or nothing would ever be equal to it."""
    parts = urlsplit(origin)
    port = parts.port  # ValueError where it is none
    if not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError("an origin is scheme://host or scheme://host:port, each by its name: no '*', no path")
    if port is not None and port == _DEFAULT_PORTS.get(parts.scheme):
        raise ValueError("browsers leave the default port out of an origin")
    return origin


Origin = Annotated[
    str,
    StringConstraints(to_lower=True, pattern=r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^*\s/?#]+$"),
    AfterValidator(_checked_origin),
]
# A name, an IPv4 address, an IPv6 address in its brackets; a port is not compared.
HostName = Annotated[
    str,
    StringConstraints(to_lower=True, pattern=r"^((\*\.)?[a-zA-Z0-9_][a-zA-Z0-9._-]{0,253}|\[[0-9a-fA-F:.]{2,45}\])$"),
]


class ApiKeySetting(BaseModel):
    """A key that may use the API: ``{"id", "key" or "sha256", "scopes"}``."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,64}$")]
    key: Annotated[str, Field(pattern=r"^[!-~]{16,512}$")] | None = Field(None, repr=False)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    scopes: frozenset[Literal["infer", "admin"]] = frozenset({"infer"})

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give either key or sha256")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        return bytes.fromhex(self.sha256) if self.sha256 else hashlib.sha256((self.key or "").encode()).digest()


def _default_store_url() -> str:
    return f"sqlite:///{quote(str(user_data_path('inferapi', appauthor=False) / 'sessions.db'))}"


class Settings(BaseSettings):
    """Every setting, with its default; read once, at start."""

    model_config = SettingsConfigDict(
        env_prefix="INFERAPI_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8000, ge=0, le=65535, description="Port to bind.")
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*$",
        max_length=256,
        description="Path below which a proxy serves this, such as /llm. The proxy takes it off what it passes on.",
    )
    forwarded_allow_ips: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="JSON list of addresses and networks of proxies: what they say in X-Forwarded-For and "
        "X-Forwarded-Proto is believed. Without any, nobody's word is.",
    )
    allow_anonymous: bool = Field(False, description="Needed to bind beyond loopback without API keys.")
    api_keys: tuple[ApiKeySetting, ...] = Field(
        (),
        description='JSON list of {"id", "key" or "sha256", "scopes": ["infer", "admin"]}. '
        "Without any, everybody may do everything.",
        repr=False,
    )
    key_requests_per_minute: int | None = Field(
        None, ge=1, le=100_000, description="Requests of one API key in any 60 s; beyond, 429. Default: any number."
    )
    key_max_concurrency: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Requests of one API key under way at once; beyond, 429. Default: any number.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (), description="JSON list of origins whose web pages may use the API, https://host or http://host:port."
    )
    trusted_hosts: tuple[HostName, ...] = Field(
        (), description="JSON list of names in the header Host that are answered, also *.example.com. Default: all."
    )
    model: str | None = Field(None, description="Model to load at start.")
    models_dir: Path = Field(Path("models"), description="Local models, <dir>/<org>/<name>/.")
    allowed_models: tuple[str, ...] = Field(("*",), description="JSON list of glob patterns of model names.")
    pinned_models: tuple[str, ...] = Field(
        (), description="JSON list of glob patterns of models that make room for no other and never idle out."
    )
    load_on_demand: bool = Field(
        True, description="Requests that name a model load it. false: only those load that have the scope admin."
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where models live.")
    dtype: Dtype = Field("auto", description="auto: bfloat16 where the machine computes in it, else float32.")
    quantization: Quantization | None = Field(
        None, description="int8 or int4: the weights of linear layers in memory; default: in dtype."
    )
    memory_budget_bytes: PositiveInt | None = Field(None, description="Ceiling on the memory of all models.")
    max_resident_models: PositiveInt = Field(1, description="Models in memory at once.")
    inactivity_threshold_s: Annotated[int, AfterValidator(checked_threshold_s)] = Field(
        300, ge=NEVER_S, description="Unload after so long without use; -1 for never."
    )
    session_store_url: str = Field(
        default_factory=_default_store_url,
        description="Where sessions are kept: sqlite:///relative/path or sqlite:////absolute/path, "
        "redis://host:6379/0, rediss://… with TLS, or memory://. Default: a SQLite file in your data folder.",
        repr=False,
    )
    session_ttl_s: PositiveInt = Field(604_800, description="Sessions are forgotten so long after their last use.")
    session_max_turns: PositiveInt = Field(
        1000, le=100_000, description="Turns that a session keeps; beyond, the oldest are forgotten."
    )
    session_max_bytes: int = Field(
        4_194_304, ge=4096, le=8_388_608, description="Bytes of text that a session keeps; likewise."
    )
    system_prompt: str = Field("You are a helpful assistant.", description="For new sessions.", max_length=65_536)
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level to log.")
    log_format: Literal["json", "text"] | None = Field(None, description="Default: text on a terminal, else json.")
    otel_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
        description="Collector that takes traces and metrics by OTLP over HTTP, http://host:4318; needs the extra "
        "otel. Default: OTEL_EXPORTER_OTLP_ENDPOINT, or else they go nowhere.",
        repr=False,
    )
    max_batch: PositiveInt = Field(32, le=1024, description="Requests that a model runs at once.")
    max_queue: int = Field(64, ge=0, le=100_000, description="Requests that may wait for a model.")
    max_new_tokens: PositiveInt = Field(4096, description="The most tokens that one request may ask for.")
    temperature: float = Field(0.7, ge=0, le=100, description="For requests that do not say; 0 is greedy.")
    lenient_params: bool = Field(
        False, description="Parameters under /v1 that are not supported: ignore them with a warning, do not refuse."
    )
    max_body_bytes: PositiveInt = Field(1_048_576, description="The largest request body.")
    receive_timeout_s: Seconds = Field(
        30.0, description="Line and headers of a request must have come by then, and its body within as long again."
    )
    max_connections: PositiveInt = Field(
        512, le=100_000, description="Connections at once; each takes a file descriptor."
    )
    request_timeout_s: Seconds = Field(300.0, description="An answer must be finished by then.")
    stream_write_timeout_s: Seconds = Field(30.0, description="A client that does not read its answer is cut off.")
    load_stall_timeout_s: Seconds = Field(120.0, description="A load that makes no progress for so long is given up.")
    worker_heartbeat_timeout_s: Seconds = Field(
        15.0, description="A worker that gives no sign of life for so long is killed and replaced."
    )
    max_queue_age_s: Seconds = Field(
        10.0, description="A request waits so long for busy models to make room; then they take no new requests."
    )
    drain_timeout_s: Seconds = Field(30.0, description="How long running requests may finish before an unload.")
    session_wait_s: Seconds = Field(9.0, description="How long a turn waits for an earlier one.")
    session_lease_s: Seconds = Field(
        8.0, ge=1, description="How long a session stays taken after the process that answered in it died."
    )
    threads: PositiveInt | None = Field(None, description="CPU threads of a worker; default: torch's own choice.")

    @field_validator("session_store_url")
    @classmethod
    def _known_store(cls, url: str) -> str:
        # The URL may hold a password: it is never repeated, neither here nor in a log.
        scheme, separator, rest = url.partition("://")
        url = f"{scheme.lower()}{separator}{rest}"
        if url == "memory://":
            return url
        try:
            parts = urlsplit(url)
            port_is_good = parts.port != 0
        except ValueError as error:
            raise ValueError("this is no URL") from error
        path = unquote(parts.path)
        if url.startswith("sqlite:///") and "\0" not in path and path.split("/")[-1] not in {"", ".", "..", ":memory:"}:
            return url
        is_redis = url.startswith(("redis://", "rediss://")) and parts.hostname and port_is_good
        if is_redis and re.fullmatch(r"(/[0-9]*)?", path):
            return url
        raise ValueError("use sqlite:///path/to/file, redis://host:port/number, rediss://… or memory://")

    @field_validator("otel_endpoint")
    @classmethod
    def _collector(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good or parts.query or parts.fragment:
            raise ValueError("use http://host:port or https://host:port, with a path before /v1/traces if need be")
        return url.rstrip("/")

    @field_validator("api_keys")
    @classmethod
    def _distinct_keys(cls, keys: tuple[ApiKeySetting, ...]) -> tuple[ApiKeySetting, ...]:
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("two keys have the same id")
        if len({key.digest for key in keys}) < len(keys):
            raise ValueError("two ids have the same key")
        return keys

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
