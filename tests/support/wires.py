"""Providers on real sockets that speak Anthropic's and Gemini's wire formats, as published.

What they emit is built as the SDKs' own types and dumped as JSON, so that a field that the format
does not have cannot be emitted by mistake; what they are sent is kept for the test to look at.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anthropic.types import Message, RawMessageStreamEvent
from google.genai.types import GenerateContentResponse
from pydantic import TypeAdapter

from support.upstream import Behaviour, Exchange


@dataclass(frozen=True)
class Call:
    """A tool call that the simulated model makes."""

    name: str = "weather"
    arguments: str = '{"city":"Oslo"}'
    id: str = "call_1"


Stop = Literal["end", "length", "stop_sequence", "tools", "filter"]

# ── Anthropic ──────────────────────────────────────────────────────────────────────────────────

MESSAGE_USAGE = {
    "input_tokens": 12,
    "output_tokens": 7,
    "cache_read_input_tokens": 5,
    "cache_creation_input_tokens": 3,
}
MESSAGE_STOPS: dict[Stop, str] = {
    "end": "end_turn",
    "length": "max_tokens",
    "stop_sequence": "stop_sequence",
    "tools": "tool_use",
    "filter": "refusal",
}
_EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def message(
    text: str | None = "Four.",
    *calls: Call,
    stop: Stop | None = None,
    thinking: str | None = None,
    stop_sequence: str | None = None,
) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if thinking is not None:
        content.append({"type": "thinking", "thinking": thinking, "signature": "c2ln"})
    if text is not None:
        content.append({"type": "text", "text": text})
    content += [
        {"type": "tool_use", "id": c.id, "name": c.name, "input": json.loads(c.arguments)}
        for c in calls
    ]
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-1",
        "content": content,
        "stop_reason": MESSAGE_STOPS[stop or ("tools" if calls else "end")],
        "stop_sequence": stop_sequence,
        "usage": MESSAGE_USAGE,
    }
    return Message.model_validate(whole).model_dump(mode="json", exclude_unset=True)


def message_events(whole: dict[str, Any], *, pieces: int = 3) -> list[bytes]:
    """A message as the events that Anthropic streams it in."""
    head = {
        **whole,
        "content": [],
        "stop_reason": None,
        "usage": {**MESSAGE_USAGE, "output_tokens": 1},
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": head}]
    for index, block in enumerate(whole["content"]):
        kind = block["type"]
        start = {
            "text": {"type": "text", "text": ""},
            "thinking": {"type": "thinking", "thinking": "", "signature": ""},
            "tool_use": {**block, "input": {}},
        }[kind]
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        field, delta_type, text = {
            "text": ("text", "text_delta", block.get("text")),
            "thinking": ("thinking", "thinking_delta", block.get("thinking")),
            "tool_use": ("partial_json", "input_json_delta", json.dumps(block.get("input"))),
        }[kind]
        for piece in _cut(text or "", pieces):
            delta = {"type": delta_type, field: piece}
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": 7}})
    events.append({"type": "message_stop"})
    written = [named_event(_dumped(event)) for event in events]
    return [*written[:1], named_event({"type": "ping"}), *written[1:]]


def _dumped(event: dict[str, Any]) -> dict[str, Any]:
    dumped: dict[str, Any] = _EVENT.dump_python(
        _EVENT.validate_python(event), mode="json", exclude_unset=True
    )
    return dumped


def named_event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _cut(text: str, pieces: int) -> list[str]:
    size = max(1, -(-len(text) // pieces))
    return [text[at : at + size] for at in range(0, len(text), size)]


def messaging(whole: dict[str, Any] | None = None) -> Behaviour:
    """Answers as Anthropic does."""
    answer = whole or message()

    async def behave(exchange: Exchange) -> None:
        assert exchange.seen.headers["x-api-key"] == "sk-acme-secret"
        assert exchange.seen.headers["anthropic-version"]
        assert isinstance(exchange.seen.json["max_tokens"], int)
        if exchange.seen.json.get("stream"):
            await streaming(message_events(answer))(exchange)
        else:
            await exchange.respond(200, json.dumps(answer).encode())

    return behave


def streaming(events: Sequence[bytes], *, pause_s: float = 0.0) -> Behaviour:
    """Streams these events, each in a chunk of its own, some time after the one before."""

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for event in events:
            await exchange.chunk(event)
            await asyncio.sleep(pause_s)
        await exchange.end_stream()

    return behave


def message_error(kind: str, text: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": text}}).encode()


# ── Gemini ─────────────────────────────────────────────────────────────────────────────────────

GEMINI_USAGE = {
    "promptTokenCount": 20,
    "candidatesTokenCount": 4,
    "thoughtsTokenCount": 3,
    "cachedContentTokenCount": 5,
    "totalTokenCount": 27,
}
GEMINI_STOPS: dict[Stop, str] = {
    "end": "STOP",
    "length": "MAX_TOKENS",
    "stop_sequence": "STOP",
    "tools": "STOP",
    "filter": "SAFETY",
}


def generated(
    text: str | None = "Four.",
    *calls: Call,
    stop: Stop | None = "end",
    thinking: str | None = None,
    usage: dict[str, Any] | None = GEMINI_USAGE,
) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if thinking is not None:
        parts.append({"text": thinking, "thought": True})
    if text is not None:
        parts.append({"text": text})
    parts += [
        {
            "functionCall": {"name": c.name, "args": json.loads(c.arguments)},
            "thoughtSignature": "c2ln",
        }
        for c in calls
    ]
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if stop is not None:
        candidate["finishReason"] = GEMINI_STOPS[stop]
    whole: dict[str, Any] = {
        "candidates": [candidate],
        "modelVersion": "gemini-1",
        "responseId": "r1",
    }
    if usage is not None:
        whole["usageMetadata"] = usage
    GenerateContentResponse.model_validate(whole)
    return whole


def generating(text: str = "Four.", *calls: Call, stop: Stop = "end") -> Behaviour:
    """Answers as Gemini does."""

    async def behave(exchange: Exchange) -> None:
        assert exchange.seen.headers["x-goog-api-key"] == "sk-acme-secret"
        if "streamGenerateContent?alt=sse" not in exchange.seen.path:
            assert exchange.seen.path.endswith(":generateContent")
            await exchange.respond(200, json.dumps(generated(text, *calls, stop=stop)).encode())
            return
        chunks = [generated(piece, stop=None, usage=None) for piece in _cut(text, 3)]
        chunks += [generated(None, call, stop=None, usage=None) for call in calls]
        chunks.append(generated("", stop=stop))
        await streaming([b"data: " + json.dumps(c).encode() + b"\r\n\r\n" for c in chunks])(
            exchange
        )

    return behave


def gemini_error(status: str, text: str, *, code: int = 400) -> bytes:
    return json.dumps({"error": {"code": code, "message": text, "status": status}}).encode()
