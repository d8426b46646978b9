"""Spans for OpenTelemetry, made of a decision record once the request is over.

So a request that is not traced pays for reading one header, and one that is pays after its
answer. Names follow OpenTelemetry's HTTP and generative-AI conventions (1.37, in development).
"""

from collections.abc import Mapping
from typing import Self

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from waypost.cli.spans import Attributes, Spans
from waypost.shared.contracts import Policy
from waypost.shared.records import Attempt, DecisionRecord, fate_of
from waypost.shared.wire.trace_context import TraceContext

__all__ = ["Tracer"]

MILLIS_NS = 1_000_000
BEFORE_FORWARD = ("authenticate", "understand", "decide", "reserve")

# ``gen_ai.operation.name`` by the API that the request came by.
_OPERATIONS = {"embeddings": "embeddings", "completions": "text_completion"}


class Tracer:
    """Makes spans of records, and sends them to a collector."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    @classmethod
    def to(cls, endpoint: str, *, headers: Mapping[str, str], version: str) -> Self:
        """Return a tracer that sends OTLP over HTTP to ``endpoint``."""
        return cls(Spans.to(endpoint, headers=headers, service="waypost", version=version))

    def record(self, record: DecisionRecord, policy: Policy | None) -> None:
        """Tell of a request that was traced."""
        if record.trace_id is None or record.span_id is None:
            return
        trace = TraceContext(record.trace_id, record.span_id, record.parent_span_id)
        endpoint = "" if record.facts is None else record.facts.measured.endpoint
        whole = self._spans.begin(
            f"waypost {endpoint}".strip(),
            trace,
            at_ns=record.at_ms * MILLIS_NS,
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
            ends_ms = max(one.started_ms + one.duration_ms for one in record.attempts)
            start_ms = min(ends_ms, record.duration_ms)  # one that was outrun goes on unseen
            _end(span, record, start_ms)
        if "settle" in record.steps_ms:
            span = self._step(record, "settle", inside, start_ms)
            _end(span, record, start_ms + record.steps_ms["settle"])

    def _step(self, record: DecisionRecord, name: str, inside: Context, start_ms: float) -> Span:
        return self._spans.start(name, inside, at_ns=_instant_ns(record, start_ms))

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
        span = self._spans.start(
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

    def close(self) -> None:
        """Send what waits, for a few seconds; call it from a thread."""
        self._spans.close()


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
