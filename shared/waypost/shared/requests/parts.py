"""What a request asks for that its own length does not bound. Pure.

The rule is an allow-list. Parts, items and tools that are known are read by ``measure`` and
``apis``; one that is not known is looked through here, field by field, and passes if all of it is
in the request. What refers to something elsewhere, a URL, a file, an id of what a provider keeps,
may cost anything, and so may sound and film, of which a byte can be an hour.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import cast

import msgspec
from msgspec import Raw, Struct

from waypost.shared.contracts import Extra
from waypost.shared.decision.demands import ABSENT, Demanding
from waypost.shared.pictures import UNKNOWN, Picture

__all__ = [
    "HISTORY",
    "Found",
    "Orders",
    "SizeOf",
    "hosted_definition",
    "hosted_tool",
    "in_words",
    "look_through",
    "ordered",
    "picture_of",
]

# Reads a picture's pixels from the beginning of its data; ``None``: nobody can.
SizeOf = Callable[[str], Picture]

MAX_BUDGET = 10_000_000
HEADER_CHARS = 131_072  # a header may come after a preview and colour profiles

# What a provider or an SDK wrote of its own tools, sent back as history: addresses and ids in it
# are words, and nothing is fetched. Pictures and documents in it are read once more.
HISTORY = frozenset(
    {
        # OpenAI's SDK 3.54 (ResponseInputItemParam), 2026-11.
        "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction",
        "computer_call", "custom_tool_call", "file_search_call", "function_call",
        "local_shell_call", "local_shell_call_output", "mcp_approval_request",
        "mcp_approval_response", "mcp_call", "mcp_list_tools", "output_text", "reasoning",
        "shell_call", "shell_call_output", "tool_search_call", "tool_search_output",
        "web_search_call", "additional_tools", "compaction_trigger", "program", "program_output",
        # Anthropic's SDK 2.12 (BetaContentBlockParam), 2026-11.
        "advisor_redacted_result", "advisor_result", "advisor_tool_result",
        "bash_code_execution_output", "bash_code_execution_result",
        "bash_code_execution_tool_result", "browser_state", "code_execution_output",
        "code_execution_result",
        "code_execution_tool_result", "encrypted_code_execution_result", "fallback",
        "mcp_tool_result", "mcp_tool_use", "mid_conv_system", "redacted_thinking",
        "search_result", "server_tool_use", "text_editor_code_execution_tool_result", "thinking",
        "tool_addition", "tool_reference", "tool_search_tool_result", "tool_use",
        "web_fetch_result",
        "web_fetch_tool_result", "web_search_result", "web_search_tool_result",
    }
)  # fmt: skip

# Fields that look like references, and are names within the conversation.
_PLAIN_FIELDS = frozenset(
    {
        "id", "call_id", "tool_call_id", "tool_use_id", "tool_id", "item_id", "approval_request_id",
        "response_id", "message_id", "parent_id", "encrypted_content", "signature", "server_id",
    }
)  # fmt: skip
_REFERENCE = re.compile(r"(?:^|_)(?:ur[il]s?|ids?|hrefs?)$", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_DATA = re.compile(r"data:([a-z0-9.+-]*/?[a-z0-9.+-]*)[;,]", re.IGNORECASE)
_MEDIA = re.compile(r"[a-z]+/[a-z0-9.+*-]+\Z", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}\Z")
_VERSION = re.compile(r"[_-]?(?:preview)?(?:[_-]?\d{4}.*)?\Z")

_decode_any = msgspec.json.Decoder().decode


def in_words(name: object, otherwise: str) -> str:
    """Return ``name`` if it can be a type's: it is told and kept, and may be prompt text."""
    return name if isinstance(name, str) and _WORD.match(name) else otherwise


class Found(Struct):
    """What is in a part that nobody knows.

    Attributes:
        documents: their data.
        tools: definitions of tools, with their paths.
        elsewhere: paths of what is not in the request, or not bounded by its length.
    """

    pictures: list[str] = []
    documents: list[str] = []
    tools: list[tuple[str, Mapping[str, object]]] = []
    elsewhere: list[str] = []


def look_through(part: object, *, is_history: bool) -> Found:
    """Return what is in a part, whatever its type.

    Args:
        is_history: addresses in it are words.
    """
    found = Found(tools=[*_tools_in(part, "")])
    for path, field, value, holder in _texts(part, ""):
        media = _media_of(value, holder)
        if media is None:
            if not is_history and _is_reference(field, value, holder):
                found.elsewhere.append(path)
        elif media.startswith("image/"):
            found.pictures.append(value)
        elif media == "application/pdf":
            found.documents.append(value)
        elif media.startswith(("audio/", "video/")):
            found.elsewhere.append(path)
    return found


def _tools_in(value: object, path: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Give the definitions of tools in ``value``, as OpenAI and Anthropic have them in messages.

    ``additional_tools`` and ``tool_addition``: their SDKs 3.54 and 2.12, 2026-11.
    """
    if isinstance(value, list):
        for place, one in enumerate(cast("list[object]", value)):
            yield from _tools_in(one, f"{path}[{place}]")
    elif isinstance(value, dict):
        for name, one in cast("dict[str, object]", value).items():
            below = f"{path}.{in_words(name, '*')}"
            if name == "definition" and isinstance(one, dict):
                yield below, cast("dict[str, object]", one)
            elif name == "tools" and isinstance(one, list):
                for place, each in enumerate(cast("list[object]", one)):
                    if isinstance(each, dict):
                        yield f"{below}[{place}]", cast("dict[str, object]", each)
            else:
                yield from _tools_in(one, below)


_Text = tuple[str, str, str, Mapping[str, object]]


def _texts(
    value: object, path: str, field: str = "", holder: Mapping[str, object] = {}
) -> Iterator[_Text]:
    """Give each text in ``value`` with its path, its field, and the object that has it."""
    if isinstance(value, str):
        yield path, field, value, holder
    elif isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        for name, one in fields.items():
            yield from _texts(one, f"{path}.{in_words(name, '*')}", name, fields)
    elif isinstance(value, list):
        for place, one in enumerate(cast("list[object]", value)):
            yield from _texts(one, f"{path}[{place}]", field, holder)


def _media_of(text: str, holder: Mapping[str, object]) -> str | None:
    """Return the media type of data that is in the request; ``None`` if it is no such data."""
    told = _DATA.match(text[:200])
    if told is not None:
        return told[1].lower()
    for name in ("media_type", "mime_type", "mimeType", "mediaType"):
        media = holder.get(name)
        if isinstance(media, str) and text is not media and holder.get("data") is text:
            return media.lower()
    return None


def _is_reference(field: str, text: str, holder: Mapping[str, object]) -> bool:
    if field in _PLAIN_FIELDS or not text:
        return False
    if _REFERENCE.search(_CAMEL.sub("_", field)):
        return True
    # Of what is named by its place alone: {"video": "https://…"}, {"file": "gs://…"}.
    is_address = re.match(r"[a-z][a-z0-9+.-]{1,15}://\S+\Z", text[:2_000], re.IGNORECASE)
    return is_address is not None and field not in ("text", "content", "title", "source", "name")


def picture_of(data: str, size_of: SizeOf | None, *, detail: object = None) -> Picture:
    """Return the picture in a ``data:`` URL or in plain base64."""
    if detail == "low":
        return Picture(is_low=True) if size_of is None else _low(_sized(data, size_of))
    return UNKNOWN if size_of is None else _sized(data, size_of)


def _low(picture: Picture) -> Picture:
    return Picture(picture.width, picture.height, is_low=True)


def _sized(data: str, size_of: SizeOf) -> Picture:
    start = data.find(",", 0, 200) + 1 if data.startswith("data:") else 0
    return size_of(data[start : start + HEADER_CHARS])


# ── tools that a provider runs ─────────────────────────────────────────────────────────────────


class _Tool(Struct):
    type: str | None = None
    name: str | None = None
    function: Raw = ABSENT
    max_uses: int | None = None
    environment: Raw = ABSENT
    tools: list[Raw] = []


_decode_tool = msgspec.json.Decoder(_Tool).decode
_encode = msgspec.json.Encoder().encode

# Whose results the caller brings, or that only look at what is in the request.
_CALLERS_TOOLS = frozenset(
    {
        "", "apply_patch", "bash", "browser_toolset", "computer", "computer_toolset",
        "computer_use", "custom", "function", "local_shell", "memory", "namespace", "shell",
        "text_editor", "tool_search", "tool_search_tool_bm25",
        "tool_search_tool_regex",
    }
)  # fmt: skip


def hosted_tool(raw: Raw, at: str) -> Extra | None:
    """Return the tool if its provider runs it: its calls cost what its length does not say."""
    try:
        tool = _decode_tool(raw)
    except msgspec.DecodeError:
        return Extra(kind="tool", name="tool", at=at)
    if tool.type == "function" or (tool.type is None and tool.name is not None):
        return None  # as most are
    if tool.type is None:
        return None if tool.function is not ABSENT else _unnamed(_decode_any(raw), at)
    name = _VERSION.sub("", tool.type)
    if name == "shell" and not _is_local(tool.environment):
        return Extra(kind="tool", name="shell", at=at)
    if name in _CALLERS_TOOLS:
        inner = (hosted_tool(one, f"{at}.tools[{n}]") for n, one in enumerate(tool.tools))
        return next((found for found in inner if found is not None), None)
    calls = tool.max_uses if tool.max_uses is not None and tool.max_uses >= 0 else None
    name = "mcp" if name == "mcp_toolset" else in_words(name, "tool")
    return Extra(kind="tool", name=name, at=at, calls=calls)


def hosted_definition(tool: Mapping[str, object], at: str) -> Extra | None:
    """Return the same of a tool that is defined inside a message."""
    return hosted_tool(Raw(_encode(tool)), at)


def _unnamed(fields: object, at: str) -> Extra:
    """Return a tool that is called by its field, as Gemini's ``{"googleSearch": {}}``."""
    first = next(iter(cast("dict[str, object]", fields)), None) if fields else None
    return Extra(kind="tool", name=in_words(first, "tool"), at=at)


def _is_local(environment: Raw) -> bool:
    value = None if environment is ABSENT else _decode_any(environment)
    kind = cast("dict[str, object]", value).get("type") if isinstance(value, dict) else value
    return kind in (None, "local")


# Fields of a body that order a tool: what they are called at OpenAI, xAI, OpenRouter, Alibaba and
# Anthropic (their API references, 2026-11).
_ORDERS = {
    "enable_search": "web_search",
    "mcp_servers": "mcp",
    "plugins": "plugins",
    "search_parameters": "live_search",
    "web_search_options": "web_search",
}
_EMPTY = (b"", b"null", b"false", b"[]")
# What Google's own words for OpenAI's API order: github.com/googleapis, "OpenAI compatibility",
# 2026-11. A cached prompt is not in the request at all.
_GOOGLE = ("cached_content", "cachedContent", "google_search", "googleSearch", "tools", "plugins")

# What asks for the usual price. OpenAI's and Anthropic's API references, 2026-11.
_USUAL = {
    "service_tier": ("auto", "default", "on_demand", "standard", "standard_only"),
    "speed": ("auto", "default", "normal", "standard"),
    "inference_geo": ("global", "not_available"),
}

# Budgets of thinking, by field: Anthropic's and its followers', OpenRouter's, Alibaba's and
# Google's (their API references, 2026-11; claude-code#8756, antigravity2api#149).
_BUDGETS = frozenset({"budget_tokens", "max_tokens", "thinking_budget", "thinkingBudget"})

_ordering = attrgetter(*_USUAL, *_ORDERS, "extra_body", "thinking", "reasoning", "thinking_budget")
_NOTHING_ORDERED = (ABSENT,) * (len(_USUAL) + len(_ORDERS) + 4)


class Orders(Struct, frozen=True):
    """What the fields of a body order beside its prompt and answer."""

    extras: tuple[Extra, ...] = ()
    reasoning_tokens: int = 0


NOTHING = Orders()


def ordered(request: Demanding) -> Orders:
    """Return what ``request`` orders: most order nothing."""
    if _ordering(request) == _NOTHING_ORDERED:
        return NOTHING
    extras = (*_prices(request), *_tools(request), *_google(request))
    budgets = (request.thinking, request.reasoning, request.thinking_budget, request.extra_body)
    return Orders(extras, max(_budget(_value(raw)) for raw in budgets))


def _value(raw: Raw) -> object:
    # The body was JSON as a whole, and so is each part.
    return None if raw is ABSENT else _decode_any(raw)


def _prices(request: Demanding) -> Iterator[Extra]:
    for field, usual in _USUAL.items():
        value = _value(getattr(request, field))
        if value is not None and value not in usual:
            yield Extra(kind="price", name=f"{field}={in_words(value, 'unknown')}", at=field)


def _tools(request: Demanding) -> Iterator[Extra]:
    for field, name in _ORDERS.items():
        if bytes(getattr(request, field)) not in _EMPTY:
            yield Extra(kind="tool", name=name, at=field)


def _google(request: Demanding) -> Iterator[Extra]:
    fields = _object(_value(request.extra_body))
    for holder in (fields, _object(fields.get("google"))):
        for name in _GOOGLE:
            if holder.get(name):
                yield Extra(kind="tool", name=name, at=f"extra_body.{name}")


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _budget(value: object, *, may_be_plain: bool = True) -> int:
    """Return the largest budget in ``value``, at any depth."""
    if isinstance(value, dict):
        return max(
            (
                _budget(one, may_be_plain=name in _BUDGETS)
                for name, one in cast("dict[str, object]", value).items()
            ),
            default=0,
        )
    is_count = may_be_plain and isinstance(value, int) and not isinstance(value, bool)
    return min(value, MAX_BUDGET) if is_count and isinstance(value, int) and value > 0 else 0
