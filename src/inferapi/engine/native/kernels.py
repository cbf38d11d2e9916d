"""Calls of the native kernels from Python: made one by one, or noted down to be repeated."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from inferapi.engine.native.calls import Call, Library
from inferapi.engine.native.library import load_library

Redirect = Callable[[Call, int, tuple[Any, ...]], None]
"""Makes a call in place of ``Kernels``: its rows, and what must live as long as the call may be repeated."""


class Kernels:
    """This process's way to the library, by one caller at a time.

    ``wanted_threads`` compute, up to ``most_threads``; as many as PyTorch is set to, until somebody says otherwise.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self.most_threads = os.cpu_count() or 1  # kernels with a scratch memory a thread have as many
        self.wanted_threads: int | None = None
        self.redirect: Redirect | None = None

    @property
    def threads(self) -> int:
        """How many compute."""
        return min(self.wanted_threads or torch.get_num_threads(), self.most_threads)

    def run(self, call: Call, rows: int, *alive: Any) -> None:
        """Compute ``rows`` rows now, or have ``redirect`` do so."""
        if self.redirect is not None:
            self.redirect(call, rows, alive)
        else:
            self.compute(call, rows)

    def compute(self, call: Call, rows: int) -> None:
        """Compute ``rows`` rows now."""
        self.library.run(self.library.list_of([call]), 1, rows, self.threads)


@cache
def load_kernels() -> Kernels:
    """The process's kernels.

    Raises:
        NoKernelsError: they cannot be had; the message says why.
    """
    return Kernels(load_library())
