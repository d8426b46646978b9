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
from waypost.validator.ledger.base import HAS_FORGOTTEN
from waypost.validator.manifest.refresh import ManifestService
from waypost.validator.pipeline.exchange import pick_headers
from waypost.validator.pipeline.understand import read_body
from waypost.validator.records import RecordSink, RecordStore
from waypost.validator.routes.common import json_response, services_of

__all__ = ["ROUTES"]

READY = scope_of("account:readyz", (SpendLimit(window="total", limit_nusd=0),))
MAX_BUNDLE_BYTES = 4 * 1_048_576  # the trust layer has its own, smaller limits
BUNDLE_TIMEOUT_S = 30.0

READY_PATIENCE_S = 0.5  # kubelet gives up after a second


async def _bundle(request: Request) -> Response:
    """Take a signed bundle by hand. Its signatures are its authority; no token is asked for."""
    services = services_of(request)
    manifests = services.manifests
    if not services.config.manifest.admin:
        raise InvalidRequestError("There is nothing at this path.", code="not_found")
    headers = pick_headers(request.scope["headers"])
    body = await read_body(
        request.receive, headers, limit=MAX_BUNDLE_BYTES, timeout_s=BUNDLE_TIMEOUT_S
    )
    try:
        trusted = await to_thread.run_sync(partial(manifests.keeper.accept, body, etag=None))
    finally:
        # Even a bundle that is refused may revoke what is served.
        pending = await manifests.take_over()
    if manifests.refused is not None:
        raise PolicyError(
            f"Manifest v{trusted.policy.version} is signed and current, and is not served:"
            f" {manifests.refused.message}.",
            code=manifests.refused.code,
        )
    return json_response(
        {
            "version": trusted.policy.version,
            "digest": trusted.policy_digest,
            "expires_at": trusted.expires_at,
            "unserved": manifests.unserved,
            "pending_workers": pending,
        }
    )


async def _livez(_: Request) -> Response:
    return json_response({"status": "ok"})


async def _readyz(request: Request) -> Response:
    """Whether requests can be served: a manifest to serve, and stores that answer.

    ``updates``, ``ledger_risks`` and ``records`` are told for the alarm alone: what was good is
    served until it expires, and records wait on the disk while their store is down.
    """
    services = services_of(request)
    if services.shutdown.is_stopping:
        return json_response({"status": "stopping", "checks": {}}, UNAVAILABLE)
    manifests, now = services.manifests, int(services.clock())
    checks: dict[str, str] = {}
    try:
        checks["manifest"] = f"v{manifests.active(now).version}"
    except RefusalError as refusal:
        checks["manifest"] = refusal.code
    checks["updates"] = _updates(manifests, now)
    try:
        await services.ledger.balances((READY,), now=now)
        checks["ledger"] = "lost" if HAS_FORGOTTEN in services.ledger.risks else "ok"
    except StoreError as error:
        checks["ledger"] = error.code
    if services.ledger.risks:
        checks["ledger_risks"] = ", ".join(sorted(services.ledger.risks))
    checks["records"] = await _records_state(services.records, services.store)
    try:
        await services.access.seen.is_first(b"readyz", until=now)
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
            "expires_in_s": _expires_in_s(manifests, now),
        },
        OK if is_ready else UNAVAILABLE,
    )


ROUTES = [
    Route("/admin/bundle", _bundle, methods=["PUT"]),
    Route("/livez", _livez, methods=["GET"]),
    Route("/readyz", _readyz, methods=["GET"]),
]


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
