"""What the routes share: who asks, which services there are, and how JSON is answered."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from waypost.shared.records import DecisionRecord
from waypost.validator.http.problems import OK
from waypost.validator.manifest.active import ActiveManifest, Principal
from waypost.validator.pipeline.authenticate import authenticate
from waypost.validator.pipeline.exchange import pick_headers
from waypost.validator.services import Services

__all__ = [
    "json_response",
    "may_see",
    "no_send",
    "principal_of",
    "services_of",
    "speaks_anthropic",
]


def json_response(value: Any, status: int = OK) -> Response:  # noqa: ANN401 - whatever msgspec can encode
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def speaks_anthropic(request: Request) -> bool:
    """Whether the caller's SDK is Anthropic's: only that names a version."""
    return request.url.path.startswith("/v1/messages") or "anthropic-version" in request.headers


async def principal_of(request: Request) -> tuple[Principal, ActiveManifest]:
    services = services_of(request)
    principal, active, _ = await authenticate(
        services.access,
        services.manifests,
        services.config.budgets,
        pick_headers(request.scope["headers"]),
        method=request.method,
        path=request.scope["path"],
        now=int(services.clock()),
    )
    return principal, active


async def no_send(_: Any) -> None:  # noqa: ANN401 - an ASGI message
    raise AssertionError("what only considers a request answers nothing itself")


def may_see(principal: Principal, record: DecisionRecord) -> bool:
    """Whether the decision concerns ``principal``: it is theirs, or of their issuer's tenant.

    Two issuers may each have a tenant of one name.
    """
    claims = principal.claims
    return record.subject == principal.subject or (
        claims.tenant is not None and record.tenant == claims.tenant and record.issuer == claims.iss
    )
