"""Which trace a request belongs to: W3C Trace Context, read and written.

OpenTelemetry is never imported here: where the app does not, it has no span to continue.
"""

import re
import sys
from typing import Any

from msgspec import Struct

__all__ = ["TraceContext", "begin", "current_traceparent", "traceparent"]

# W3C Trace Context §3.2, version 00.
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class TraceContext(Struct, frozen=True):
    """A request that is traced. All three are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    parent_span_id: str | None


def begin(
    header: bytes | None, *, share: float, rng: float, randomness: int
) -> TraceContext | None:
    """Return the trace to tell of; ``None`` if this request is not traced.

    A caller that says so itself decides; a header that is not one counts as none.

    Args:
        share: of the requests whose callers say nothing that are traced.
        rng: 0 to 1.
        randomness: 192 bits, for the ids.
    """
    match = None if header is None else _TRACEPARENT.fullmatch(header)
    span_id = f"{(randomness & 0xFFFF_FFFF_FFFF_FFFF) or 1:016x}"
    if match is not None:
        trace_id, parent = match[1].decode(), match[2].decode()
        if trace_id != _NO_TRACE and parent != _NO_SPAN:
            is_sampled = int(match[3], 16) & _SAMPLED
            return TraceContext(trace_id, span_id, parent) if is_sampled else None
    if rng >= share:
        return None
    return TraceContext(f"{(randomness >> 64) or 1:032x}", span_id, None)


def traceparent(trace: TraceContext, span_id: str) -> bytes:
    """Return the header that makes what follows a child of ``span_id``."""
    return f"00-{trace.trace_id}-{span_id}-01".encode()


def current_traceparent() -> str | None:
    """Return the header of the app's current span; ``None`` where the app does not trace."""
    otel: Any = sys.modules.get("opentelemetry.trace")
    if otel is None:
        return None
    span = otel.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
