"""What happens to a request.

authenticate → understand → decide → reserve → forward → settle → record

Each step is a module. A step that cannot go on raises a ``RefusalError``, and the request ends
with an answer that says why, nothing charged, and a record.
"""

import logging

from waypost.shared.contracts import Facts
from waypost.shared.engine import Decision
from waypost.shared.errors import RefusalError, StoreError, WaypostError
from waypost.shared.measure import ChatRequest
from waypost.validator.desk import Desk, Serving
from waypost.validator.pipeline.authenticate import authenticate
from waypost.validator.pipeline.call import Call, pick_headers
from waypost.validator.pipeline.decide import decide
from waypost.validator.pipeline.forward import forward
from waypost.validator.pipeline.record import record_of
from waypost.validator.pipeline.reserve import Booking, reserve
from waypost.validator.pipeline.settle import settle
from waypost.validator.pipeline.understand import understand
from waypost.validator.problems import INTERNAL, describe

__all__ = ["consider", "refuse", "serve"]

logger = logging.getLogger(__name__)


async def serve(desk: Desk, call: Call) -> None:
    """Answer one chat completion and record how it went."""
    booking = Booking(desk, call)
    try:
        serving, request, facts, decision = await consider(desk, call)
        decision = await reserve(call, serving, facts, decision, booking)
        delivered = await forward(desk, call, serving, request, facts, decision, booking)
        await settle(desk, call, facts, booking, delivered)
    except (RefusalError, StoreError) as refusal:
        await refuse(call, refusal)
    except Exception:
        logger.exception("request %s failed", call.id)
        if not booking.is_exposed:
            await booking.release()
        await refuse(call, INTERNAL)
    desk.records.put(record_of(call))


async def consider(desk: Desk, call: Call) -> tuple[Serving, ChatRequest, Facts, Decision]:
    """Take the steps that spend nothing.

    Raises:
        RefusalError: the request is not to be served.
    """
    call.headers = pick_headers(call.raw_headers)
    call.caller, call.serving = await authenticate(
        desk, call.headers.get(b"authorization"), now=call.now
    )
    call.mark("authenticate")
    request, call.facts, call.proposal = await understand(desk, call, call.caller, call.serving)
    call.streamed = request.stream is True
    call.mark("understand")
    decision = decide(call.serving.compiled, call.facts, call.proposal)
    call.take(decision)
    call.mark("decide")
    return call.serving, request, call.facts, decision


async def refuse(call: Call, refusal: WaypostError) -> None:
    """Answer with why the request is not served."""
    call.verdict, call.reason = "refused", refusal.code
    call.detail = refusal.message
    problem = describe(refusal)
    if call.has_started:
        call.status = problem.status  # for the record; the caller has seen another
        return
    await call.answer(problem.status, problem.body, extra=problem.headers)
