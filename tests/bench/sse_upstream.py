"""A streaming upstream: 20 chunks, a usage chunk and [DONE], 5 ms apart, as bare ASGI."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

CHUNKS = 20
GAP_S = 0.005

Message = MutableMapping[str, Any]


def _event(**fields: object) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


_TEXT = _event(choices=[{"index": 0, "delta": {"content": "word "}, "finish_reason": None}])
_USAGE = _event(
    choices=[], usage={"prompt_tokens": 300, "completion_tokens": CHUNKS, "total_tokens": 320}
)


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Answer any POST with the stream."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": _TEXT, "more_body": True})
        await asyncio.sleep(GAP_S)
    await send({"type": "http.response.body", "body": _USAGE, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def flood(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Answer any POST with ten thousand chunks, as fast as they are taken."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(10_000):
        await send({"type": "http.response.body", "body": _TEXT, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
