"""The hot route, as bare ASGI: no framework between server and pipeline (docs/adr/0008)."""

import random
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from waypost.shared.requests.apis import ENDPOINT_BY_PATH
from waypost.validator.config.callers import CORSConfig
from waypost.validator.http.server_protocol import has_whole_body
from waypost.validator.pipeline import serve
from waypost.validator.pipeline.exchange import Exchange
from waypost.validator.pipeline.record import receipt_of
from waypost.validator.services import Services

__all__ = ["ValidatorApp", "new_exchange"]

# What a page's script may read of an answer.
_EXPOSED = (
    "DPoP-Nonce",
    "Request-Id",
    "Retry-After",
    "Server-Timing",
    "Waypost-Budget",
    "Waypost-Cost",
    "Waypost-Decision",
    "Waypost-Manifest",
    "Waypost-Receipt",
    "WWW-Authenticate",
    "X-Request-ID",
    "X-Should-Retry",
)


class ValidatorApp:
    """What models answer by the short way, everything else by the framework."""

    def __init__(self, rest: ASGIApp) -> None:
        self.services: Services | None = None
        self._rest = rest
        self._crossing: ASGIApp | None = None

    def allow(self, cors: CORSConfig) -> None:
        """Have pages of these origins ask what stands below ``/v1/``."""
        self._crossing = None
        if cors.origins:
            self._crossing = CORSMiddleware(
                self._answer,
                allow_origins=cors.origins,
                allow_methods=("GET", "POST"),
                allow_headers=("*",),  # those that are not known are neither read nor passed on
                expose_headers=_EXPOSED,
                max_age=cors.max_age_s,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._crossing is None or not scope.get("path", "").startswith("/v1/"):
            await self._answer(scope, receive, send)
        else:
            await self._crossing(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.services is not None and scope["type"] == "http" and scope["method"] == "POST":
            endpoint = ENDPOINT_BY_PATH.get(scope["path"])
            if endpoint is not None:
                await serve(
                    self.services, new_exchange(self.services, scope, receive, send, endpoint)
                )
                return
        await self._rest(scope, receive, send)


def new_exchange(
    services: Services, scope: Scope, receive: Receive, send: Send, endpoint: str
) -> Exchange:
    """Return the exchange that ``scope`` begins, arriving now by the API ``endpoint``."""
    return Exchange.begin(
        scope,
        receive,
        send,
        endpoint=endpoint,
        at=services.clock(),
        randomness=random.getrandbits(74),
        has_whole_body=has_whole_body(scope),
        sign=None if services.receipts is None else partial(receipt_of, services.receipts),
    )
