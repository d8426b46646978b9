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
    caller_of,
    desk_of,
    json_response,
    no_send,
    speaks_anthropic,
)
from waypost.validator.routes.hot_path import new_call

__all__ = ["ROUTES"]


async def _allowed(request: Request) -> list[dict[str, object]]:
    """What this token may use, ``auto`` first, each in the words of the caller's SDK."""
    caller, serving = await caller_of(request)
    now, policy = int(desk_of(request).clock()), serving.compiled.policy
    anthropic = speaks_anthropic(request)
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
    desk = desk_of(request)
    call = new_call(desk, request.scope, request.receive, no_send, "messages")
    considered = await consider(desk, call)
    return json_response({"input_tokens": considered.facts.measured.input_tokens})


ROUTES = [
    Route("/v1/messages/count_tokens", _count_tokens, methods=["POST"]),
    Route("/v1/models", _models, methods=["GET"]),
    Route("/v1/models/{id:path}", _model, methods=["GET"]),
]
