"""Bodies read so that nothing in them is passed over.

The structs of the callers' sides name every field that can be translated, and every field that
has no bearing on the answer; whatever else a request holds is refused, with its path, rather
than dropped in silence.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from waypost.validator.dialects.adapter import UntranslatableError
from waypost.validator.dialects.translation.neutral import Choice, Image, untranslatable

__all__ = [
    "Body",
    "OpenAIBody",
    "Strict",
    "image_of",
    "late_instructions",
    "only",
    "openai_choice",
    "read",
]

T = TypeVar("T")


class Strict(Struct, forbid_unknown_fields=True):
    """Part of a body, all of whose fields are named."""


class Body(Strict, kw_only=True):
    """A body of any API: what the pipeline sees to, and what has no bearing on the answer."""

    model: Any = None
    models: Any = None
    provider: Any = None
    stream: Any = None
    metadata: Any = None


class OpenAIBody(Body, kw_only=True):
    """A body of OpenAI's APIs: what else has no bearing on the answer."""

    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    stream_options: Any = None
    user: Any = None


def read(decode: Callable[[bytes], T], body: bytes) -> T:
    """Return what ``decode`` makes of ``body``.

    Raises:
        UntranslatableError: it holds something that ``decode`` has no place for.
    """
    try:
        return decode(body)
    except msgspec.ValidationError as exc:
        text, _, path = str(exc).partition(" - at ")
        path = path.strip("`").removeprefix("$").removeprefix(".")
        _, found, rest = text.partition("unknown field `")
        if found:
            path = f"{path}.{rest.rstrip('`')}".removeprefix(".")
        raise untranslatable(
            path, f"The provider's API has no words for {path or 'this request'}."
        ) from None


def only(body: object, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Check that fields which could not be translated ask for nothing.

    Args:
        allowed: field → values that mean what happens anyway; ``None`` always does.

    Raises:
        UntranslatableError: one of them asks for something.
    """
    for name, values in allowed.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            raise untranslatable(name, f"The provider's API has no words for this {name}.")


def image_of(url: str) -> Image:
    """Return the picture at ``url``, out of a data URL if it is one."""
    if not url.startswith("data:"):
        return Image(url=url)
    head, _, data = url.removeprefix("data:").partition(",")
    media_type, base64, rest = head.partition(";base64")
    if not base64 or rest or not data:
        raise untranslatable("image_url", "A picture's data URL must be in base64.")
    return Image(media_type=media_type, data=data)


def openai_choice(choice: str | None) -> Choice | None:
    """Return what OpenAI's ``tool_choice`` says where it names no tool."""
    match choice:
        case None:
            return None
        case "auto" | "none":
            return Choice(choice)
        case "required":
            return Choice("any")
        case _:
            raise untranslatable("tool_choice", "There is no such tool_choice.")


def late_instructions(param: str) -> UntranslatableError:
    """Return the error for instructions in the midst of a conversation."""
    return untranslatable(
        param, "The provider's API takes instructions only before the conversation."
    )
