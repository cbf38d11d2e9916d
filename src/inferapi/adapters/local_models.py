"""The models folder, looked at from outside: which models seem to lie in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from inferapi.domain.errors import ModelNameInvalid
from inferapi.domain.model import ModelRef

_CONFIG = "config.json"
_MOST_ENTRIES = 10_000


def models_in(models_dir: Path) -> dict[ModelRef, float]:
    """Folders ``<name>`` and ``<org>/<name>`` that hold a config, and when it was written, seconds since the epoch.

    Folders whose names are no model names are left out, and so is what cannot be read.
    """
    found: dict[ModelRef, float] = {}
    for folder in _folders(models_dir):
        here = _written_s(folder)
        inside = {folder.name: here} if here is not None else _models_of(folder)
        for name, written_s in inside.items():
            try:
                ref = ModelRef.parse(name)
            except ModelNameInvalid:
                continue
            if ref.revision is None:
                found[ref] = written_s
    return found


def _models_of(organization: Path) -> dict[str, float]:
    written_s = {f"{organization.name}/{folder.name}": _written_s(folder) for folder in _folders(organization)}
    return {name: moment_s for name, moment_s in written_s.items() if moment_s is not None}


def _folders(folder: Path) -> Iterator[Path]:
    """Folders in a folder, links to folders included; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MOST_ENTRIES) if _is_folder(entry)]
    except OSError:
        return
    for name in sorted(names):
        yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _written_s(folder: Path) -> float | None:
    """When a folder's config was written; none if it has none."""
    try:
        return (folder / _CONFIG).stat().st_mtime
    except OSError:
        return None
