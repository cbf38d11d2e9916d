"""What was promised, and whether this run keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .peers import OURS, OURS_INT4, OURS_INT8
from .results import Results, ratio

LLAMA_CPP = ("llama-server", "llama-cpp-python")
TRANSFORMERS = ("transformers", "transformers-cb")
QUANTIZED = {OURS_INT8: "int8", OURS_INT4: "int4"}


@dataclass(frozen=True)
class Target:
    """A ratio that has to be reached.

    Attributes:
        at_least: a floor, else a ceiling.
    """

    what: str
    against: str
    at: str
    bound: float
    at_least: bool
    value: float | None

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.value is None:
            return "not measured"
        is_met = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "met" if is_met else "**not met**"


def targets(results: Results) -> Iterator[Target]:
    """All of them."""
    for names, title, bounds in (
        (("vllm",), "vLLM CPU", (1.3, 1.3, 1.6)),
        (TRANSFORMERS, "best mode of `transformers serve`", (2.3, 2.5, 3.0)),
    ):
        yield from _speeds(results, OURS, "bf16", names, title, bounds)
    for name, title in QUANTIZED.items():
        yield from _speeds(results, name, title, LLAMA_CPP, "best mode of llama.cpp on the GGUF", (1.0, 2.0, 2.0))
    for width, bound in (("1", 0.15), ("8", 0.2)):
        turns = results.scenarios.get("sessions", {}).get(width, {})
        value = ratio(turns.get("warm", {}).get("ttft_p50_ms"), turns.get("cold", {}).get("ttft_p50_ms"))
        yield Target("TTFT of a 2,000-token session's next turn", "the same prompt cold", width, bound, False, value)
    beside = results.scenarios.get("short beside long", {})
    value = ratio(beside.get("beside", {}).get("p99_ms"), beside.get("alone", {}).get("p99_ms"))
    yield Target("TTFT p99 of short requests while a 4,000-token prompt prefills", "alone", "1", 3.0, False, value)
    # The best mode here is the one that answers first.
    starts = [start for name in TRANSFORMERS if (start := results.start_s(name)) is not None]
    value = ratio(results.start_s(OURS), min(starts, default=None))
    yield Target("start to first answer", "`transformers serve`", "", 0.7, False, value)
    for width, times in results.scenarios.get("overhead", {}).items():
        yield Target("wall time over HTTP", "the engine alone", width, 1.05, False, times["ratio"])


def _speeds(
    results: Results, ours: str, title: str, peers: tuple[str, ...], against: str, bounds: tuple[float, ...]
) -> Iterator[Target]:
    for width, bound in zip(("1", "8", "32"), bounds, strict=True):
        speeds = [results.median(peer, width, "tokens_per_s") for peer in peers]
        value = ratio(
            results.median(ours, width, "tokens_per_s"),
            max((speed for speed in speeds if speed is not None), default=None),
        )
        yield Target(f"tokens/s, {title}", against, width, bound, True, value)
