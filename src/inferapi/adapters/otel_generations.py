"""What is told of a generation: its span, and metrics by OpenTelemetry's conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai, ``docs/gen-ai/gen-ai-metrics.md``, buckets included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from inferapi.adapters.otel_attributes import Attributes, finish_attributes
from inferapi.domain.errors import InferapiError
from inferapi.domain.generation import Finish
from inferapi.domain.ports import Clock

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_SECONDS_TO_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_SECONDS_A_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4**power for power in range(14))
_CANCELLED = "cancelled"


class Work:
    """One piece of work of an engine, while it is done.

    Attributes:
        finish: how it ended, of a generation.
        prompt_tokens: of what is no generation.
    """

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.prompt_tokens = 0


class GenerationTelemetry:
    """Tells of what engines do: a span each, below that of the request, and four histograms."""

    def __init__(self, tracer: Tracer, meter: Meter, clock: Clock) -> None:
        self._tracer = tracer
        self._clock = clock
        self._duration = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            description="From a request's arrival to its last token.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._to_first = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="From a request's arrival to its first token, of those that succeeded.",
            explicit_bucket_boundaries_advisory=_SECONDS_TO_FIRST,
        )
        self._a_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            description="Mean time for a token after the first, of requests that succeeded.",
            explicit_bucket_boundaries_advisory=_SECONDS_A_TOKEN,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of a request that succeeded, of its prompt and of its answer.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )

    @contextmanager
    def telling(self, operation: str, model: str, arrived_s: float, attributes: Attributes) -> Iterator[Work]:
        """Tell of the work that is done within it, from the arrival of its request on, however it ends.

        Args:
            operation: ``chat``, ``text_completion`` or ``embeddings``.
            model: the one that does it.
            arrived_s: on the system's monotonic clock.
            attributes: of the span.
        """
        common: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "inferapi",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
        }
        start_s = self._clock.wall_s() - (self._clock.monotonic_s() - arrived_s)
        span = self._tracer.start_span(
            f"{operation} {model}", None, SpanKind.CLIENT, common | attributes, start_time=round(start_s * 1e9)
        )
        work, error = Work(), ""
        try:
            yield work
        except (GeneratorExit, asyncio.CancelledError):
            error = "" if work.finish is not None else _CANCELLED  # whoever has the end need not ask for more
            raise
        except InferapiError as failure:
            error = failure.code
            raise
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            self._end(span, common, work, arrived_s, error)

    def _end(self, span: Span, common: Attributes, work: Work, arrived_s: float, error: str) -> None:
        finish = work.finish
        total_s = finish.timings.total_s if finish is not None else self._clock.monotonic_s() - arrived_s
        if error:
            span.set_attribute("error.type", error)
            if error != _CANCELLED:  # a client that leaves is no fault
                span.set_status(StatusCode.ERROR)
            self._duration.record(total_s, common | {"error.type": error})
        else:
            self._duration.record(total_s, common)
            if finish is not None:
                span.set_attributes(finish_attributes(finish))
                self._tell_timings(finish, common)
            else:
                span.set_attribute("gen_ai.usage.input_tokens", work.prompt_tokens)
                self._tokens.record(work.prompt_tokens, common | {"gen_ai.token.type": "input"})
        span.end()

    def _tell_timings(self, finish: Finish, common: Attributes) -> None:
        usage, timings = finish.usage, finish.timings
        if usage.completion_tokens > 0:
            self._to_first.record(timings.time_to_first_token_s, common)
        if usage.completion_tokens > 1:
            self._a_token.record(timings.inter_token_latency_s, common)
        self._tokens.record(usage.prompt_tokens, common | {"gen_ai.token.type": "input"})
        self._tokens.record(usage.completion_tokens, common | {"gen_ai.token.type": "output"})
