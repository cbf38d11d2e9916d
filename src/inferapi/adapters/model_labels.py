"""Names of models as label values: so many at most, and only of models that were in memory or named by the operator."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "_other"
"""The label of every model that has none of its own. No model can have this name."""

MOST_LABELS = 32
"""Each costs about a hundred lines of the page, and as many series in Prometheus, until the server ends."""


class ModelLabels:
    """Clients name models freely, and a label is never forgotten: so a name becomes one only when it is admitted.

    Args:
        known: names that the operator gave.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        for name in known:
            self.admit(name)

    def admit(self, name: str) -> str:
        """A model that is or was in memory: its label, from now on."""
        if name not in self._names and len(self._names) < MOST_LABELS:
            self._names.add(name)
        return self.of(name)

    def of(self, name: str) -> str:
        """The label of any name."""
        return name if name in self._names else OTHER
