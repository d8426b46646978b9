"""Spans of finished work, sent to a collector as OTLP over HTTP: the servers' tracing.

Needs the extra ``otel``; import it where somebody asked for traces. Ids are given rather than
drawn where others have been told them already.
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
    TraceFlags,
    set_span_in_context,
)

from waypost.shared.wire.trace_context import TraceContext

__all__ = ["Attributes", "Spans"]

CLOSE_TIMEOUT_MS = 3_000
EXPORT_TIMEOUT_S = 3.0

Attributes = Mapping[str, str | bool | int | float]


class _Ids(IdGenerator):
    """Gives the ids that others were told, and random ones to all other spans."""

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


class Spans:
    """Sends spans in batches, from a thread of its own. Make them in one thread."""

    def __init__(self, exporter: SpanExporter, *, service: str, version: str) -> None:
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # what is not traced does not come here
            resource=Resource.create({"service.name": service, "service.version": version}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(service, version)

    @classmethod
    def to(
        cls, endpoint: str, *, headers: Mapping[str, str] | None, service: str, version: str
    ) -> Self:
        """Return what sends to ``endpoint``.

        Args:
            headers: ``None``: those in ``OTEL_EXPORTER_OTLP_HEADERS``.
        """
        exporter = OTLPSpanExporter(
            endpoint=endpoint,
            headers=None if headers is None else dict(headers),
            timeout=EXPORT_TIMEOUT_S,
        )
        return cls(exporter, service=service, version=version)

    def begin(self, name: str, trace: TraceContext, *, at_ns: int, attributes: Attributes) -> Span:
        """Return the span of a request as a server sees it, by the ids of its ``trace``."""
        parent = Context()
        if trace.parent_span_id is not None:
            caller = SpanContext(
                int(trace.trace_id, 16),
                int(trace.parent_span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
            )
            parent = set_span_in_context(NonRecordingSpan(caller), parent)
        self._ids.next_trace = int(trace.trace_id, 16)
        return self.start(
            name,
            parent,
            at_ns=at_ns,
            span_id=trace.span_id,
            kind=SpanKind.SERVER,
            attributes=attributes,
        )

    def start(
        self,
        name: str,
        inside: Context,
        *,
        at_ns: int,
        span_id: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> Span:
        """Return a span that began then; end it with an instant as well."""
        self._ids.next_span = None if span_id is None else int(span_id, 16)
        return self._tracer.start_span(
            name, inside, kind=kind, attributes=attributes, start_time=at_ns
        )

    def close(self) -> None:
        """Send what waits, for a few seconds; call it from a thread."""
        with suppress(Exception):  # a collector that is away must not keep us from ending
            self._provider.force_flush(CLOSE_TIMEOUT_MS)
        self._provider.shutdown()
