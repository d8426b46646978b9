"""One exchange with a provider, as every transport offers it.

The contract, which tests/validator/http/test_transports.py holds each transport to:

- whatever goes wrong is one ``ExchangeError`` that says at which stage;
- every wait ends at ``until``, also while connecting and while a large request is written;
- leaving before the end of the answer hangs up, and so does cancelling;
- an exchange knows nothing of those before it on the same connection.
"""

from collections.abc import Coroutine
from typing import Any, Literal, Protocol, Self

__all__ = ["MAX_IDLE", "MAX_IDLE_S", "MAX_STALE_S", "ExchangeError", "Progress", "Reply"]
__all__ += ["Stage", "Transport"]

# Where an exchange failed: before a connection stood, by silence, by the connection's end, or
# by bytes that are not HTTP or too many of them.
Stage = Literal["connect", "timeout", "broken", "malformed"]

# Servers close idle connections after some seconds and up. What has been idle for longer than
# most of them wait is not worth the failure it might cause.
MAX_IDLE_S = 30.0
MAX_IDLE = 512  # connections kept of one provider; a burst leaves no more behind
# A server that had closed an idle connection says so within a round trip.
MAX_STALE_S = 1.0


class ExchangeError(Exception):
    """An exchange that did not come to its end."""

    def __init__(self, stage: Stage, detail: str) -> None:
        super().__init__(f"{stage}: {detail}")
        self.stage: Stage = stage
        self.detail = detail


class Progress(Protocol):
    """Is told how far an exchange has come.

    Attributes:
        was_sent: whether a byte of the request may have reached the server.
    """

    was_sent: bool


class Reply(Protocol):
    """A response whose head is there. At the end of a ``with`` it is closed.

    Attributes:
        content_type, content_encoding, retry_after: as sent; empty if not.
    """

    status: int
    content_type: str
    content_encoding: str
    retry_after: str

    @property
    def is_whole(self) -> bool:
        """Whether all of the body has come and been read, so that nothing need be waited for."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def read(self, *, until: float) -> Coroutine[Any, Any, bytes]:
        """Return the next bytes of the body as they arrive; empty at its end."""
        ...

    def read_all(self, *, until: float, at_most: int) -> Coroutine[Any, Any, bytes]:
        """Return the whole body; raises ExchangeError (``malformed``) if it is longer."""
        ...

    def close(self) -> None:
        """Let go of the connection; before the end of the body that hangs up."""
        ...


class Transport(Protocol):
    """The connections to one provider.

    Attributes:
        certificate_expires_at: when the provider's certificate expires, Unix seconds; ``None``
            until it has been seen.
    """

    @property
    def certificate_expires_at(self) -> float | None: ...

    async def send(
        self,
        body: bytes,
        *,
        path: str = "",
        headers: str = "",
        until: float,
        progress: Progress | None = None,
    ) -> Reply:
        """POST ``body``; return the response once its head is there, for a ``with``.

        Args:
            path: below the provider's own.
            headers: further header lines, each with its line end.
            until: when the head must be there, by the loop's clock.
            progress: is told how far it has come, whatever is raised.

        Raises:
            ExchangeError: there is no response.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
