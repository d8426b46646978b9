"""The hot route, as bare ASGI: no framework between server and pipeline (docs/adr/0008)."""

import random

from starlette.types import ASGIApp, Receive, Scope, Send

from waypost.validator.desk import Desk
from waypost.validator.pipeline import serve
from waypost.validator.pipeline.call import Call

__all__ = ["CHAT_PATH", "ValidatorApp", "new_call"]

CHAT_PATH = "/v1/chat/completions"


class ValidatorApp:
    """Chat completions by the short way, everything else by the framework."""

    def __init__(self, rest: ASGIApp) -> None:
        self.desk: Desk | None = None
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            self.desk is not None
            and scope["type"] == "http"
            and scope["path"] == CHAT_PATH
            and scope["method"] == "POST"
        ):
            await serve(self.desk, new_call(self.desk, scope, receive, send))
        else:
            await self._rest(scope, receive, send)


def new_call(desk: Desk, scope: Scope, receive: Receive, send: Send) -> Call:
    """Return the call that ``scope`` begins, arriving now."""
    return Call(scope, receive, send, at=desk.clock(), randomness=random.getrandbits(74))
