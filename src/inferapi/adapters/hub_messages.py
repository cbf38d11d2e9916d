"""What crosses between the API process and ``hub_fetch``: one JSON object a line."""

from __future__ import annotations

import msgspec

from inferapi.domain.errors import Fact
from inferapi.domain.model import ModelProfile, ModelRef


class Question(msgspec.Struct, frozen=True):
    """The files of ``commit``, or the profile of ``ref`` where there is none."""

    ref: ModelRef
    commit: str | None
    endpoint: str | None
    cache_dir: str


class Fetching(msgspec.Struct, frozen=True, tag=True):
    """So many bytes have come."""

    done_bytes: int


class Profiled(msgspec.Struct, frozen=True, tag=True):
    """The profile, its commit and bytes to come included."""

    profile: ModelProfile


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """All files are in ``folder``."""

    folder: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """An error of the domain by name and facts, and the names of the exceptions behind it."""

    error: str
    facts: dict[str, Fact]
    causes: str


Answer = Fetching | Profiled | Fetched | Failed
