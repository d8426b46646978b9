"""What the routes share: who asks, of which desk, and how JSON is answered."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from waypost.validator.http.problems import OK
from waypost.validator.manifest.active import Caller, Serving
from waypost.validator.pipeline.authenticate import authenticate
from waypost.validator.pipeline.exchange import pick_headers
from waypost.validator.services import Desk

__all__ = [
    "caller_of",
    "desk_of",
    "json_response",
    "may_see",
    "no_send",
    "speaks_anthropic",
]


def json_response(value: Any, status: int = OK) -> Response:  # noqa: ANN401 - whatever msgspec can encode
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def speaks_anthropic(request: Request) -> bool:
    """Whether the caller's SDK is Anthropic's: only that names a version."""
    return request.url.path.startswith("/v1/messages") or "anthropic-version" in request.headers


async def caller_of(request: Request) -> tuple[Caller, Serving]:
    desk = desk_of(request)
    caller, serving, _ = await authenticate(
        desk,
        pick_headers(request.scope["headers"]),
        method=request.method,
        path=request.scope["path"],
        now=int(desk.clock()),
    )
    return caller, serving


async def no_send(_: Any) -> None:  # noqa: ANN401 - an ASGI message
    raise AssertionError("what only considers a request answers nothing itself")


def may_see(caller: Caller, *, subject: str, tenant: str | None) -> bool:
    """Whether a decision of this subject and tenant concerns ``caller``."""
    return subject == caller.subject or (
        caller.claims.tenant is not None and tenant == caller.claims.tenant
    )
