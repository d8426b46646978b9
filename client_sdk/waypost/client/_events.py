"""What a client tells of itself, to a hook of the app's own; nothing of it leaves the process.

No event holds a token, or anything of a prompt or an answer.
"""

from typing import Protocol

from msgspec import Struct

__all__ = ["Answered", "Event", "EventHook", "FactsElsewhere", "FailedOver", "Refreshed"]


class Answered(Struct, frozen=True, kw_only=True):
    """A validator answered a request; its body may still be on the way.

    Attributes:
        endpoint: base of the validator, without ``/v1``.
        status: HTTP status.
        proposed: model that this client proposed, if any.
        model: model that was decided on, if any.
        elapsed_ms: from sending the request to the headers of its answer.
    """

    endpoint: str
    status: int
    elapsed_ms: float
    proposed: str | None = None
    decision_id: str | None = None
    verdict: str | None = None
    model: str | None = None
    reason: str | None = None


class FailedOver(Struct, frozen=True, kw_only=True):
    """Nobody could be reached at ``endpoint``. ``retries`` says whether another one is tried."""

    endpoint: str
    elapsed_ms: float
    retries: bool


class Refreshed(Struct, frozen=True, kw_only=True):
    """The manifest was asked for.

    Attributes:
        error: the ``TrustError``'s code, if one came of it.
        expires_in_s: until the first signature behind the manifest in use lapses; below 0 it has.
        expires_role: whose that is: ``root`` and ``targets`` are signed by people, the rest by an
            edge every few minutes.
    """

    manifest_version: int | None
    error: str | None = None
    expires_in_s: float | None = None
    expires_role: str | None = None


class FactsElsewhere(Struct, frozen=True, kw_only=True):
    """A request goes out without classes of data that a ``facts`` block of another thread declares.

    Threads do not inherit blocks, so the request may lack a duty. ``Waypost.bound`` carries them
    everywhere.
    """

    data: tuple[str, ...]


Event = Answered | FactsElsewhere | FailedOver | Refreshed


class EventHook(Protocol):
    """Called with each event, in the thread or task where it happens: be quick.

    What it raises is logged and goes no further.
    """

    def __call__(self, event: Event, /) -> None: ...
