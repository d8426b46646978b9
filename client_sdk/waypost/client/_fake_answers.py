"""What a validator would answer, by each API, for ``FakeValidator``: one text, whole or in words.

The shapes are those that the APIs' own SDKs read; ``tests/client`` holds them to it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

__all__ = ["error_of", "events_of", "whole_of"]

_OPENAIS = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_ANTHROPICS = {"input_tokens": 1, "output_tokens": 1}


def whole_of(endpoint: str, model: str, text: str, *, texts: int = 1) -> bytes:
    """Return an answer in one piece.

    Args:
        texts: how many an embedding is of.
    """
    if endpoint == "embeddings":
        return msgspec.json.encode(_embeddings(model, texts))
    return msgspec.json.encode(_WHOLE[endpoint](model, text))


def events_of(endpoint: str, model: str, text: str) -> bytes:
    """Return an answer as events, a word in each."""
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    return b"".join(_EVENTS[endpoint](model, text, words))


def error_of(endpoint: str | None, code: str, message: str) -> bytes:
    """Return an error in the words of the API."""
    error: dict[str, object]
    if endpoint == "messages":
        error = {"type": "api_error", "message": message, "details": {"error_code": code}}
        return msgspec.json.encode({"type": "error", "error": error})
    error = {"message": message, "type": "waypost_error", "code": code, "param": None}
    return msgspec.json.encode({"error": error})


# ── chat completions, completions, embeddings ──────────────────────────────────────────────────


def _chat(model: str, choice: dict[str, Any], **more: object) -> dict[str, Any]:
    head = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": model}
    return {**head, "choices": [{"index": 0, "finish_reason": None, **choice}], **more}


def _chat_whole(model: str, text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return _chat(model, {"message": message, "finish_reason": "stop"}, usage=_OPENAIS)


def _chat_events(model: str, _: str, words: list[str]) -> Iterator[bytes]:
    deltas: list[dict[str, str]] = [{"role": "assistant"}, *({"content": one} for one in words), {}]
    for delta in deltas:
        choice = {"delta": delta, "finish_reason": None if delta else "stop"}
        yield _data(_chat(model, choice, object="chat.completion.chunk"))
    yield b"data: [DONE]\n\n"


def _completion(model: str, text: str, reason: str | None, **more: object) -> dict[str, Any]:
    head = {"id": "cmpl-fake", "object": "text_completion", "created": 0, "model": model}
    choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
    return {**head, "choices": [choice], **more}


def _completion_whole(model: str, text: str) -> dict[str, Any]:
    return _completion(model, text, "stop", usage=_OPENAIS)


def _completion_events(model: str, _: str, words: list[str]) -> Iterator[bytes]:
    for word, reason in [*((one, None) for one in words), ("", "stop")]:
        yield _data(_completion(model, word, reason))
    yield b"data: [DONE]\n\n"


def _embeddings(model: str, texts: int) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": place, "embedding": [1.0, 0.0]} for place in range(texts)
    ]
    usage = {"prompt_tokens": texts, "total_tokens": texts}
    return {"object": "list", "model": model, "data": data, "usage": usage}


# ── messages ───────────────────────────────────────────────────────────────────────────────────


def _message(model: str, text: str) -> dict[str, Any]:
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": _ANTHROPICS,
    }


def _message_events(model: str, _: str, words: list[str]) -> Iterator[bytes]:
    begun = _message(model, "")
    begun.update(content=[], stop_reason=None)
    yield _event("message_start", message=begun)
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in words:
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    yield _event("content_block_stop", index=0)
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    yield _event("message_delta", delta=ended, usage=_ANTHROPICS)
    yield _event("message_stop")


# ── responses ──────────────────────────────────────────────────────────────────────────────────


def _response(model: str, text: str, **more: object) -> dict[str, Any]:
    return {
        "id": "resp_fake",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": model,
        "output": [_item(text)],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2,
        },
        **more,
    }


def _item(text: str, **more: object) -> dict[str, Any]:
    item = {"id": "msg_fake", "type": "message", "status": "completed", "role": "assistant"}
    return {**item, "content": [_part(text)], **more}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_events(model: str, text: str, words: list[str]) -> Iterator[bytes]:
    begun = _response(model, "", status="in_progress", output=[], usage=None)
    item = _item("", status="in_progress", content=[])
    here: dict[str, Any] = {"item_id": "msg_fake", "output_index": 0, "content_index": 0}
    happened: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": begun}),
        ("output_item.added", {"output_index": 0, "item": item}),
        ("content_part.added", {**here, "part": _part("")}),
        *(("output_text.delta", {**here, "delta": one, "logprobs": []}) for one in words),
        ("output_text.done", {**here, "text": text, "logprobs": []}),
        ("content_part.done", {**here, "part": _part(text)}),
        ("output_item.done", {"output_index": 0, "item": _item(text)}),
        ("completed", {"response": _response(model, text)}),
    ]
    for number, (kind, fields) in enumerate(happened):
        yield _event(f"response.{kind}", sequence_number=number, **fields)


# ── events ─────────────────────────────────────────────────────────────────────────────────────


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, **fields})


_WHOLE: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    "chat.completions": _chat_whole,
    "completions": _completion_whole,
    "messages": _message,
    "responses": _response,
}
_EVENTS: Mapping[str, Callable[[str, str, list[str]], Iterator[bytes]]] = {
    "chat.completions": _chat_events,
    "completions": _completion_events,
    "messages": _message_events,
    "responses": _response_events,
}
