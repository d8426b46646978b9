"""``usage.cost``: what an answer costs, put into the usage that it tells. Pure.

The rules:

- The field goes into a usage that is there. None is made for it: clients that know a usage want
  its counts.
- All other bytes stay as they are. The usage alone is written anew, and only where the provider
  has a ``cost`` of its own in it, which is not what is charged here.
- What cannot be read is passed on as it is.

OpenRouter has the field at the end of ``usage``, a number in credits, of which one is a US dollar;
in streams in the last event (its "Usage Accounting", read on 2026-11-28; recorded in litellm#11626,
2025-06: ``"cost": 7.1e-05``). LiteLLM has it in Anthropic's and the Responses API's usage as well
(litellm#39069, 2026).
"""

from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from waypost.shared.money import NUSD_PER_USD
from waypost.validator.dialects.passthrough.body_fields import ABSENT, is_present
from waypost.validator.dialects.passthrough.responses import ENDS

__all__ = ["with_cost", "with_cost_in_events"]

_USAGE = b'"usage"'


class _Answer(Struct):
    usage: Raw = ABSENT


class _Event(Struct):
    type: str = ""
    usage: Raw = ABSENT
    response: Raw = ABSENT


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def with_cost(body: bytes, cost_nusd: int) -> bytes:
    """Return an answer in one piece with ``usage.cost``; as it was where it tells no usage."""
    try:
        return _spliced(body, cost_nusd) or body
    except (ValueError, RecursionError):
        return body


def with_cost_in_events(endpoint: str, events: bytes, cost_nusd: int) -> bytes:
    """Return whole events with ``usage.cost`` in the last of them that tells the final usage."""
    for start, end in _lines_with_usage(events):
        try:
            payload = _with_cost(endpoint, events[start:end], cost_nusd)
        except (ValueError, RecursionError):
            continue
        if payload is not None:
            return events[:start] + payload + events[end:]
    return events


def _lines_with_usage(events: bytes) -> Iterator[tuple[int, int]]:
    """Give start and end of each line's data in which there is a usage, the last first."""
    place = len(events)
    while (place := events.rfind(_USAGE, 0, place)) >= 0:
        line = max(events.rfind(b"\n", 0, place), events.rfind(b"\r", 0, place)) + 1
        ends = [at for at in (events.find(b"\n", place), events.find(b"\r", place)) if at >= 0]
        if events.startswith(b"data:", line):
            yield line + len(b"data:"), min(ends, default=len(events))
        place = line


def _with_cost(endpoint: str, payload: bytes, cost_nusd: int) -> bytes | None:
    if endpoint not in ("messages", "responses"):
        return _spliced(payload, cost_nusd)
    event = _decode_event(payload)
    if endpoint == "messages":
        return _spliced(payload, cost_nusd) if event.type == "message_delta" else None
    if event.type not in ENDS or not is_present(event.response):
        return None
    response = bytes(event.response)
    told = _spliced(response, cost_nusd)
    return None if told is None else payload.replace(response, told, 1)


def _spliced(body: bytes, cost_nusd: int) -> bytes | None:
    """Return ``body`` with the cost in the usage at its top; ``None`` if there is none."""
    found = _decode_answer(body).usage
    if not is_present(found):
        return None
    usage = bytes(found)
    told = _usage_with_cost(usage, cost_nusd)
    place = len(body)
    # The same bytes may stand elsewhere, as in a choice. Reading it again says which they were.
    while (place := body.rfind(usage, 0, place)) >= 0:
        spliced = body[:place] + told + body[place + len(usage) :]
        if bytes(_decode_answer(spliced).usage) == told:
            return spliced
        place += len(usage) - 1
    return None


def _usage_with_cost(usage: bytes, cost_nusd: int) -> bytes:
    fields = _decode_fields(usage)
    cost = _dollars(cost_nusd)
    if "cost" in fields or not fields:
        return _encode({**fields, "cost": Raw(cost)})
    return usage[: usage.rindex(b"}")].rstrip() + b',"cost":' + cost + b"}"


def _dollars(nusd: int) -> bytes:
    """Return an amount as a JSON number, exact and without an exponent."""
    whole, rest = divmod(nusd, NUSD_PER_USD)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".").encode()
