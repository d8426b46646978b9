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
from typing import Any

import msgspec

from waypost.validator.apis.fields import encode

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


def _strip_responses(fields: dict[str, Any]) -> bool:
    items = fields.get("input")
    if not isinstance(items, list):
        return False
    kept = [item for item in items if item.get("type") != "reasoning"]
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
    for message in fields.get("messages") or ():
        content = message.get("content")
        if message.get("role") == "assistant" and isinstance(content, list):
            content = [block for block in content if block.get("type") not in _THINKING]
            if not content:
                continue
            message["content"] = content
        kept.append(message)
    if not kept:
        return False
    fields["messages"] = kept
    if _awaits_result(kept):
        _think_no_more(fields)
    return True


def _awaits_result(messages: list[dict[str, Any]]) -> bool:
    """Whether the conversation ends with a tool's result, whose call came of thinking."""
    content = messages[-1].get("content")
    return isinstance(content, list) and any(
        block.get("type") == "tool_result" for block in content
    )


def _think_no_more(fields: dict[str, Any]) -> None:
    fields.pop("thinking", None)
    management = fields.get("context_management")
    if isinstance(management, dict) and isinstance(management.get("edits"), list):
        management["edits"] = [
            edit
            for edit in management["edits"]
            if not str(edit.get("type", "")).startswith("clear_thinking")
        ]
        if not management["edits"]:
            del fields["context_management"]


_STRIPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "messages": _strip_messages,
    "responses": _strip_responses,
}
