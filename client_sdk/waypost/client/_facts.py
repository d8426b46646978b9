"""What the client declares about its requests: task, tags, classes of data, urgency.

Said in three places: when the client is made, in a ``with wp.facts(...)`` block, and per
request by a ``Waypost-Facts`` header. Data classes and tags add up: a duty once declared is
never taken back. Of the rest, what was said nearest to the request counts.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import cast

from msgspec import Struct

from waypost.shared.contracts import Declared
from waypost.shared.wire.headers import format_facts

__all__ = [
    "Names",
    "Said",
    "current_facts",
    "current_session",
    "from_header",
    "merge",
    "names",
    "said",
    "saying",
]

Names = str | Iterable[str]


class Said(Struct, frozen=True, kw_only=True):
    """What was declared in one place; ``None`` and empty mean nothing was said."""

    interactive: bool | None = None
    task: str | None = None
    tags: tuple[str, ...] = ()
    data_classes: tuple[str, ...] = ()
    expected_output_tokens: int | None = None


NOTHING = Said()

_current: ContextVar[Said] = ContextVar("waypost_facts", default=NOTHING)
_session: ContextVar[str | None] = ContextVar("waypost_session", default=None)


def said(
    *,
    interactive: bool | None = None,
    data: Names = (),
    task: str | None = None,
    tags: Names = (),
    expected_output_tokens: int | None = None,
) -> Said:
    """Return what the arguments declare.

    Raises:
        InvalidRequestError: ``header_malformed``, a name that no header can carry.
        TypeError: an argument is of another kind.
    """
    _check("interactive", interactive, bool)
    _check("task", task, str)
    _check("expected_output_tokens", expected_output_tokens, int)
    made = Said(
        interactive=interactive,
        task=task,
        tags=names(tags),
        data_classes=names(data),
        expected_output_tokens=expected_output_tokens,
    )
    format_facts(merge(Declared(), made))
    return made


def names(given: Names) -> tuple[str, ...]:
    """Return one name, or several, as several; raises TypeError if they are none."""
    if isinstance(given, str):
        return (given,)
    # Bytes are numbers to whoever goes through them.
    listed: list[object] = [] if isinstance(given, bytes) else list(cast("Iterable[object]", given))
    made = tuple(name for name in listed if isinstance(name, str))
    if isinstance(given, bytes) or len(made) < len(listed):
        raise TypeError(f"names should be text, or several texts, not {given!r}")
    return made


def _check(name: str, value: object, kind: type) -> None:
    if value is None:
        return
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} should be {kind.__name__}, not {type(value).__name__}")


@lru_cache(maxsize=1_024)
def merge(base: Declared, more: Said) -> Declared:
    """Return ``base`` with ``more`` on top."""
    return Declared(
        interactive=base.interactive if more.interactive is None else more.interactive,
        task=more.task or base.task,
        tags=tuple(dict.fromkeys((*base.tags, *more.tags))),
        data_classes=tuple(dict.fromkeys((*base.data_classes, *more.data_classes))),
        expected_output_tokens=more.expected_output_tokens or base.expected_output_tokens,
    )


def from_header(declared: Declared) -> Said:
    """Return what a parsed ``Waypost-Facts`` header said.

    The header's default is interactive, so only the opposite is known to have been said.
    """
    return Said(
        interactive=None if declared.interactive else False,
        task=declared.task,
        tags=declared.tags,
        data_classes=declared.data_classes,
        expected_output_tokens=declared.expected_output_tokens,
    )


def current_facts(base: Declared) -> Declared:
    """Return ``base`` and what the blocks around this call declare."""
    here = _current.get()
    return base if here is NOTHING else merge(base, here)


def current_session() -> str | None:
    """Return the conversation that the blocks around this call say it belongs to."""
    return _session.get()


@contextmanager
def saying(more: Said, *, session: str | None = None) -> Generator[None]:
    """Declare ``more`` for the block; blocks inside blocks add up.

    Args:
        session: the conversation that its requests belong to.
    """
    outer = _current.get()
    inner = Said(
        interactive=outer.interactive if more.interactive is None else more.interactive,
        task=more.task or outer.task,
        tags=(*outer.tags, *more.tags),
        data_classes=(*outer.data_classes, *more.data_classes),
        expected_output_tokens=more.expected_output_tokens or outer.expected_output_tokens,
    )
    reset = _current.set(inner)
    reset_session = _session.set(session or _session.get())
    try:
        yield
    finally:
        # A generator that nobody reads to its end is closed wherever that is noticed, as in
        # another task. Nothing was declared there, so there is nothing to take back.
        with suppress(ValueError):
            _session.reset(reset_session)
        with suppress(ValueError):
            _current.reset(reset)
