"""Who may see the console: the operator's token, and the signed session that it buys. Pure.

The rule: who is in is not kept on the server. A session is signed with a key made from the token,
so all workers agree on it and a restart ends none. What is kept, until they would have lapsed, is
which sessions have ended; another token ends them all.
"""

import hashlib
import hmac
from typing import NamedTuple

__all__ = [
    "ALL_SESSIONS",
    "COOKIE",
    "SESSION_S",
    "LoginLimiter",
    "Session",
    "is_token",
    "new_session",
    "session_of",
]

COOKIE = "waypost_console"
SESSION_S = 12 * 3_600  # a shift
ALL_SESSIONS = b"console sessions"  # marks all that lapse at a time or before

FAILURES = 10  # of one address, a minute
WINDOW_S = 60.0
MAX_ADDRESSES = 10_000


class Session(NamedTuple):
    """A session that a cookie proves."""

    expires_at: int
    name: str

    @property
    def mark(self) -> bytes:
        """What it is remembered by once it has ended."""
        return hashlib.sha256(b"console session " + self.name.encode()).digest()


def is_token(given: str, token: str) -> bool:
    """Whether ``given`` is the operator's token; takes as long whatever is wrong with it."""
    return hmac.compare_digest(
        hmac.digest(b"", given.encode("utf-8", "surrogatepass"), "sha256"),
        hmac.digest(b"", token.encode(), "sha256"),
    )


def new_session(token: str, *, name: str, now: int) -> str:
    """Return the value of a cookie that proves a session until ``SESSION_S`` from ``now``.

    Args:
        name: of no other session; hexadecimal.
    """
    said = f"{now + SESSION_S}.{name}"
    return f"{said}.{_signature(token, said)}"


def session_of(cookie: str, token: str, *, now: int) -> Session | None:
    """Return the session if ``cookie`` was made with this token and has not lapsed."""
    said, _, signature = cookie.rpartition(".")
    expires_at, _, name = said.partition(".")
    # Ours is the only spelling: int() would take more than we write.
    if not (expires_at.isascii() and expires_at.isdigit() and len(expires_at) <= 12):
        return None
    is_signed = hmac.compare_digest(signature.encode(), _signature(token, said).encode())
    return Session(int(expires_at), name) if is_signed and now < int(expires_at) else None


def _signature(token: str, said: str) -> str:
    key = hmac.digest(token.encode(), b"waypost console session", "sha256")
    return hmac.digest(key, said.encode(), "sha256").hex()


class LoginLimiter:
    """Counts failed logins per address, within one process. Instants are monotonic seconds."""

    def __init__(self) -> None:
        self._failures: dict[str, list[float]] = {}

    def wait_s(self, address: str, now: float) -> int:
        """Return how long ``address`` must wait before it may try again; 0: it may."""
        recent = self._recent(address, now)
        return 0 if len(recent) < FAILURES else int(recent[-FAILURES] + WINDOW_S - now) + 1

    def failed(self, address: str, now: float) -> None:
        """Note a failed login."""
        recent = self._recent(address, now)
        # The oldest goes: an attacker of many addresses must not fill the memory.
        while len(self._failures) >= MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures[address] = [*recent, now]

    def _recent(self, address: str, now: float) -> list[float]:
        recent = [at for at in self._failures.pop(address, ()) if now - at < WINDOW_S]
        if recent:
            self._failures[address] = recent
        return recent
