"""How often a provider may call its own tools: what is held for, and so what it is told."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from waypost.shared.contracts import Measured, Model
from waypost.shared.decision.costs import calls_of
from waypost.shared.requests.parts import hosted_tool
from waypost.validator.dialects.passthrough.body_fields import decode_fields, encode

__all__ = ["with_calls"]

# Anthropic's tools that take ``max_uses``: its SDK 2.12, 2026-11. Of others, as of a server by MCP,
# the number of calls is the policy's word alone.
_HAVE_MAX_USES = frozenset({"advisor", "web_fetch", "web_search"})

_decode_tool = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_tools = msgspec.json.Decoder(list[Raw]).decode


def with_calls(body: bytes, model: Model, measured: Measured) -> bytes:
    """Return ``body`` with the limit on calls that what is held pays for."""
    calls = {tool.name: count for tool, count in calls_of(model, measured)}
    if not calls:
        return body
    if measured.endpoint == "responses":
        fields: dict[str, Any] = decode_fields(body)
        fields["max_tool_calls"] = sum(calls.values())
        return encode(fields)
    return _with_max_uses(body, calls) if measured.endpoint == "messages" else body


def _with_max_uses(body: bytes, calls: Mapping[str, int]) -> bytes:
    fields: dict[str, Any] = decode_fields(body)
    fields["tools"] = [_limited(tool, calls) for tool in _decode_tools(fields["tools"])]
    return encode(fields)


def _limited(tool: Raw, calls: Mapping[str, int]) -> object:
    hosted = hosted_tool(tool, "tools")
    if hosted is None or hosted.name not in _HAVE_MAX_USES or hosted.name not in calls:
        return tool
    most = calls[hosted.name]
    told = most if hosted.calls is None else min(most, hosted.calls)
    return {**_decode_tool(tool), "max_uses": told}
