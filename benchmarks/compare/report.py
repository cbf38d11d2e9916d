"""A run as a Markdown document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .limits import CONTEXT_TOKENS, Limits, model_shape
from .measure import LONG_CLIENTS, LONG_PROMPT_TOKENS, PROMPT_TOKENS, REQUESTS_PER_CLIENT, SHORT_CLIENTS
from .peers import OURS, OURS_INT4, OURS_INT8, PEERS
from .results import Results, ratio
from .targets import targets

GIB = 1024**3
MIX = {"mix": "all", "mix, short": "short prompts", "mix, long": "long prompts"}
DISTURBED_CORES = 0.1


def report(results: Results) -> str:
    """All of it."""
    parts = (_head, _targets, _speed, _mix, _ratios, _limits, _start_and_memory, _scenarios, _how)
    return "\n".join(line for part in parts for line in part(results)) + "\n"


def _head(results: Results) -> Iterator[str]:
    yield from ("# Side by side", "", "Made by:", "", f"    {results.command}", "")
    yield (
        f"{results.date}, {results.cores} cores ({results.processor}), {results.memory_bytes / GIB:.0f} GiB. "
        f"SmolLM2-135M-Instruct; greedy, {results.new_tokens} new tokens, streamed over HTTP on loopback. "
        f"Medians of {results.repeats}; the order of the servers was reversed in every second repeat."
    )
    if results.most_others_cores() > DISTURBED_CORES:
        yield ""
        yield (
            f"**The machine was not quiet:** in one round other processes took {results.most_others_cores():.2f} "
            "cores. Ratios of such a run say little."
        )
    yield ""


def _targets(results: Results) -> Iterator[str]:
    yield from ("## Targets", "")
    rows = (
        (t.what, t.against, t.at, f"{'≥' if t.at_least else '≤'} {t.bound:g}", _number(t.value, 2), t.verdict)
        for t in targets(results)
    )
    yield from _table(("what", "against", "at once", "target", "ratio", ""), rows)


def _speed(results: Results) -> Iterator[str]:
    yield from (f"## Prompts of {PROMPT_TOKENS} tokens", "")
    for width in results.concurrency:
        yield from (f"{width} at once:", "")
        rows = (_figures_row(results, name, title, str(width)) for name, title in _titles(results))
        yield from _table(("server", *_FIGURES), rows)


def _mix(results: Results) -> Iterator[str]:
    if not any("mix" in one.rounds for repeats in results.measured.values() for one in repeats):
        return
    yield from ("## Long prompts among short ones", "")
    yield (
        f"{LONG_CLIENTS} clients with prompts of {LONG_PROMPT_TOKENS:,} tokens and {SHORT_CLIENTS} with prompts of "
        f"{PROMPT_TOKENS}, each asking {REQUESTS_PER_CLIENT} times, the next time when it was answered. Tokens per "
        "second are new tokens of these requests over the time of the whole."
    )
    for what, title in MIX.items():
        yield from ("", f"{title.capitalize()}:", "")
        rows = (_figures_row(results, name, title, what) for name, title in _titles(results))
        yield from _table(("server", *_FIGURES), rows)


_FIGURES = ("tokens/s", "TTFT p50, ms", "TTFT p99, ms", "ITL p50, ms", "ITL p99, ms", "tokens in all")


def _figures_row(results: Results, name: str, title: str, what: str) -> tuple[str, ...]:
    def of(figure: str, digits: int = 0) -> str:
        return _number(results.median(name, what, figure), digits)

    times = (of("ttft_p50_ms"), of("ttft_p99_ms"), of("itl_p50_ms", 1), of("itl_p99_ms", 1))
    return (title, of("tokens_per_s", 1), *times, of("tokens"))


def _ratios(results: Results) -> Iterator[str]:
    yield from ("## Ratios of tokens per second", "")
    widths = [str(width) for width in results.concurrency]
    mix = ["mix"] if "mix" in _rounds(results) else []
    for ours, title in ((OURS, "inferapi bf16"), (OURS_INT8, "inferapi int8"), (OURS_INT4, "inferapi int4")):
        if results.median(ours, widths[0], "tokens_per_s") is None:
            continue
        rows = [
            (other, *(_number(_speed_ratio(results, ours, name, what), 2) for what in widths + mix))
            for name, other in _titles(results)
            if name != ours
        ]
        yield from (f"{title} over:", "")
        yield from _table(("", *(f"at {width}" for width in widths), *mix), rows)


def _speed_ratio(results: Results, ours: str, peer: str, what: str) -> float | None:
    return ratio(results.median(ours, what, "tokens_per_s"), results.median(peer, what, "tokens_per_s"))


def _limits(results: Results) -> Iterator[str]:
    if not results.limits:
        return
    limits, shape = Limits(**results.limits), model_shape()
    rates = ", ".join(f"{rate / 1e9:.0f} in {name}" for name, rate in limits.matrix_rates.items())
    yield from ("## Against what the machine allows", "")
    yield (
        f"Measured in this run with torch: {limits.bandwidth / 1e9:.1f} GB/s are read from memory, and {rates} "
        "thousand million operations a second are computed in large matrix products. A decoding step reads the "
        f"weights once, and the keys and values of each request ({shape.kv_bytes_per_token:,} bytes a token, "
        f"{CONTEXT_TOKENS} tokens half way), and computes {2 * shape.parameters / 1e6:.0f} million operations for each "
        "request. The limit is the larger of the two times. It leaves out the reading of prompts, which the measured "
        "tokens per second include. A limit by computing holds for kernels of the same rate: int8 and GGUF are held "
        "against the higher of the two rates."
    )
    yield ""
    rows = []
    for name, title in _titles(results):
        weights = next(peer.weights for peer in PEERS if peer.name == name)
        row = [title]
        for width in results.concurrency:
            limit = limits.tokens_per_s(shape, weights, width)
            speed = results.median(name, str(width), "tokens_per_s")
            reading_s, computing_s = limits.step_s(shape, weights, width)
            by = "reading" if reading_s > computing_s else "computing"
            row.append(f"{_number(ratio(speed, limit), 2)} of {limit:,.0f} ({by})")
        rows.append(tuple(row))
    yield from _table(("server", *(f"at {width}" for width in results.concurrency)), rows)


def _start_and_memory(results: Results) -> Iterator[str]:
    yield from ("## Start and memory", "")
    yield (
        "From the start of the process until a request of one token was answered, with files in the disk's cache; and "
        "the most memory of all its processes (PSS: shared pages once), looked at twice a second until the end of the "
        "warm-up, in which as many requests run as ever, and after each round."
    )
    yield ""
    rows = []
    for name, title in _titles(results):
        start_s, memory = results.start_s(name), results.peak_memory_bytes(name)
        rows.append((title, _number(start_s, 1), _number(memory / 1e6 if memory else None, 0)))
    yield from _table(("server", "start to first answer, s", "peak memory, MB"), rows)


def _scenarios(results: Results) -> Iterator[str]:
    found = results.scenarios
    if not found:
        return
    yield from ("## This server alone", "")
    if "sessions" in found:
        yield "The next turn of sessions of 2,000 tokens, against the same prompt of which nothing was computed before:"
        yield ""
        rows = [
            (width, kind, *(_number(one[key], 0) for key in ("turns", "ttft_p50_ms", "prompt_tokens", "cached_tokens")))
            for width, kinds in found["sessions"].items()
            for kind, one in kinds.items()
        ]
        yield from _table(("at once", "", "turns", "TTFT p50, ms", "tokens of the prompt", "of them cached"), rows)
    if "short beside long" in found:
        yield "Short requests, one after the other, alone and while a prompt of 4,000 tokens is read; and that prompt:"
        yield ""
        rows = [
            (name, str(times["samples"]), _number(times["p50_ms"], 0), _number(times["p99_ms"], 0))
            for name, times in found["short beside long"].items()
        ]
        yield from _table(("", "requests", "TTFT p50, ms", "TTFT p99, ms"), rows)
    if "overhead" in found:
        yield "The same requests over HTTP and in the engine alone, seconds for all of them together:"
        yield ""
        rows = [
            (width, _number(t["http_s"], 3), _number(t["engine_s"], 3), _number(t["ratio"], 3))
            for width, t in found["overhead"].items()
        ]
        yield from _table(("at once", "over HTTP", "engine alone", "ratio"), rows)


def _how(results: Results) -> Iterator[str]:
    yield from ("## How it was measured", "")
    yield (
        "One client for all: raw HTTP/1.1 and server-sent events in one asyncio process, on the same cores as the "
        f"server; it took at most {results.most_client_cores():.3f} of a core. Other processes took at most "
        f"{results.most_others_cores():.2f} of a core in any round. TTFT is from the request to the first text, ITL "
        "from each arrival of text to the next one. Percentiles are over all requests of a round, then the median over "
        "repeats; p99 of fewer than 100 requests is the slowest. Prompts are random words, no two with the same "
        "beginning. Where a server counts no tokens in a stream, each event is one."
    )
    yield ""
    yield from (f"- {name} {version}" for name, version in results.versions.items())
    yield from ("", "Started, in the project's folder, by:", "")
    for peer in PEERS:
        if peer.name in results.measured:
            yield f"- {peer.title}: `{peer.command_line}`"
            if missing := results.missing(peer.name):
                yield f"  **Missing or not complete:** {missing}"


def _titles(results: Results) -> Iterator[tuple[str, str]]:
    for peer in PEERS:
        if peer.name in results.measured:
            has_some = any(one.rounds for one in results.measured[peer.name])
            yield peer.name, peer.title + ("" if has_some else " (missing)")


def _rounds(results: Results) -> set[str]:
    return {name for repeats in results.measured.values() for one in repeats for name in one.rounds}


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
