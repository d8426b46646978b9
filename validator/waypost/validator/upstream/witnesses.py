"""Who met what went wrong: the evidence that a breaker asks for. Pure.

The rule: a rest is as wide as its evidence. What one account meets says nothing of the others, and
what one body meets says nothing of other bodies: the cause may be in the request. What happened
before a request was sent, as a refused connection, has no such cause and speaks for all.
"""

from collections import Counter, deque
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple, Self

__all__ = ["Witness", "Witnesses", "fingerprint"]

REMEMBERED = 256


class Witness(NamedTuple):
    """Whose request it was, and which; ``None`` where that cannot be the cause."""

    account: str | None = None
    body: int | None = None

    @classmethod
    def of(cls, account: str | None, body: bytes) -> Self:
        """Return who asks; bodies are told apart by their hash, which no other process shares."""
        return cls(account, hash(body))


def fingerprint(account: str) -> str:
    """Return what tells accounts apart where their names have no business."""
    return sha256(account.encode()).hexdigest()[:16]


class Witnesses:
    """The last of what went wrong, and who met it."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Witness]] = deque(maxlen=REMEMBERED)

    def clear(self) -> None:
        """Forget all of them."""
        self._seen.clear()

    def add(self, now: float, witness: Witness) -> None:
        """Note that something went wrong for ``witness``."""
        self._seen.append((now, witness))

    def others_of_last(self, count: int) -> float:
        """Return what share of the last ``count`` the most frequent one did not meet.

        0: one account met all of them, or one body did.
        """
        last = list(self._seen)[-count:]
        return _others(witness for _, witness in last)

    def others_since(self, since: float) -> float:
        """Return the same for what went wrong since then."""
        return _others(witness for at, witness in self._seen if at >= since)

    def accounts(self) -> frozenset[str]:
        """Return the fingerprints of whom it went wrong for; empty if that cannot be the cause."""
        names = {witness.account for _, witness in self._seen}
        if None in names:
            return frozenset()
        return frozenset(fingerprint(name) for name in names if name is not None)


def _others(witnesses: Iterable[Witness]) -> float:
    all_of_them = list(witnesses)
    if not all_of_them:
        return 0.0
    most = max(_most(one.account for one in all_of_them), _most(one.body for one in all_of_them))
    return 1 - most / len(all_of_them)


def _most(names: Iterable[str | int | None]) -> int:
    """Return how often the most frequent name is there. ``None`` is no name."""
    counted = Counter(name for name in names if name is not None)
    return max(counted.values(), default=0)
