"""The validator over HTTP: routes, their order, and how errors look."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from waypost.shared.errors import (
    InvalidRequestError,
    RefusalError,
    StoreError,
    WaypostError,
)
from waypost.shared.requests.apis import ENDPOINT_BY_PATH
from waypost.validator.console import Console
from waypost.validator.http.problems import INTERNAL, describe
from waypost.validator.manifest.refresh import ManifestService
from waypost.validator.records import RecordSink, RecordStore
from waypost.validator.routes import admin, decisions, feedback, metrics, models
from waypost.validator.routes.common import speaks_anthropic
from waypost.validator.routes.hot_path import ValidatorApp
from waypost.validator.services import Services

__all__ = ["create_app"]

READY_PATIENCE_S = 0.5  # kubelet gives up after a second


def create_app(opening: Callable[[], AbstractAsyncContextManager[Services]]) -> ValidatorApp:
    """Return the ASGI application; it opens its services when the server starts it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with opening() as services:
            app.services = rest.state.services = console.services = services
            app.allow(services.config.cors)
            yield
            app.services = None

    console = Console()
    rest = Starlette(
        routes=[
            *(Route(path, _starting, methods=["POST"]) for path in ENDPOINT_BY_PATH),
            *models.ROUTES,
            *decisions.ROUTES,
            *admin.ROUTES,
            *feedback.ROUTES,
            *metrics.ROUTES,
            Mount("/console", console),
        ],
        exception_handlers={
            WaypostError: _problem,
            HTTPException: _http_problem,
            Exception: _internal,
        },
        lifespan=lifespan,
    )
    app = ValidatorApp(rest)
    return app


# ── errors ─────────────────────────────────────────────────────────────────────────────────────


async def _problem(request: Request, error: Exception) -> Response:
    endpoint = "messages" if speaks_anthropic(request) else "chat.completions"
    problem = describe(cast(WaypostError, error), endpoint)
    response = Response(problem.body, problem.status, media_type="application/json")
    for name, value in problem.headers:
        response.headers[name.decode()] = value.decode()
    return response


async def _http_problem(request: Request, error: Exception) -> Response:
    """404 and 405, as the framework raises them, in our envelope."""
    allow = (cast(HTTPException, error).headers or {}).get("Allow")
    if allow is not None:
        refusal = InvalidRequestError(f"Use {allow} here.", code="method_not_allowed")
    else:
        refusal = InvalidRequestError("There is nothing at this path.", code="not_found")
    response = await _problem(request, refusal)
    if allow is not None:
        response.headers["allow"] = allow
    return response


async def _internal(request: Request, _: Exception) -> Response:
    return await _problem(request, INTERNAL)


async def _starting(_: Request) -> Response:
    raise RefusalError("This validator is starting; try again shortly.", code="starting")


# ── what an operator sees ──────────────────────────────────────────────────────────────────────


def _updates(manifests: ManifestService, now: int) -> str:
    if manifests.refused is not None:
        return "refused"
    if manifests.keeper.is_held_back(now):
        return "held_back"
    soon = manifests.lapses()
    if not soon:
        return "ok"
    return "expired" if soon[0].left_s <= 0 else "expires_soon"


def _expires_in_s(manifests: ManifestService, now: int) -> dict[str, int]:
    """Role → how long its signature behind the newest manifest still holds."""
    newest = manifests.keeper.current
    return {} if newest is None else {role: at - now for role, at in newest.expires.items()}


async def _records_state(sink: RecordSink, store: RecordStore) -> str:
    if sink.spill_fault:
        return "spill_full"
    if sink.is_store_down:
        return "spilling"
    try:
        async with asyncio.timeout(READY_PATIENCE_S):
            await store.get("readyz")
    except (StoreError, TimeoutError):
        return "spilling"
    return "ok"
