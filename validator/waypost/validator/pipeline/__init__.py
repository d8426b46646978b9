"""What happens to a request.

authenticate → understand → decide → reserve → forward → settle → record

Each step is a module. A step that cannot go on raises a ``RefusalError``, and the request ends
with an answer that says why, nothing charged, and a record.
"""

import asyncio
import logging
from functools import partial

from waypost.shared.decision.engine import decide as engine_decide
from waypost.shared.errors import RefusalError, StoreError, WaypostError
from waypost.validator.http.problems import INTERNAL, describe, stopping
from waypost.validator.pipeline.authenticate import authenticate
from waypost.validator.pipeline.decide import require_served, woken
from waypost.validator.pipeline.exchange import Call, Considered, pick_headers
from waypost.validator.pipeline.forward import forward
from waypost.validator.pipeline.hold import Booking
from waypost.validator.pipeline.mirror import is_drawn, send_along
from waypost.validator.pipeline.record import receipt_of, record_of
from waypost.validator.pipeline.reserve import reserve
from waypost.validator.pipeline.settle import let_go, settle
from waypost.validator.pipeline.understand import bound_time, understand
from waypost.validator.services import Desk

__all__ = ["consider", "refuse", "serve"]

logger = logging.getLogger(__name__)


async def serve(desk: Desk, call: Call) -> None:
    """Answer one request to a model and record how it went."""
    booking: Booking | None = None
    considered: Considered | None = None
    try:
        considered = await consider(desk, call)
        call.repeats = desk.repeats.note(
            considered.caller.subject, call.body, call.id, now=call.now
        )
        booking = Booking(desk, call, considered)
        decision = await reserve(call, considered, booking)
        if call.crossed and desk.webhook is not None:
            desk.webhook.tell(call.crossed)
        delivered = await forward(desk, call, considered, decision, booking)
        await settle(call, considered.facts, delivered)
    except (RefusalError, StoreError) as refusal:
        await _refuse_or_log(call, refusal)
    except asyncio.CancelledError:
        if not desk.is_cut:
            raise
        if booking is not None and not booking.is_exposed:
            await let_go(call, booking)
        await _refuse_or_log(call, stopping())
    except Exception:
        logger.exception("request %s failed", call.id)
        if booking is not None and not booking.is_exposed:
            await let_go(call, booking)
        await _refuse_or_log(call, INTERNAL)
    if booking is not None and not call.cost_nusd:
        await _free_key(call, booking)
    await _record(desk, call, considered)


async def _free_key(call: Call, booking: Booking) -> None:
    try:
        await booking.free_key()
    except Exception:
        logger.exception("request %s: its idempotency key is not free", call.id)


async def _record(desk: Desk, call: Call, considered: Considered | None) -> None:
    """Keep what happened. What adds to the record may fail; the record itself is not lost by it."""
    record = record_of(call)
    if considered is not None:
        try:
            if desk.candidate is not None:
                record = await desk.with_shadow(record, considered.asked, considered.caller)
            record = await desk.with_prompt(record, considered.asked)
            is_sent_along = is_drawn(desk, record)
        except Exception:
            logger.exception("request %s: its record lacks its shadow or prompt", call.id)
            is_sent_along = False
        if is_sent_along:
            desk.count(record)
            send_along(desk, considered, record)
            return
    desk.note(record)


async def consider(desk: Desk, call: Call) -> Considered:
    """Take the steps that spend nothing.

    Raises:
        RefusalError: the request is not to be served.
    """
    call.headers = pick_headers(call.raw_headers)
    if desk.receipts is not None:
        call.receipt = partial(receipt_of, call, desk.receipts)
    call.trace = desk.begin_trace(call.headers.get(b"traceparent"))
    caller, serving, call.nonce = await authenticate(
        desk, call.headers, method=call.method, path=call.path, now=call.now
    )
    call.caller, call.serving = caller, serving
    on_trial = desk.canary(caller, call.now)
    if on_trial is not None:
        serving = call.serving = on_trial
        call.is_canary = True
    call.mark("authenticate")
    asked, facts, call.proposal = await understand(desk, call, caller, serving)
    call.facts, call.streamed = facts, asked.request.stream is True
    bound_time(call)
    call.mark("understand")
    decision = engine_decide(serving.compiled, facts, call.proposal)
    if decision.reason == "out_of_service" and decision.model is None:
        awake = woken(serving, facts, asked, account=caller.account, monotonic=desk.monotonic())
        if awake is not None:
            facts = call.facts = awake
            decision = engine_decide(serving.compiled, facts, call.proposal)
    call.decision = decision
    require_served(
        serving,
        facts,
        decision,
        call.untranslatable,
        asked=asked,
        account=caller.account,
        monotonic=desk.monotonic(),
    )
    call.take(decision)
    call.mark("decide")
    return Considered(caller, serving, asked, facts, decision)


async def refuse(call: Call, refusal: WaypostError) -> None:
    """Answer with why the request is not served."""
    call.verdict, call.reason = "refused", refusal.code
    call.detail = refusal.message
    problem = describe(refusal, call.endpoint, request_id=call.id)
    if call.has_started:
        call.status = problem.status  # for the record; the caller has seen another
        await call.break_off(refusal.message, code=refusal.code)
        return
    await call.answer(problem.status, problem.body, extra=problem.headers)


async def _refuse_or_log(call: Call, refusal: WaypostError) -> None:
    """Answer, whatever the answer meets: the record comes after it."""
    try:
        await refuse(call, refusal)
    except Exception:
        logger.exception("request %s could not be told that it failed", call.id)
