"""Spans for OpenTelemetry, made of a decision record once the request is over.

So a request that is not traced pays for reading one header, and one that is pays after its
answer. Names follow OpenTelemetry's HTTP and generative-AI conventions (1.37, in development).
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from waypost.shared.contracts import Policy
from waypost.shared.records import Attempt, DecisionRecord, fate_of

__all__ = ["Tracer"]

MILLIS_NS = 1_000_000
CLOSE_TIMEOUT_MS = 3_000
EXPORT_TIMEOUT_S = 3.0
BEFORE_FORWARD = ("authenticate", "understand", "decide", "reserve")

# ``gen_ai.operation.name`` by the API that the request came by.
_OPERATIONS = {"embeddings": "embeddings", "completions": "text_completion"}

Attributes = Mapping[str, str | bool | int | float]


class _Ids(IdGenerator):
    """Gives the ids that were told to providers, and random ones to all other spans."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self.next_trace: int | None = None
        self.next_span: int | None = None

    def generate_span_id(self) -> int:
        span_id, self.next_span = self.next_span, None
        return self._random.generate_span_id() if span_id is None else span_id

    def generate_trace_id(self) -> int:
        trace_id, self.next_trace = self.next_trace, None
        return self._random.generate_trace_id() if trace_id is None else trace_id


class Tracer:
    """Sends spans to a collector, in batches from a thread of its own."""

    def __init__(self, exporter: SpanExporter, *, version: str) -> None:
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # what is not traced does not come here
            resource=Resource.create({"service.name": "waypost", "service.version": version}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("waypost.validator", version)

    @classmethod
    def to(cls, endpoint: str, *, headers: Mapping[str, str], version: str) -> Self:
        """Return a tracer that sends OTLP over HTTP to ``endpoint``."""
        exporter = OTLPSpanExporter(
            endpoint=endpoint, headers=dict(headers), timeout=EXPORT_TIMEOUT_S
        )
        return cls(exporter, version=version)

    def record(self, record: DecisionRecord, policy: Policy | None) -> None:
        """Tell of a request that was traced."""
        if record.trace_id is None or record.span_id is None:
            return
        parent: Context | None = None
        if record.parent_span_id is not None:
            context = SpanContext(
                int(record.trace_id, 16),
                int(record.parent_span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
            )
            parent = set_span_in_context(NonRecordingSpan(context), Context())
        self._ids.next_trace = int(record.trace_id, 16)
        endpoint = "" if record.facts is None else record.facts.measured.endpoint
        whole = self._start(
            f"waypost {endpoint}".strip(),
            parent or Context(),
            at_ns=record.at_ms * MILLIS_NS,
            span_id=record.span_id,
            kind=SpanKind.SERVER,
            attributes=_of_request(record),
        )
        if fate_of(record) == "failed":
            whole.set_status(Status(StatusCode.ERROR, record.reason))
        self._steps(record, set_span_in_context(whole, Context()), policy)
        _end(whole, record, record.duration_ms)

    def _steps(self, record: DecisionRecord, inside: Context, policy: Policy | None) -> None:
        start_ms = 0.0
        for step in BEFORE_FORWARD:
            if step in record.steps_ms:
                span = self._step(record, step, inside, start_ms)
                start_ms += record.steps_ms[step]
                _end(span, record, start_ms)
        if record.attempts:
            span = self._step(record, "forward", inside, start_ms)
            for attempt in record.attempts:
                self._attempt(record, attempt, set_span_in_context(span, Context()), policy)
            start_ms = max(one.started_ms + one.duration_ms for one in record.attempts)
            _end(span, record, start_ms)
        if "settle" in record.steps_ms:
            span = self._step(record, "settle", inside, start_ms)
            _end(span, record, start_ms + record.steps_ms["settle"])

    def _step(self, record: DecisionRecord, name: str, inside: Context, start_ms: float) -> Span:
        return self._start(name, inside, at_ns=_instant_ns(record, start_ms))

    def _attempt(
        self, record: DecisionRecord, attempt: Attempt, inside: Context, policy: Policy | None
    ) -> None:
        model = next((m for m in policy.models if m.id == attempt.model), None) if policy else None
        name = attempt.model if model is None else model.name
        endpoint = "" if record.facts is None else record.facts.measured.endpoint
        operation = _OPERATIONS.get(endpoint, "chat")
        attributes: dict[str, str | bool | int | float] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": attempt.provider,
            "gen_ai.request.model": name,
            "waypost.model": attempt.model,
            "waypost.attempt.kind": attempt.kind,
            "waypost.attempt.outcome": attempt.outcome,
        }
        if attempt.http_status is not None:
            attributes["http.response.status_code"] = attempt.http_status
        if attempt.ttft_ms is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = attempt.ttft_ms / 1_000
        if attempt.outcome == "ok" and record.usage is not None:
            attributes["gen_ai.usage.input_tokens"] = record.usage.input_tokens
            attributes["gen_ai.usage.output_tokens"] = record.usage.output_tokens
        if attempt.outcome not in ("ok", "cancelled"):
            attributes["error.type"] = attempt.outcome
        span = self._start(
            f"{operation} {name}",
            inside,
            at_ns=_instant_ns(record, attempt.started_ms),
            span_id=attempt.span_id,
            kind=SpanKind.CLIENT,
            attributes=attributes,
        )
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR, attempt.outcome))
        _end(span, record, attempt.started_ms + attempt.duration_ms)

    def _start(
        self,
        name: str,
        inside: Context,
        *,
        at_ns: int,
        span_id: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> Span:
        self._ids.next_span = None if span_id is None else int(span_id, 16)
        return self._tracer.start_span(
            name, inside, kind=kind, attributes=attributes, start_time=at_ns
        )

    def close(self) -> None:
        """Send what waits, for a few seconds; call it from a thread."""
        with suppress(Exception):  # a collector that is away must not keep us from ending
            self._provider.force_flush(CLOSE_TIMEOUT_MS)
        self._provider.shutdown()


def _of_request(record: DecisionRecord) -> Attributes:
    told: dict[str, str | int | float | bool | None] = {
        "http.request.method": "POST",
        "http.response.status_code": record.http_status,
        "waypost.decision.id": record.id,
        "waypost.verdict": record.verdict,
        "waypost.reason": record.reason,
        "waypost.route": record.route,
        "waypost.model": record.model,
        "waypost.tier": record.tier,
        "waypost.manifest.version": record.manifest_version,
        "waypost.cost_usd": record.cost_nusd / 1_000_000_000,
    }
    return {name: value for name, value in told.items() if value is not None}


def _instant_ns(record: DecisionRecord, after_ms: float) -> int:
    return record.at_ms * MILLIS_NS + int(after_ms * MILLIS_NS)


def _end(span: Span, record: DecisionRecord, after_ms: float) -> None:
    span.end(end_time=_instant_ns(record, after_ms))
