"""Items that only their maker can read: encrypted reasoning, and thinking with its signature. Pure.

Who made one is not written in it, and nothing is kept here; see docs/providers.md for how the
maker is known, and what is done where it is not.

Seen: OpenAI's ``invalid_encrypted_content`` for another organisation's reasoning (codex#8145,
sub2api#2863) and Anthropic's ``Invalid `signature` in `thinking` block`` after a change of
provider (claude-code-hub#518, oh-my-pi#6379). Both may be left out: OpenAI's own message says so
of an item that it does not know (oh-my-pi#41), and Anthropic's of all thinking but that which led
to a tool's result while ``thinking`` is on (Antigravity-Manager#139). Read on 2026-11-28.
"""

from collections.abc import Callable
from typing import Any, cast

import msgspec

from waypost.validator.dialects.passthrough.body_fields import encode

__all__ = ["holds_state", "without_state"]

_MARKS = {
    "messages": (b'"signature"', b'"redacted_thinking"'),
    "responses": (b'"encrypted_content"',),
}

_decode = msgspec.json.Decoder(dict[str, Any]).decode

# Whose ids name what a provider may have kept of the answer that they were part of.
_WITH_IDS = frozenset({"custom_tool_call", "function_call", "message"})
_THINKING = frozenset({"redacted_thinking", "thinking"})


def holds_state(endpoint: str, body: bytes) -> bool:
    """Whether ``body`` may hold what only its maker can read."""
    return any(mark in body for mark in _MARKS.get(endpoint, ()))


def without_state(endpoint: str, body: bytes) -> bytes | None:
    """Return the request without such items; ``None`` where it holds none, or needs them."""
    strip = _STRIPS.get(endpoint)
    if strip is None or not holds_state(endpoint, body):
        return None
    try:
        fields = _decode(body)
    except (ValueError, RecursionError):
        return None
    return encode(fields) if strip(fields) else None


def _objects(value: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - any JSON
    """Return the objects of a list; none where it is not a list of objects alone."""
    values = cast("list[object]", value) if isinstance(value, list) else []
    if not all(isinstance(one, dict) for one in values):
        return []
    return cast("list[dict[str, Any]]", values)


def _strip_responses(fields: dict[str, Any]) -> bool:
    kept = [item for item in _objects(fields.get("input")) if item.get("type") != "reasoning"]
    # A compacted conversation is all that is left of it.
    if not kept or any("encrypted_content" in item for item in kept):
        return False
    for item in kept:
        if item.get("type", "message") in _WITH_IDS:
            item.pop("id", None)
    fields["input"] = kept
    return True


def _strip_messages(fields: dict[str, Any]) -> bool:
    kept: list[dict[str, Any]] = []
    for message in _objects(fields.get("messages")):
        blocks = _objects(message.get("content"))
        if message.get("role") == "assistant" and blocks:
            message["content"] = [one for one in blocks if one.get("type") not in _THINKING]
        if message.get("content") != []:
            kept.append(message)
    if not kept:
        return False
    fields["messages"] = kept
    if any(block.get("type") == "tool_result" for block in _objects(kept[-1].get("content"))):
        # Its call came of thinking, which must be there while thinking is on.
        _think_no_more(fields)
    return True


def _think_no_more(fields: dict[str, Any]) -> None:
    fields.pop("thinking", None)
    management = cast("dict[str, Any] | None", fields.get("context_management"))
    if not isinstance(management, dict):
        return
    edits = _objects(management.get("edits"))
    kept = [one for one in edits if not str(one.get("type", "")).startswith("clear_thinking")]
    if kept:
        management["edits"] = kept
    else:
        del fields["context_management"]


_STRIPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "messages": _strip_messages,
    "responses": _strip_responses,
}
