"""What an operator and a load balancer ask: a bundle by hand, and whether we are well."""

import asyncio
from functools import partial

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from waypost.shared.contracts import SpendLimit
from waypost.shared.errors import InvalidRequestError, PolicyError, RefusalError, StoreError
from waypost.validator.http.problems import OK, UNAVAILABLE
from waypost.validator.ledger import scope_of
from waypost.validator.pipeline.exchange import pick_headers
from waypost.validator.pipeline.understand import read_body
from waypost.validator.routes.common import json_response, services_of
from waypost.validator.services import Services

__all__ = ["ROUTES"]

READY = scope_of("account:readyz", (SpendLimit(window="total", limit_nusd=0),))
MAX_BUNDLE_BYTES = 4 * 1_048_576  # the trust layer has its own, smaller limits
BUNDLE_TIMEOUT_S = 30.0

READY_PATIENCE_S = 0.5  # kubelet gives up after a second


async def _bundle(request: Request) -> Response:
    """Take a signed bundle by hand. Its signatures are its authority; no token is asked for."""
    services = services_of(request)
    if not services.config.manifest.admin:
        raise InvalidRequestError("There is nothing at this path.", code="not_found")
    headers = pick_headers(request.scope["headers"])
    body = await read_body(
        request.receive, headers, limit=MAX_BUNDLE_BYTES, timeout_s=BUNDLE_TIMEOUT_S
    )
    try:
        trusted = await to_thread.run_sync(partial(services.keeper.accept, body, etag=None))
    finally:
        # Even a bundle that is refused may revoke what is served.
        pending = await services.take_over()
    if services.refused is not None:
        raise PolicyError(
            f"Manifest v{trusted.policy.version} is signed and current, and is not served:"
            f" {services.refused.message}.",
            code=services.refused.code,
        )
    return json_response(
        {
            "version": trusted.policy.version,
            "digest": trusted.policy_digest,
            "expires_at": trusted.expires_at,
            "unserved": services.unserved,
            "pending_workers": pending,
        }
    )


async def _livez(_: Request) -> Response:
    return json_response({"status": "ok"})


async def _readyz(request: Request) -> Response:
    """Whether requests can be served: a manifest to serve, and stores that answer.

    ``updates`` and ``records`` are told for the alarm alone: what was good is served until it
    expires, and records wait on the disk while their store is down.
    """
    services = services_of(request)
    if services.is_stopping:
        return json_response({"status": "stopping", "checks": {}}, UNAVAILABLE)
    now = int(services.clock())
    checks: dict[str, str] = {}
    try:
        checks["manifest"] = f"v{services.active(now).version}"
    except RefusalError as refusal:
        checks["manifest"] = refusal.code
    checks["updates"] = _updates(services, now)
    try:
        await services.ledger.balances((READY,), now=now)
        checks["ledger"] = "ok"
    except StoreError as error:
        checks["ledger"] = error.code
    checks["records"] = await _records_state(services)
    try:
        await services.seen.is_first(b"readyz", until=now)
        checks["replay"] = "ok"
    except StoreError as error:
        checks["replay"] = error.code
    is_ready = checks["manifest"].startswith("v") and {"ok"} == {
        checks["ledger"],
        checks["replay"],
    }
    return json_response(
        {
            "status": "ok" if is_ready else "unavailable",
            "checks": checks,
            "expires_in_s": _expires_in_s(services, now),
        },
        OK if is_ready else UNAVAILABLE,
    )


ROUTES = [
    Route("/admin/bundle", _bundle, methods=["PUT"]),
    Route("/livez", _livez, methods=["GET"]),
    Route("/readyz", _readyz, methods=["GET"]),
]


def _updates(services: Services, now: int) -> str:
    if services.refused is not None:
        return "refused"
    if services.keeper.is_held_back(now):
        return "held_back"
    soon = services.lapses()
    if not soon:
        return "ok"
    return "expired" if soon[0].left_s <= 0 else "expires_soon"


def _expires_in_s(services: Services, now: int) -> dict[str, int]:
    """Role → how long its signature behind the newest manifest still holds."""
    newest = services.keeper.current
    return {} if newest is None else {role: at - now for role, at in newest.expires.items()}


async def _records_state(services: Services) -> str:
    sink = services.records
    if sink.spill_fault:
        return "spill_full"
    if sink.is_store_down:
        return "spilling"
    try:
        async with asyncio.timeout(READY_PATIENCE_S):
            await services.store.get("readyz")
    except (StoreError, TimeoutError):
        return "spilling"
    return "ok"
