"""Sends the request where it can be answered, and the answer to the caller.

The rule: another try is made only before the first byte has gone out, only at a model of the
set that the policy allows, only when what it may cost is held, and only within the caller's
deadline. Every try that a provider charges for is paid for, whether or not the caller got it.
What a try is, is ``attempt``'s business; where the next one goes, ``failover``'s.
"""

import asyncio

from msgspec import structs

from waypost.shared.errors import UpstreamError
from waypost.validator.http.problems import CALLER_GONE, stopping
from waypost.validator.pipeline.attempt import Delivered, ProviderAttempt
from waypost.validator.pipeline.disconnect import HangUp
from waypost.validator.pipeline.exchange import AdmittedRequest, Exchange
from waypost.validator.pipeline.failover import Failover
from waypost.validator.pipeline.settle import let_go, pay
from waypost.validator.services import Services

__all__ = ["forward"]


async def forward(
    services: Services,
    exchange: Exchange,
    admitted: AdmittedRequest,
    failover: Failover,
) -> Delivered:
    """Return what reached the caller; all else that was tried is paid for, or given back.

    Args:
        failover: what is held, and where it may be spent; all of it is ended here.

    Raises:
        RefusalError: no model of the chain answered, or the validator stopped before one did;
            nothing is held any more.
    """
    told: ProviderAttempt | None = None
    unsettled: ProviderAttempt | None = None
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a request is served by one
    services.shutdown.under_way.add(task)
    try:
        if not exchange.streamed:
            # It runs to its end even if the caller hangs up: only the end says what it cost.
            told = await failover.first_answer()
            delivered = await told.deliver()
            if failover.is_outrunning:
                told.is_paid = True
                delivered = await _pay_before(exchange, admitted, delivered)
                await failover.see_outrun()
            return delivered
        async with HangUp(exchange.receive):
            told = await failover.first_answer()
            return await told.deliver()
        exchange.status = exchange.status or CALLER_GONE
        failover.hang_up()
        told = told or failover.under_way
        if told is None:
            raise UpstreamError("The caller hung up.", code="caller_gone")
        return told.delivered()
    except asyncio.CancelledError:
        if not services.shutdown.is_cut:
            unsettled, told = told, None  # nobody else will settle it
            raise
        task.uncancel()
        failover.hang_up()
        if told is None or not exchange.has_started:
            told = None
            raise stopping() from None
        await told.break_off()
        return told.delivered()
    except BaseException:
        unsettled, told = told, None  # nobody else will settle it
        raise
    finally:
        services.shutdown.under_way.discard(task)
        failover.hang_up()
        await failover.leave_outrun()
        for one in failover.tries:
            if one is not told and not (done := one.delivered()).is_free:
                charge = await pay(exchange, admitted.facts, done)
                if one is unsettled:
                    exchange.usage = charge.usage
        for held in failover.reservations:
            if told is None or held is not told.reservation:
                await let_go(exchange, held)


async def _pay_before(
    exchange: Exchange, admitted: AdmittedRequest, delivered: Delivered
) -> Delivered:
    """Pay for what the caller has got, before all else that goes on unseen."""
    exchange.usage = (await pay(exchange, admitted.facts, delivered)).usage
    exchange.mark("settle")
    exchange.answered_ms = exchange.elapsed_ms()
    return structs.replace(delivered, is_paid=True)
