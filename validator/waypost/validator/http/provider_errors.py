"""What a provider's error says, whatever envelope it comes in. Pure.

The rule: a text that a provider wrote is found, bounded, and never more than that: what an error
repeats of the request, as FastAPI's ``input``, is left out.

Seen: ``{"error": {...}}`` (OpenAI, Anthropic, Gemini); ``{"error": "text"}`` beside a code (xAI:
continue#10778, codex#1352); ``{"object": "error", "message": ...}`` (vLLM#3485, LongBench#102); a
list of one error (gemini-cli#6678, OpenHands#7915); FastAPI's ``{"detail": "text"}`` and
``{"detail": [{"loc", "msg", "input"}]}``; ``{"message": ...}`` (supersonic#1572); ``{"errors":
[...]}`` (grokit#3); an error of another provider inside (claude-code-hub#518), also as a string
(gemini-cli#24641, Antigravity-Manager#498). Read on 2026-11-28.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import Struct

__all__ = ["Complaint", "read_complaint", "says_error"]

READ_BYTES = 65_536
MOST_CHARS = 2_000
DEEPEST = 6  # errors inside errors; gateways in front of gateways
MOST_OF_A_LIST = 5

_TEXTS = ("message", "detail", "details", "msg", "error_message", "error_description",
          "description", "title", "Message", "raw")  # fmt: skip
_CODES = ("code", "type", "status", "reason", "error_code", "errorCode", "error_type")
_STATUSES = ("status_code", "http_status", "code", "status")
_INNER = ("error", "errors", "innererror", "metadata", "upstream_error", "details", "detail",
          "message", "raw", "response")  # fmt: skip

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")
# Bounded in each part: a page may be of anybody, and as long as it likes.
_TITLE = re.compile(r"<title[^<>]{0,200}>([^<]{1,300})</title", re.IGNORECASE)


class Complaint(Struct, frozen=True):
    """An error in a provider's words.

    Attributes:
        message: never empty, at most 2,000 characters.
        codes: whatever it has of codes, types and reasons, in small letters.
        code: the most particular of them, as it was written; ``None`` if it has none.
        param: the field of the request that it is about.
        status: the status of HTTP that it says it has, if it says so.
    """

    message: str
    codes: frozenset[str] = frozenset()
    code: str | None = None
    param: str | None = None
    status: int | None = None


def read_complaint(body: bytes) -> Complaint | None:
    """Return what the error ``body`` says; ``None`` if it says nothing."""
    head = body[:READ_BYTES]
    try:
        told: Any = msgspec.json.decode(head)
    except (ValueError, RecursionError):
        return _plain(head)
    levels = list(_levels(told))
    message = told if isinstance(told, str) else _message_of(levels)
    codes = [code for level in levels for code in _codes_of(level.fields)]
    message = _clean(message or next(reversed(codes), ""))
    if not message:
        return None
    return Complaint(
        message=message,
        codes=frozenset(code.lower() for code in codes),
        code=next((code for one in reversed(levels) for code in _own_code(one.fields)), None),
        param=next((param for one in reversed(levels) for param in _param(one.fields)), None),
        status=next((status for one in levels for status in _status(one.fields)), None),
    )


def says_error(told: object) -> bool:
    """Whether what was decoded says of itself that it is an error; for what is no answer."""
    if isinstance(told, list):
        several = cast("list[object]", told)
        return bool(several) and says_error(several[0])
    if not isinstance(told, dict):
        return False
    fields = cast("dict[str, object]", told)
    return any(fields.get(name) for name in ("error", "errors", "detail")) or any(
        fields.get(name) == "error" for name in ("type", "object")
    )


class _Level(NamedTuple):
    """An object that may hold an error; ``is_aside`` if it only explains the one around it."""

    fields: dict[str, object]
    is_aside: bool


def _message_of(levels: list[_Level]) -> str:
    """Return the most particular text; what fields are wrong, all of them."""
    wrong = [text for level in levels for text in _wrong_field(level.fields)]
    if wrong:
        return "; ".join(wrong)
    for is_aside in (False, True):
        texts = [t for one in levels if one.is_aside is is_aside for t in _texts_of(one.fields)]
        # The innermost; what is around it is a gateway's "bad request".
        if texts:
            return texts[-1]
    return ""


def _plain(head: bytes) -> Complaint | None:
    text = head.decode("utf-8", "replace").strip()
    if text.startswith("<"):
        title = _TITLE.search(text)
        text = "" if title is None else title[1]
    text = _clean(text)
    return Complaint(text) if text else None


def _clean(text: str) -> str:
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 2] + " …"


def _levels(told: Any, depth: int = 0, *, is_aside: bool = False) -> Iterator[_Level]:  # noqa: ANN401
    """Give the objects that errors are in, the outermost first."""
    if depth > DEEPEST:
        return
    if isinstance(told, list):
        several = cast("list[object]", told)
        for one in several[:MOST_OF_A_LIST]:
            yield from _levels(one, depth + 1, is_aside=is_aside)
    elif isinstance(told, str) and told.lstrip()[:1] in ("{", "["):
        try:
            yield from _levels(msgspec.json.decode(told), depth + 1)
        except (ValueError, RecursionError):
            return
    elif isinstance(told, dict):
        fields = cast("dict[str, object]", told)
        yield _Level(fields, is_aside)
        for name in _INNER:
            if name in fields:
                aside = is_aside or name in ("details", "metadata")
                yield from _levels(fields[name], depth + 1, is_aside=aside)


def _wrong_field(fields: dict[str, object]) -> Iterator[str]:
    """Give what FastAPI says of one field; never its ``input``."""
    loc, msg = fields.get("loc"), fields.get("msg")
    if isinstance(loc, list) and isinstance(msg, str):
        parts = cast("list[object]", loc)
        yield f"{'.'.join(str(part) for part in parts[:10])}: {msg}"


def _texts_of(fields: dict[str, object]) -> Iterator[str]:
    """Give the text of one object, if it has one that a person can read."""
    for name in (*_TEXTS, "error"):
        text = fields.get(name)
        if isinstance(text, str) and _is_readable(text):
            yield text
            return
    several = fields.get("errors")
    if isinstance(several, list):
        listed = cast("list[object]", several)
        readable = [str(text) for text in listed[:MOST_OF_A_LIST] if _is_readable(text)]
        if readable:
            yield "; ".join(readable)


def _is_readable(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip()) and text.lstrip()[0] not in "{["


def _codes_of(level: dict[str, Any]) -> Iterator[str]:
    for name in _CODES:
        code = level.get(name)
        if isinstance(code, str) and 0 < len(code) <= 100:
            yield code


def _own_code(level: dict[str, Any]) -> Iterator[str]:
    code = level.get("code") or level.get("error_code")
    if isinstance(code, str) and re.fullmatch(r"[A-Za-z][\w.-]{1,63}", code):
        yield code


def _status(level: dict[str, Any]) -> Iterator[int]:
    for name in _STATUSES:
        status = level.get(name)
        if isinstance(status, int) and 400 <= status <= 599:
            yield status


def _param(level: dict[str, Any]) -> Iterator[str]:
    param = level.get("param")
    if isinstance(param, str) and 0 < len(param) <= 200:
        yield param
