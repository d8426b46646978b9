"""What a caller may use: the models of their token, and a prompt's tokens."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from waypost.shared.contracts import AUTO, Facts, Measured
from waypost.shared.decision.engine import exclusion
from waypost.shared.errors import InvalidRequestError
from waypost.validator.pipeline import consider
from waypost.validator.routes.common import (
    json_response,
    no_send,
    principal_of,
    services_of,
    speaks_anthropic,
)
from waypost.validator.routes.hot_path import new_exchange

__all__ = ["ROUTES"]


async def _allowed(request: Request) -> list[dict[str, object]]:
    """What this token may use, ``auto`` first, each in the words of the caller's SDK."""
    principal, active = await principal_of(request)
    now, policy = int(services_of(request).clock()), active.compiled.policy
    anthropic = speaks_anthropic(request)
    names = [(AUTO, "waypost")]
    for model in policy.models:
        # By whichever API it can be asked: only who may use it is the question here.
        endpoint = "messages" if anthropic else model.endpoints[0]
        facts = Facts(now=now, signed=principal.signed, measured=Measured(endpoint=endpoint))
        why = exclusion(active.compiled, model.id, facts)
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
    if not speaks_anthropic(request):
        return json_response({"object": "list", "data": allowed})
    ends = {"first_id": allowed[0]["id"], "last_id": allowed[-1]["id"]}
    return json_response({"data": allowed, "has_more": False, **ends})


async def _model(request: Request) -> Response:
    """One of them."""
    for model in await _allowed(request):
        if model["id"] == request.path_params["id"]:
            return json_response(model)
    raise InvalidRequestError("You may use no such model.", code="model_not_found", param="id")


async def _count_tokens(request: Request) -> Response:
    """An estimate of a prompt's tokens, for whom the prompt would be served.

    Made here: to have a provider count would be to send it the prompt.
    """
    services = services_of(request)
    exchange = new_exchange(services, request.scope, request.receive, no_send, "messages")
    admitted = await consider(services, exchange)
    return json_response({"input_tokens": admitted.facts.measured.input_tokens})


ROUTES = [
    Route("/v1/messages/count_tokens", _count_tokens, methods=["POST"]),
    Route("/v1/models", _models, methods=["GET"]),
    Route("/v1/models/{id:path}", _model, methods=["GET"]),
]
