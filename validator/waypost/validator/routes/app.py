"""The validator over HTTP: routes, their order, and how errors look."""

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
    WaypostError,
)
from waypost.shared.requests.apis import ENDPOINT_BY_PATH
from waypost.validator.console import Console
from waypost.validator.http.problems import INTERNAL, describe
from waypost.validator.routes import admin, decisions, feedback, metrics, models
from waypost.validator.routes.common import speaks_anthropic
from waypost.validator.routes.hot_path import ValidatorApp
from waypost.validator.services import Services

__all__ = ["create_app"]


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
