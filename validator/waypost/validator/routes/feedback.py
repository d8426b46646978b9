"""What callers thought of answers. The newest word counts."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from waypost.shared.errors import InvalidRequestError
from waypost.shared.records import Feedback
from waypost.validator.pipeline.authenticate import authenticate
from waypost.validator.pipeline.exchange import pick_headers
from waypost.validator.pipeline.understand import read_body
from waypost.validator.routes.common import json_response, services_of

__all__ = ["ROUTES"]

MAX_FEEDBACK_BYTES = 4_096
FEEDBACK_TIMEOUT_S = 10.0


class _Said(Struct, forbid_unknown_fields=True):
    decision: Annotated[str, Meta(min_length=1, max_length=64)]
    rating: Literal["good", "bad"]
    cause: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")] | None = None


async def _feedback(request: Request) -> Response:
    """Take a caller's word on an answer they got. The newest word counts."""
    services = services_of(request)
    now = services.clock()
    headers = pick_headers(request.scope["headers"])
    principal, _, _ = await authenticate(
        services.access,
        services.manifests,
        services.config.budgets,
        headers,
        method=request.method,
        path=request.url.path,
        now=int(now),
    )
    body = await read_body(
        request.receive, headers, limit=MAX_FEEDBACK_BYTES, timeout_s=FEEDBACK_TIMEOUT_S
    )
    try:
        said = msgspec.json.decode(body, type=_Said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequestError(
            'Send {"decision": "<id>", "rating": "good" or "bad"}, and a short code such as'
            ' "incomplete" as "cause" if you like.',
            code="invalid_body",
        ) from None
    record = await services.records.get(said.decision)
    # One's own only: a colleague's answer is theirs to judge. Nobody learns which ids exist.
    if record is None or record.subject != principal.subject:
        raise InvalidRequestError(
            "No decision of yours has this id, or it is no longer kept.", code="decision_not_found"
        )
    if record.model is None or record.verdict == "refused":
        raise InvalidRequestError(
            "This request got no answer that could be judged.", code="nothing_to_judge"
        )
    feedback = Feedback(rating=said.rating, cause=said.cause, at_ms=int(now * 1_000))
    await services.store.put_feedback(record, feedback)
    services.counts.counts.feedback(record, feedback)
    if services.manifests.candidate is not None:
        services.manifests.candidate.rated(record, feedback)
    return json_response(
        {"decision": record.id, "rating": feedback.rating, "cause": feedback.cause}
    )


ROUTES = [
    Route("/v1/feedback", _feedback, methods=["POST"]),
]
