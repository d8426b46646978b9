"""All processes' counts, and this one's state, for Prometheus to scrape."""

import hmac
from functools import partial

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from waypost.shared.errors import InvalidRequestError, TokenError
from waypost.validator.http.problems import OK
from waypost.validator.routes.common import services_of
from waypost.validator.routes.gauges import gauges
from waypost.validator.telemetry.exposition import expose

__all__ = ["ROUTES"]


async def _metrics(request: Request) -> Response:
    """All processes' counts, and this one's state, for Prometheus to scrape."""
    services = services_of(request)
    if not services.config.metrics.enabled:
        raise InvalidRequestError("There is nothing at this path.", code="not_found")
    if services.operators.metrics is not None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + services.operators.metrics.encode()):
            raise TokenError(
                "GET /metrics needs the token that `metrics` in validator.yaml names: send it as"
                " Authorization: Bearer TOKEN.",
                code="token_signature" if given else "token_missing",
            )
    families = await services.counts.total()
    told = await gauges(services, shows_budgets=services.operators.metrics is not None)
    body, media_type = await to_thread.run_sync(
        partial(
            expose, families, services.counts.counts, told, accept=request.headers.get("accept", "")
        )
    )
    return Response(body, OK, {"content-type": media_type, "cache-control": "no-store"})


ROUTES = [
    Route("/metrics", _metrics, methods=["GET"]),
]
