"""The access token: where it comes from, and when to ask for the next."""

import threading
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TYPE_CHECKING

from waypost.shared.tokens.unverified import UnverifiedClaims, unverified_claims

if TYPE_CHECKING:
    import anyio

    from waypost.client.dpop import Prover

__all__ = [
    "AsyncTokenSource",
    "AsyncTokens",
    "TokenSource",
    "Tokens",
]

TokenSource = str | Callable[[], str]
AsyncTokenSource = str | Callable[[], str] | Callable[[], Awaitable[str]]

LEEWAY_S = 30  # a token is renewed this long before it lapses, short-lived ones later
MEMO_ENTRIES = 256


class _Tokens:
    """The token in use. Knows when it lapses; the subclasses ask for the next."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        token: str | None,
        renewable: bool,
        prover: "Prover | None" = None,
    ) -> None:
        self._now = now
        self.prover = prover
        self._renewable = renewable
        self._renew_at = float("inf")
        self._claims: dict[str, UnverifiedClaims | None] = {}
        self.token = token

    @property
    def renewable(self) -> bool:
        """Whether a refused token can be exchanged for another."""
        return self._renewable

    def claims(self, token: str) -> UnverifiedClaims | None:
        """Return what ``token`` says; read once per token."""
        try:
            return self._claims[token]
        except KeyError:
            if len(self._claims) >= MEMO_ENTRIES:
                self._claims.clear()
            claims = self._claims[token] = unverified_claims(token)
            return claims

    def _holds(self, instead_of: str | None) -> bool:
        if self.token is None:
            return not self._renewable
        return self.token != instead_of and self._now() < self._renew_at

    def _keep(self, token: str) -> str:
        claims = self.claims(token)
        if claims is not None:
            lifetime_s = max(0, claims.exp - claims.iat)
            self._renew_at = claims.exp - min(LEEWAY_S, lifetime_s / 4)
        self.token = token
        return token


class Tokens(_Tokens):
    """Tokens by value, or by a function that is asked again when one lapses or is refused."""

    def __init__(
        self,
        source: TokenSource | None,
        now: Callable[[], float],
        prover: "Prover | None" = None,
    ) -> None:
        fixed = source if isinstance(source, str) else None
        super().__init__(now, token=fixed, renewable=callable(source), prover=prover)
        self._source = source
        self._lock = threading.Lock()

    def get(self, instead_of: str | None = None) -> str | None:
        """Return the token to send; ``None`` when the caller brings their own.

        Args:
            instead_of: a token that was refused.
        """
        if self._holds(instead_of) or not callable(self._source):
            return self.token
        with self._lock:  # one asks, the others take what it got
            return self.token if self._holds(instead_of) else self._keep(self._source())

    def after_fork(self) -> None:
        """Let go of a lock that another thread held when the process was forked."""
        self._lock = threading.Lock()


class AsyncTokens(_Tokens):
    """Like ``Tokens``, and the function may be a coroutine function."""

    def __init__(
        self,
        source: AsyncTokenSource | None,
        now: Callable[[], float],
        prover: "Prover | None" = None,
    ) -> None:
        fixed = source if isinstance(source, str) else None
        super().__init__(now, token=fixed, renewable=callable(source), prover=prover)
        self._source = source
        self._lock: anyio.Lock | None = None

    async def get(self, instead_of: str | None = None) -> str | None:
        """Return the token to send; see ``Tokens.get``."""
        if self._holds(instead_of) or not callable(self._source):
            return self.token
        import anyio

        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            if self._holds(instead_of):
                return self.token
            asked = self._source()
            return self._keep(await asked if isawaitable(asked) else asked)

    def after_fork(self) -> None:
        """Let go of a lock that another task held when the process was forked."""
        self._lock = None
