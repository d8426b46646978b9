"""What we are compared with: the least a server can do, and the plainest pass-through."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from bench.processes import BODY

ANSWER = (BODY.parent / "answer.json").read_bytes()

Message = MutableMapping[str, Any]


async def echo(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Bare ASGI: read the body, answer a constant. The floor of this server."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    length = str(len(ANSWER)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=os.environ["BENCH_UPSTREAM"], limits=limits) as client:
        app.state.client = client
        yield


async def _pass(request: Request) -> Response:
    client: httpx.AsyncClient = request.app.state.client
    upstream = client.build_request(
        "POST",
        request.url.path,
        content=await request.body(),
        headers={"content-type": "application/json"},
    )
    answer = await client.send(upstream, stream=True)
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        return StreamingResponse(answer.aiter_raw(), headers={"content-type": "text/event-stream"})
    content = await answer.aread()
    return Response(content, media_type="application/json")


# The everyday pass-through: Starlette and httpx, no check of anything.
passthrough = Starlette(routes=[Route("/{path:path}", _pass, methods=["POST"])], lifespan=_lifespan)
