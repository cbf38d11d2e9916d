"""What a page of ``/metrics`` says, as Prometheus's own parser reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class MetricsPage:
    """One page. Names are told without ``inferapi_``."""

    def __init__(self, text: str | bytes) -> None:
        text = text if isinstance(text, str) else text.decode()
        self.families = list(text_string_to_metric_families(text))
        self._samples = [sample for family in self.families for sample in family.samples]

    @property
    def types(self) -> dict[str, str]:
        """Of every family, its type; counters by the name that Prometheus knows."""
        return {
            family.name.removeprefix("inferapi_") + ("_total" if family.type == "counter" else ""): family.type
            for family in self.families
        }

    def value(self, name: str, **labels: str) -> float | None:
        """The one sample with exactly these labels."""
        found = [s.value for s in self._samples if s.name == f"inferapi_{name}" and s.labels == labels]
        assert len(found) < 2, f"{name} {labels} is there {len(found)} times"
        return found[0] if found else None

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples with these labels among theirs."""
        found = [s for s in self._samples if s.name == f"inferapi_{name}" and labels.items() <= s.labels.items()]
        return sum(sample.value for sample in found)

    def counted(self, name: str, label: str) -> dict[str, float]:
        """Of a counter, the values that are not zero, by one label."""
        found = [s for s in self._samples if s.name == f"inferapi_{name}" and s.value]
        assert len({sample.labels[label] for sample in found}) == len(found), f"{name} has more labels than {label}"
        return {sample.labels[label]: sample.value for sample in found}

    def label_values(self, label: str) -> set[str]:
        """Every value that a label has anywhere."""
        return {sample.labels[label] for sample in self._samples if label in sample.labels}
