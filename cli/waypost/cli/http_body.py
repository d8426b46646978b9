"""A request's body, read within bounds of size and time."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from waypost.shared.errors import InvalidRequestError

__all__ = ["read_body"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


async def read_body(
    receive: Receive, *, length: bytes | None, limit: int, timeout_s: float, is_here: bool = False
) -> bytes:
    """Return the request's body.

    Args:
        length: what ``Content-Length`` says.
        is_here: ``receive`` returns it at once, so that no clock need be set.

    Raises:
        InvalidRequestError: ``body_too_large``, without reading on; ``body_timeout``;
            ``body_incomplete``, the caller went away.
    """
    # The server has checked that the length is a number, and holds the body to it.
    if length is not None and int(length) > limit:
        raise _too_large(limit)
    if is_here:
        return await _collect(receive, limit)
    try:
        async with asyncio.timeout(timeout_s):
            return await _collect(receive, limit)
    except TimeoutError:
        raise InvalidRequestError(
            f"The body did not arrive within {timeout_s:g} s.", code="body_timeout"
        ) from None


async def _collect(receive: Receive, limit: int) -> bytes:
    # Grows in place: copied whole for each byte that trickles in, it would stall the loop.
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise InvalidRequestError("The body broke off.", code="body_incomplete")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)


def _too_large(limit: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"The body is larger than the {limit} bytes that are taken here.", code="body_too_large"
    )
