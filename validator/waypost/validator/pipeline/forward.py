"""Sends the request where it can be answered, and the answer to the caller.

The rule: another try is made only before the first byte has gone out, only at a model of the
set that the policy allows, only when what it may cost is held, and only within the caller's
deadline. Every try that a provider charges for is paid for, whether or not the caller got it.
What a try is, is ``attempt``'s business; where the next one goes, ``failover``'s.
"""

import asyncio

from waypost.shared.decision.engine import Decision
from waypost.shared.errors import UpstreamError
from waypost.validator.http.problems import CALLER_GONE, stopping
from waypost.validator.pipeline.attempt import Delivered, Try
from waypost.validator.pipeline.disconnect import HangUp
from waypost.validator.pipeline.exchange import Call, Considered
from waypost.validator.pipeline.failover import Walk
from waypost.validator.pipeline.hold import Booking
from waypost.validator.pipeline.settle import let_go, pay
from waypost.validator.services import Desk

__all__ = ["forward"]


async def forward(
    desk: Desk, call: Call, considered: Considered, decision: Decision, booking: Booking
) -> Delivered:
    """Return what reached the caller; all else that was tried is paid for, or given back.

    Args:
        decision: what the booking pays for.

    Raises:
        RefusalError: no model of the chain answered, or the validator stopped before one did;
            nothing is held any more.
    """
    walk = Walk(desk, call, considered, decision, booking)
    told: Try | None = None
    unsettled: Try | None = None
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a request is served by one
    desk.under_way.add(task)
    try:
        if not call.streamed:
            # It runs to its end even if the caller hangs up: only the end says what it cost.
            told = await walk.first_answer()
            return await told.deliver()
        async with HangUp(call.receive):
            told = await walk.first_answer()
            return await told.deliver()
        call.status = call.status or CALLER_GONE
        walk.hang_up()
        told = told or walk.under_way
        if told is None:
            raise UpstreamError("The caller hung up.", code="caller_gone")
        return told.delivered()
    except asyncio.CancelledError:
        if not desk.is_cut:
            unsettled, told = told, None  # nobody else will settle it
            raise
        task.uncancel()
        walk.hang_up()
        if told is None or not call.has_started:
            told = None
            raise stopping() from None
        await told.break_off()
        return told.delivered()
    except BaseException:
        unsettled, told = told, None  # nobody else will settle it
        raise
    finally:
        desk.under_way.discard(task)
        walk.hang_up()
        for one in walk.tries:
            if one is not told and not (done := one.delivered()).is_free:
                charge = await pay(call, considered.facts, done)
                if one is unsettled:
                    call.usage = charge.usage
        for held in walk.bookings:
            if told is None or held is not told.booking:
                await let_go(call, held)
