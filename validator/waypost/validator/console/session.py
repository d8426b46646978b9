"""Who may see the console: the operator's token, and the signed session that it buys. Pure.

The rule: nothing is kept on the server. A session is signed with a key made from the token, so
all workers agree on it, a restart ends none, and another token ends them all.
"""

import hmac

__all__ = ["COOKIE", "SESSION_S", "LoginLimiter", "is_session", "is_token", "new_session"]

COOKIE = "waypost_console"
SESSION_S = 12 * 3_600  # a shift

FAILURES = 10  # of one address, a minute
WINDOW_S = 60.0
MAX_ADDRESSES = 10_000


def is_token(given: str, token: str) -> bool:
    """Whether ``given`` is the operator's token; takes as long whatever is wrong with it."""
    return hmac.compare_digest(
        hmac.digest(b"", given.encode("utf-8", "surrogatepass"), "sha256"),
        hmac.digest(b"", token.encode(), "sha256"),
    )


def new_session(token: str, *, now: int) -> str:
    """Return a cookie's value that ``is_session`` until ``SESSION_S`` from ``now``."""
    expires_at = str(now + SESSION_S)
    return f"{expires_at}.{_signature(token, expires_at)}"


def is_session(cookie: str, token: str, *, now: int) -> bool:
    """Whether ``cookie`` was made with this token and has not expired."""
    expires_at, _, signature = cookie.partition(".")
    # Ours is the only spelling: int() would take more than we write.
    if not (expires_at.isascii() and expires_at.isdigit() and len(expires_at) <= 12):
        return False
    is_signed = hmac.compare_digest(signature.encode(), _signature(token, expires_at).encode())
    return is_signed and now < int(expires_at)


def _signature(token: str, expires_at: str) -> str:
    key = hmac.digest(token.encode(), b"waypost console session", "sha256")
    return hmac.digest(key, expires_at.encode(), "sha256").hex()


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
