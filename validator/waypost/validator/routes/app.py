"""The validator over HTTP: routes, their order, and how errors look."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import msgspec
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from waypost.shared.contracts import AUTO, ENDPOINTS, Facts, Measured, SpendLimit
from waypost.shared.decision.costs import cost_estimate_nusd
from waypost.shared.decision.engine import exclusion
from waypost.shared.decision.explain import explain, explain_record
from waypost.shared.errors import (
    InvalidRequestError,
    PolicyError,
    RefusalError,
    StoreError,
    WaypostError,
)
from waypost.shared.requests.apis import ENDPOINT_BY_PATH
from waypost.validator.console import Console
from waypost.validator.http.problems import INTERNAL, OK, UNAVAILABLE, describe
from waypost.validator.ledger import scope_of
from waypost.validator.manifest.active import Caller, Serving
from waypost.validator.pipeline import consider
from waypost.validator.pipeline.authenticate import authenticate
from waypost.validator.pipeline.exchange import pick_headers
from waypost.validator.pipeline.reserve import bound_nusd, preview
from waypost.validator.pipeline.understand import read_body
from waypost.validator.routes import watching
from waypost.validator.routes.hot_path import ValidatorApp, new_call
from waypost.validator.services import Desk

__all__ = ["create_app"]

READY_PATIENCE_S = 0.5  # kubelet gives up after a second
READY = scope_of("account:readyz", (SpendLimit(window="total", limit_nusd=0),))
MAX_BUNDLE_BYTES = 4 * 1_048_576  # the trust layer has its own, smaller limits
BUNDLE_TIMEOUT_S = 30.0


def create_app(opening: Callable[[], AbstractAsyncContextManager[Desk]]) -> ValidatorApp:
    """Return the ASGI application; it opens its desk when the server starts it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with opening() as desk:
            app.desk = rest.state.desk = console.desk = desk
            app.allow(desk.config.cors)
            yield
            app.desk = None

    console = Console()
    rest = Starlette(
        routes=[
            *(Route(path, _starting, methods=["POST"]) for path in ENDPOINT_BY_PATH),
            Route("/v1/messages/count_tokens", _count_tokens, methods=["POST"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{id:path}", _model, methods=["GET"]),
            Route("/v1/decide", _decide, methods=["POST"]),
            Route("/v1/decisions/{id}", _decision, methods=["GET"]),
            Route("/admin/bundle", _bundle, methods=["PUT"]),
            *watching.ROUTES,
            Route("/livez", _livez, methods=["GET"]),
            Route("/readyz", _readyz, methods=["GET"]),
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


def _json(value: Any, status: int = OK) -> Response:  # noqa: ANN401 - whatever msgspec can encode
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


# ── errors ─────────────────────────────────────────────────────────────────────────────────────


def _speaks_anthropic(request: Request) -> bool:
    """Whether the caller's SDK is Anthropic's: only that names a version."""
    return request.url.path.startswith("/v1/messages") or "anthropic-version" in request.headers


async def _problem(request: Request, error: Exception) -> Response:
    endpoint = "messages" if _speaks_anthropic(request) else "chat.completions"
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


# ── what a caller may see ──────────────────────────────────────────────────────────────────────


async def _caller(request: Request) -> tuple[Caller, Serving]:
    desk = _desk(request)
    caller, serving, _ = await authenticate(
        desk,
        pick_headers(request.scope["headers"]),
        method=request.method,
        path=request.scope["path"],
        now=int(desk.clock()),
    )
    return caller, serving


async def _allowed(request: Request) -> list[dict[str, object]]:
    """What this token may use, ``auto`` first, each in the words of the caller's SDK."""
    caller, serving = await _caller(request)
    now, policy = int(_desk(request).clock()), serving.compiled.policy
    anthropic = _speaks_anthropic(request)
    names = [(AUTO, "waypost")]
    for model in policy.models:
        # By whichever API it can be asked: only who may use it is the question here.
        endpoint = "messages" if anthropic else model.endpoints[0]
        facts = Facts(now=now, signed=caller.signed, measured=Measured(endpoint=endpoint))
        why = exclusion(serving.compiled, model.id, facts)
        if why is None or why.code == "not_in_route":
            names.append((model.id, model.provider))
    if not anthropic:
        return [
            {"id": name, "object": "model", "created": policy.issued_at, "owned_by": owner}
            for name, owner in names
        ]
    created_at = f"{datetime.fromtimestamp(policy.issued_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    about = {"type": "model", "created_at": created_at, "lifecycle": "active"}
    return [{"id": name, "display_name": name, **about} for name, _ in names]


async def _models(request: Request) -> Response:
    """What this token may use, as OpenAI or Anthropic lists models."""
    allowed = await _allowed(request)
    if not _speaks_anthropic(request):
        return _json({"object": "list", "data": allowed})
    ends = {"first_id": allowed[0]["id"], "last_id": allowed[-1]["id"]}
    return _json({"data": allowed, "has_more": False, **ends})


async def _model(request: Request) -> Response:
    """One of them."""
    for model in await _allowed(request):
        if model["id"] == request.path_params["id"]:
            return _json(model)
    raise InvalidRequestError("You may use no such model.", code="model_not_found", param="id")


async def _count_tokens(request: Request) -> Response:
    """An estimate of a prompt's tokens, for whom the prompt would be served.

    Made here: to have a provider count would be to send it the prompt.
    """
    desk = _desk(request)
    call = new_call(desk, request.scope, request.receive, _no_send, "messages")
    considered = await consider(desk, call)
    return _json({"input_tokens": considered.facts.measured.input_tokens})


async def _decide(request: Request) -> Response:
    """What would happen to this request: the pipeline up to where it would begin to spend."""
    desk = _desk(request)
    endpoint = request.query_params.get("api", "chat.completions")
    if endpoint not in ENDPOINTS:
        raise InvalidRequestError(
            f"api must be one of {', '.join(ENDPOINTS)}.", code="not_found", param="api"
        )
    call = new_call(desk, request.scope, request.receive, _no_send, endpoint)
    considered = await consider(desk, call)
    plan = await preview(desk, call, considered)
    decision, facts = plan.decision, plan.facts
    serving = considered.serving
    compiled = serving.compiled
    model = compiled.models[decision.chain[0]]
    explanation = explain(compiled, facts, decision)
    return _json(
        {
            "verdict": decision.verdict,
            "reason": decision.reason,
            "model": model.id,
            "provider": model.provider,
            "route": decision.route,
            "candidates": decision.candidates,
            "chain": decision.chain,
            "manifest": serving.version,
            "max_output_tokens": plan.output_tokens,
            "cost_estimate_nusd": cost_estimate_nusd(compiled.policy, model, facts),
            "cost_bound_nusd": bound_nusd(model, facts, output_tokens=plan.output_tokens),
            "explanation": explanation,
        }
    )


async def _no_send(_: Any) -> None:  # noqa: ANN401 - an ASGI message
    raise AssertionError("what only considers a request answers nothing itself")


async def _decision(request: Request) -> Response:
    """One of the caller's own decision records, explained."""
    caller, _ = await _caller(request)
    desk = _desk(request)
    record = await desk.records.get(request.path_params["id"])
    if record is None or not watching.may_see(caller, subject=record.subject, tenant=record.tenant):
        # Nobody learns which ids exist.
        raise InvalidRequestError(
            "No decision of yours has this id, or it is no longer kept.", code="decision_not_found"
        )
    policy = await desk.explained(record)
    return _json({"record": record, "explanation": explain_record(record, policy)})


# ── what an operator sees ──────────────────────────────────────────────────────────────────────


async def _bundle(request: Request) -> Response:
    """Take a signed bundle by hand. Its signatures are its authority; no token is asked for."""
    desk = _desk(request)
    if not desk.config.manifest.admin:
        raise InvalidRequestError("There is nothing at this path.", code="not_found")
    headers = pick_headers(request.scope["headers"])
    body = await read_body(
        request.receive, headers, limit=MAX_BUNDLE_BYTES, timeout_s=BUNDLE_TIMEOUT_S
    )
    try:
        trusted = await to_thread.run_sync(partial(desk.keeper.accept, body, etag=None))
    finally:
        # Even a bundle that is refused may revoke what is served.
        pending = await desk.take_over()
    if desk.refused is not None:
        raise PolicyError(
            f"Manifest v{trusted.policy.version} is signed and current, and is not served:"
            f" {desk.refused.message}.",
            code=desk.refused.code,
        )
    return _json(
        {
            "version": trusted.policy.version,
            "digest": trusted.policy_digest,
            "expires_at": trusted.expires_at,
            "unserved": desk.unserved,
            "pending_workers": pending,
        }
    )


async def _livez(_: Request) -> Response:
    return _json({"status": "ok"})


def _updates(desk: Desk, now: int) -> str:
    if desk.refused is not None:
        return "refused"
    if desk.keeper.is_held_back(now):
        return "held_back"
    soon = desk.lapses()
    if not soon:
        return "ok"
    return "expired" if soon[0].left_s <= 0 else "expires_soon"


def _expires_in_s(desk: Desk, now: int) -> dict[str, int]:
    """Role → how long its signature behind the newest manifest still holds."""
    newest = desk.keeper.current
    return {} if newest is None else {role: at - now for role, at in newest.expires.items()}


async def _readyz(request: Request) -> Response:
    """Whether requests can be served: a manifest to serve, and stores that answer.

    ``updates`` and ``records`` are told for the alarm alone: what was good is served until it
    expires, and records wait on the disk while their store is down.
    """
    desk = _desk(request)
    if desk.is_stopping:
        return _json({"status": "stopping", "checks": {}}, UNAVAILABLE)
    now = int(desk.clock())
    checks: dict[str, str] = {}
    try:
        checks["manifest"] = f"v{desk.serving(now).version}"
    except RefusalError as refusal:
        checks["manifest"] = refusal.code
    checks["updates"] = _updates(desk, now)
    try:
        await desk.ledger.balances((READY,), now=now)
        checks["ledger"] = "ok"
    except StoreError as error:
        checks["ledger"] = error.code
    checks["records"] = await _records_state(desk)
    try:
        await desk.seen.is_first(b"readyz", until=now)
        checks["replay"] = "ok"
    except StoreError as error:
        checks["replay"] = error.code
    is_ready = checks["manifest"].startswith("v") and {"ok"} == {
        checks["ledger"],
        checks["replay"],
    }
    return _json(
        {
            "status": "ok" if is_ready else "unavailable",
            "checks": checks,
            "expires_in_s": _expires_in_s(desk, now),
        },
        OK if is_ready else UNAVAILABLE,
    )


async def _records_state(desk: Desk) -> str:
    sink = desk.records
    if sink.spill_fault:
        return "spill_full"
    if sink.is_store_down:
        return "spilling"
    try:
        async with asyncio.timeout(READY_PATIENCE_S):
            await desk.store.get("readyz")
    except (StoreError, TimeoutError):
        return "spilling"
    return "ok"
