"""What is asked about decisions from outside: the metrics, and what callers thought of answers."""

import hmac
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from anyio import to_thread
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from waypost.shared.errors import InvalidRequestError
from waypost.shared.records import Feedback
from waypost.validator.access.jose import refused
from waypost.validator.http.problems import OK
from waypost.validator.manifest.active import Caller
from waypost.validator.pipeline.authenticate import authenticate
from waypost.validator.pipeline.exchange import pick_headers
from waypost.validator.pipeline.understand import read_body
from waypost.validator.routes.gauges import gauges
from waypost.validator.services import Desk
from waypost.validator.telemetry.exposition import expose

__all__ = ["ROUTES", "may_see"]

MAX_FEEDBACK_BYTES = 4_096
FEEDBACK_TIMEOUT_S = 10.0


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


# ── metrics ────────────────────────────────────────────────────────────────────────────────────


async def _metrics(request: Request) -> Response:
    """All processes' counts, and this one's state, for Prometheus to scrape."""
    desk = _desk(request)
    if not desk.config.metrics.enabled:
        raise InvalidRequestError("There is nothing at this path.", code="not_found")
    if desk.metrics_token is not None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + desk.metrics_token.encode()):
            raise refused("token_missing" if not given else "token_signature")
    families = await desk.all_counts()
    told = await gauges(desk, shows_budgets=desk.metrics_token is not None)
    body, media_type = await to_thread.run_sync(
        partial(expose, families, desk.counts, told, accept=request.headers.get("accept", ""))
    )
    return Response(body, OK, {"content-type": media_type, "cache-control": "no-store"})


# ── feedback ───────────────────────────────────────────────────────────────────────────────────


class _Said(Struct, forbid_unknown_fields=True):
    decision: Annotated[str, Meta(min_length=1, max_length=64)]
    rating: Literal["good", "bad"]
    cause: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")] | None = None


def may_see(caller: Caller, *, subject: str, tenant: str | None) -> bool:
    """Whether a decision of this subject and tenant concerns ``caller``."""
    return subject == caller.subject or (
        caller.claims.tenant is not None and tenant == caller.claims.tenant
    )


async def _feedback(request: Request) -> Response:
    """Take a caller's word on an answer they got. The newest word counts."""
    desk = _desk(request)
    now = desk.clock()
    headers = pick_headers(request.scope["headers"])
    caller, _, _ = await authenticate(
        desk, headers, method=request.method, path=request.url.path, now=int(now)
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
    record = await desk.records.get(said.decision)
    # One's own only: a colleague's answer is theirs to judge. Nobody learns which ids exist.
    if record is None or record.subject != caller.subject:
        raise InvalidRequestError(
            "No decision of yours has this id, or it is no longer kept.", code="decision_not_found"
        )
    if record.model is None or record.verdict == "refused":
        raise InvalidRequestError(
            "This request got no answer that could be judged.", code="nothing_to_judge"
        )
    feedback = Feedback(rating=said.rating, cause=said.cause, at_ms=int(now * 1_000))
    await desk.store.put_feedback(record, feedback)
    desk.counts.feedback(record, feedback)
    if desk.candidate is not None:
        desk.candidate.rated(record, feedback)
    return _json({"decision": record.id, "rating": feedback.rating, "cause": feedback.cause})


def _json(value: Any) -> Response:  # noqa: ANN401 - whatever msgspec can encode
    return Response(msgspec.json.encode(value), OK, media_type="application/json")


ROUTES = [
    Route("/metrics", _metrics, methods=["GET"]),
    Route("/v1/feedback", _feedback, methods=["POST"]),
]
