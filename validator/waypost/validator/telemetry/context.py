"""Which trace a request belongs to: W3C Trace Context, read and written. Pure."""

import re

from msgspec import Struct

__all__ = ["TraceContext", "begin", "traceparent"]

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
    header: bytes | None, *, share: float, luck: float, randomness: int
) -> TraceContext | None:
    """Return the trace to tell of; ``None`` if this request is not traced.

    A caller that says so itself decides; a header that is not one counts as none.

    Args:
        share: of the requests whose callers say nothing that are traced.
        luck: 0 to 1.
        randomness: 192 bits, for the ids.
    """
    match = None if header is None else _TRACEPARENT.fullmatch(header)
    span_id = f"{(randomness & 0xFFFF_FFFF_FFFF_FFFF) or 1:016x}"
    if match is not None:
        trace_id, parent = match[1].decode(), match[2].decode()
        if trace_id != _NO_TRACE and parent != _NO_SPAN:
            is_sampled = int(match[3], 16) & _SAMPLED
            return TraceContext(trace_id, span_id, parent) if is_sampled else None
    if luck >= share:
        return None
    return TraceContext(f"{(randomness >> 64) or 1:032x}", span_id, None)


def traceparent(trace: TraceContext, span_id: str) -> bytes:
    """Return the header that makes what follows a child of ``span_id``."""
    return f"00-{trace.trace_id}-{span_id}-01".encode()
