"""Decisions: what would happen to a request, and what happened to one."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from waypost.shared.contracts import ENDPOINTS
from waypost.shared.decision.costs import cost_bound_nusd, cost_estimate_nusd
from waypost.shared.decision.explain import explain, explain_record
from waypost.shared.errors import InvalidRequestError
from waypost.validator.pipeline import consider
from waypost.validator.pipeline.reserve import preview
from waypost.validator.routes.common import (
    json_response,
    may_see,
    no_send,
    principal_of,
    services_of,
)
from waypost.validator.routes.hot_path import new_exchange

__all__ = ["ROUTES"]


async def _decide(request: Request) -> Response:
    """What would happen to this request: the pipeline up to where it would begin to spend."""
    services = services_of(request)
    endpoint = request.query_params.get("api", "chat.completions")
    if endpoint not in ENDPOINTS:
        raise InvalidRequestError(
            f"api must be one of {', '.join(ENDPOINTS)}.", code="not_found", param="api"
        )
    exchange = new_exchange(services, request.scope, request.receive, no_send, endpoint)
    admitted = await consider(services, exchange)
    plan = await preview(services, exchange, admitted)
    decision, facts = plan.decision, plan.facts
    active = admitted.active
    compiled = active.compiled
    model = compiled.models[decision.chain[0]]
    explanation = explain(compiled, facts, decision)
    return json_response(
        {
            "verdict": decision.verdict,
            "reason": decision.reason,
            "model": model.id,
            "provider": model.provider,
            "route": decision.route,
            "candidates": decision.candidates,
            "chain": decision.chain,
            "manifest": active.version,
            "max_output_tokens": plan.output_tokens,
            "cost_estimate_nusd": cost_estimate_nusd(compiled.policy, model, facts),
            "cost_bound_nusd": cost_bound_nusd(model, facts, output_tokens=plan.output_tokens),
            "explanation": explanation,
        }
    )


async def _decision(request: Request) -> Response:
    """One of the caller's own decision records, explained."""
    principal, _ = await principal_of(request)
    services = services_of(request)
    record = await services.records.get(request.path_params["id"])
    if record is None or not may_see(principal, record):
        # Nobody learns which ids exist.
        raise InvalidRequestError(
            "No decision of yours has this id, or it is no longer kept.", code="decision_not_found"
        )
    policy = await services.manifests.explained(record)
    return json_response({"record": record, "explanation": explain_record(record, policy)})


ROUTES = [
    Route("/v1/decide", _decide, methods=["POST"]),
    Route("/v1/decisions/{id}", _decision, methods=["GET"]),
]
