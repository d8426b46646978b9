"""Serves the published tree over HTTP, as a CDN's origin or alone.

Only names that a publication can have are looked up, so no path leads out of the tree. What may
be cached, and how long, follows from the name: a version or a digest in it means for ever.
Freshness is in the signatures, which is why a cache may serve a stale bundle when the origin is
gone: a client sees for itself when it has expired.
"""

import gzip
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from waypost.edge.project.names import CACHE_NO_ROOT_YET, CACHE_SHORT, CHANNEL, cache_control
from waypost.edge.serving.decide_endpoint import Decider
from waypost.edge.serving.metrics import Expiry
from waypost.shared.errors import (
    ForbiddenError,
    InvalidRequestError,
    TokenError,
    TrustError,
    WaypostError,
)

__all__ = ["create_app"]

_log = logging.getLogger("waypost.edge")

_FULL = re.compile(rf"/v1/({CHANNEL})/full/bundle\.json")
_NEXT_ROOT = re.compile(r"/metadata/[0-9]{1,10}\.root\.json")

# Below, gzip's own header eats what it saves.
MIN_GZIP_BYTES = 512


class _Entity(NamedTuple):
    body: bytes
    zipped: bytes | None
    digest: str


def create_app(
    public: Path,
    *,
    private: Path | None = None,
    private_token: str | None = None,
    resign: Callable[[], None] | None = None,
    resign_every_s: float = 300,
    expiry: Expiry | None = None,
) -> Starlette:
    """Return the edge as an ASGI application.

    Args:
        public: the published tree.
        private: the tree of the full projection.
        private_token: what validators send as bearer to read ``private``; without one nobody
            reads it.
        resign: signs anew what lapses; called at start and then every ``resign_every_s``, in a
            thread. Its errors are logged and the tree stays as it is.
        expiry: what is logged as often of what lapses, and told at ``/metrics``.
    """
    works = [work for work in (resign, None if expiry is None else expiry.tell) if work is not None]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        if not works:
            yield
            return
        await _upkeep(works)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_keep_up, works, resign_every_s)
            yield
            tasks.cancel_scope.cancel()

    return Starlette(
        routes=[
            Route("/livez", _live),
            *([] if expiry is None else [Route("/metrics", expiry.metrics)]),
            Route("/v1/probe", _probe),
            Route("/v1/decide", Decider(public).answer, methods=["POST"]),
            Route("/{path:path}", _Tree(public, private, private_token)),
        ],
        lifespan=lifespan,
        exception_handlers={Exception: _failed, WaypostError: _refused},
    )


async def _keep_up(works: Iterable[Callable[[], None]], every_s: float) -> None:
    while True:
        await anyio.sleep(every_s)
        await _upkeep(works)


async def _upkeep(works: Iterable[Callable[[], None]]) -> None:
    for work in works:
        await _resign(work)


async def _resign(resign: Callable[[], None]) -> None:
    try:
        await to_thread.run_sync(resign)
    except WaypostError as exc:
        _log.error("cannot sign anew: %s: %s", exc.code, exc.message)
    except Exception:  # whatever it is, the next turn may succeed, and clients need the tree
        _log.exception("cannot sign anew")


async def _live(_request: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers=_PLAIN)


async def _probe(_request: Request) -> Response:
    """Answer at once: the time it takes is the answer."""
    return Response(status_code=204, headers={**_PLAIN, "Timing-Allow-Origin": "*"})


async def _failed(_request: Request, _exc: Exception) -> Response:
    return _error(500, "internal", "The edge failed to answer. Its log says why.")


async def _refused(_request: Request, exc: Exception) -> Response:
    """Answer what ``/v1/decide`` does not decide."""
    if not isinstance(exc, WaypostError):
        raise exc
    status = _STATUS_OF_CODE.get(exc.code) or next(
        (status for kind, status in _STATUS if isinstance(exc, kind)), 500
    )
    return _error(status, exc.code, exc.message)


_STATUS_OF_CODE = {"not_found": 404, "body_timeout": 408, "body_too_large": 413}
_STATUS: tuple[tuple[type[WaypostError], int], ...] = (
    (TokenError, 401),
    (ForbiddenError, 403),
    (InvalidRequestError, 400),
    (TrustError, 503),
)

_PLAIN = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _error(status: int, code: str, message: str, **headers: str) -> Response:
    body = {
        "error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}
    }
    return JSONResponse(body, status, {**_PLAIN, **headers})


class _Tree:
    """The trees as an ASGI application: strong ETags, 304, gzip, and cache headers by name."""

    def __init__(self, public: Path, private: Path | None, private_token: str | None) -> None:
        self._public = public
        self._private = private
        self._private_token = private_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self._answer(scope["method"], scope["path"], Headers(scope=scope))
        await response(scope, receive, send)

    def _answer(self, method: str, path: str, headers: Headers) -> Response:
        if method not in ("GET", "HEAD"):
            return _error(
                405, "method_not_allowed", "This is read-only: use GET.", Allow="GET, HEAD"
            )
        full = _FULL.fullmatch(path)
        if full is not None:
            return self._answer_full(full[1], headers)
        lasting = cache_control(path[1:])
        if lasting is None:
            return _not_found(path)
        cache = {"Cache-Control": lasting}
        if lasting == CACHE_SHORT:
            cache["CDN-Cache-Control"] = "max-age=15"
        entity = _entity(self._public / path[1:])
        return _not_found(path) if entity is None else _respond(entity, headers, cache)

    def _answer_full(self, channel: str, headers: Headers) -> Response:
        if self._private is None or not self._private_token:
            return _not_found("")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            token.encode(), self._private_token.encode()
        ):
            return _error(
                401,
                "private_token_wrong",
                "The full manifest is for validators: send their token as bearer.",
                **{"WWW-Authenticate": "Bearer"},
            )
        entity = _entity(self._private / "v1" / channel / "bundle.json")
        if entity is None:
            return _not_found("")
        return _respond(entity, headers, {"Cache-Control": "private, no-cache"})


def _not_found(path: str) -> Response:
    response = _error(404, "not_found", "Nothing is published under this name.")
    if _NEXT_ROOT.fullmatch(path):
        response.headers["Cache-Control"] = CACHE_NO_ROOT_YET
    return response


def _respond(entity: _Entity, headers: Headers, cache: dict[str, str]) -> Response:
    body, coding = entity.body, ""
    if entity.zipped is not None and _takes_gzip(headers.get("accept-encoding", "")):
        body, coding = entity.zipped, "gzip"
    # A strong ETag names exact bytes, so each coding has its own.
    etag = f'"{entity.digest}{"-" if coding else ""}{coding}"'
    shared = {
        **cache,
        "ETag": etag,
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if _matches(headers.get("if-none-match", ""), entity.digest):
        return Response(status_code=304, headers=shared)
    if coding:
        shared["Content-Encoding"] = coding
    return Response(body, headers=shared, media_type="application/json")


def _matches(if_none_match: str, digest: str) -> bool:
    # Compared weakly, as RFC 9110 §13.1.2 asks: a proxy that compressed has marked it W/.
    known = {f'"{digest}"', f'"{digest}-gzip"'}
    given = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return bool(given & known) or if_none_match.strip() == "*"


def _takes_gzip(accept_encoding: str) -> bool:
    for offer in accept_encoding.lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _entity(path: Path) -> _Entity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # Files are replaced, never written into, so these three tell one content from another.
    return _load(path, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _load(path: Path, _inode: int, _mtime_ns: int, _size: int) -> _Entity | None:
    try:
        body = path.read_bytes()
    except OSError:
        return None
    zipped = gzip.compress(body, mtime=0) if len(body) >= MIN_GZIP_BYTES else None
    return _Entity(body, zipped, hashlib.sha256(body).hexdigest())
