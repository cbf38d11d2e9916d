"""How far transformers is in reading weights, seen through the progress bar that it would draw."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from inferapi.domain.states import ModelState, Report

log = logging.getLogger(__name__)

_BAR = "Loading weights"
_MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_LENGTH_BYTES = 8


def tensor_bytes(folder: str) -> dict[str, int]:
    """Bytes of each stored tensor by its name, as the headers of the weight files tell; empty if they do not."""
    sizes: dict[str, int] = {}
    try:
        for file in _weight_files(Path(folder)):
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
                header = json.loads(stream.read(min(length, _MOST_HEADER_BYTES)))
            for name, tensor in header.items():
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    sizes[name] = end - begin
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # transformers will say what is wrong
        return {}
    return sizes


@contextmanager
def weights_reported(folder: str, report: Report) -> Iterator[None]:
    """While the block loads ``folder`` through transformers, tell ``report`` of the bytes.

    Uses the hook that transformers offers for its progress bars: global, so one load a process at a time. Where
    a version of it draws the bar otherwise, fewer reports come; a load never fails for it.
    """
    sizes = tensor_bytes(folder)
    total_bytes = sum(sizes.values())
    report(ModelState.LOADING, 0, total_bytes)

    def watched(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bar = factory(*args, **kwargs)
        return _WatchedBar(bar, sizes, report) if kwargs.get("desc") == _BAR else bar

    set_hook = getattr(transformers.utils.logging, "set_tqdm_hook", None)
    previous = set_hook(watched) if set_hook else None
    try:
        yield
    finally:
        if set_hook:
            set_hook(previous)
    report(ModelState.LOADING, total_bytes, total_bytes)


class _WatchedBar:
    """A progress bar over weights; an item is done when the next one is asked for."""

    def __init__(self, bar: Any, sizes: Mapping[str, int], report: Report) -> None:
        self._bar = bar
        self._sizes = sizes
        self._report = report

    def __iter__(self) -> Iterator[Any]:
        done_bytes, total_bytes = 0, sum(self._sizes.values())
        for item in self._bar:
            item_bytes = self._bytes_of(item)
            yield item
            done_bytes += item_bytes
            self._report(ModelState.LOADING, min(done_bytes, total_bytes), total_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def _bytes_of(self, item: Any) -> int:
        """Stored bytes behind a parameter: its mapping knows the names that it is made of."""
        try:
            names: set[str] = set().union(*item[1].layer_targets.values())
        except (AttributeError, IndexError, TypeError):
            return 0
        return sum(self._sizes.get(name, 0) for name in names)


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers reads; there may be others beside them, the same weights once more."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(weight_map.values()))]
    return sorted(folder.glob("*.safetensors"))
