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
from waypost.validator.pipeline.exchange import AdmittedRequest, Exchange, pick_headers
from waypost.validator.pipeline.forward import forward
from waypost.validator.pipeline.hold import Reservation
from waypost.validator.pipeline.mirror import is_drawn, send_along
from waypost.validator.pipeline.record import receipt_of, record_of
from waypost.validator.pipeline.reserve import reserve
from waypost.validator.pipeline.settle import let_go, settle
from waypost.validator.pipeline.understand import bound_time, understand
from waypost.validator.services import Services

__all__ = ["consider", "refuse", "serve"]

logger = logging.getLogger(__name__)


async def serve(services: Services, exchange: Exchange) -> None:
    """Answer one request to a model and record how it went."""
    reservation: Reservation | None = None
    admitted: AdmittedRequest | None = None
    try:
        admitted = await consider(services, exchange)
        exchange.repeats = services.repeats.note(
            admitted.principal.subject, exchange.body, exchange.id, now=exchange.now
        )
        reservation = Reservation(services, exchange, admitted)
        decision = await reserve(exchange, admitted, reservation)
        if exchange.crossed and services.webhook is not None:
            services.webhook.tell(exchange.crossed)
        delivered = await forward(services, exchange, admitted, decision, reservation)
        await settle(exchange, admitted.facts, delivered)
    except (RefusalError, StoreError) as refusal:
        await _refuse_or_log(exchange, refusal)
    except asyncio.CancelledError:
        if not services.is_cut:
            raise
        if reservation is not None and not reservation.is_exposed:
            await let_go(exchange, reservation)
        await _refuse_or_log(exchange, stopping())
    except Exception:
        logger.exception("request %s failed", exchange.id)
        if reservation is not None and not reservation.is_exposed:
            await let_go(exchange, reservation)
        await _refuse_or_log(exchange, INTERNAL)
    finally:
        # Cancelled as well: what was charged is on record.
        if reservation is not None and not exchange.cost_nusd:
            await _free_key(exchange, reservation)
        await _record(services, exchange, admitted)


async def _free_key(exchange: Exchange, reservation: Reservation) -> None:
    try:
        await reservation.free_key()
    except Exception:
        logger.exception("request %s: its idempotency key is not free", exchange.id)


async def _record(services: Services, exchange: Exchange, admitted: AdmittedRequest | None) -> None:
    """Keep what happened. What adds to the record may fail; the record itself is not lost by it."""
    record = record_of(exchange)
    is_kept = False
    try:
        if admitted is not None:
            if services.candidate is not None:
                record = await services.with_shadow(record, admitted.inbound, admitted.principal)
            record = await services.with_prompt(record, admitted.inbound)
            if is_drawn(services, record):
                send_along(services, admitted, record)  # and kept with what comes of that
                is_kept = True
    except Exception:
        logger.exception("request %s: its record lacks its shadow or prompt", exchange.id)
    finally:
        if not is_kept:
            services.records.put(record)
        services.count(record)


async def consider(services: Services, exchange: Exchange) -> AdmittedRequest:
    """Take the steps that spend nothing.

    Raises:
        RefusalError: the request is not to be served.
    """
    exchange.headers = pick_headers(exchange.raw_headers)
    if services.receipts is not None:
        exchange.receipt = partial(receipt_of, exchange, services.receipts)
    exchange.trace = services.begin_trace(exchange.headers.get(b"traceparent"))
    principal, active, exchange.nonce = await authenticate(
        services, exchange.headers, method=exchange.method, path=exchange.path, now=exchange.now
    )
    exchange.principal, exchange.active = principal, active
    on_trial = services.canary(principal, exchange.now)
    if on_trial is not None:
        active = exchange.active = on_trial
        exchange.is_canary = True
    exchange.mark("authenticate")
    inbound, facts, exchange.proposal = await understand(services, exchange, principal, active)
    exchange.facts, exchange.streamed = facts, inbound.request.stream is True
    bound_time(exchange)
    exchange.mark("understand")
    decision = engine_decide(active.compiled, facts, exchange.proposal)
    if decision.reason == "out_of_service" and decision.model is None:
        awake = woken(
            active, facts, inbound, account=principal.account, monotonic=services.monotonic()
        )
        if awake is not None:
            facts = exchange.facts = awake
            decision = engine_decide(active.compiled, facts, exchange.proposal)
    exchange.decision = decision
    require_served(
        active,
        facts,
        decision,
        exchange.untranslatable,
        inbound=inbound,
        account=principal.account,
        monotonic=services.monotonic(),
    )
    exchange.take(decision)
    exchange.mark("decide")
    return AdmittedRequest(principal, active, inbound, facts, decision)


async def refuse(exchange: Exchange, refusal: WaypostError) -> None:
    """Answer with why the request is not served."""
    exchange.verdict, exchange.reason = "refused", refusal.code
    exchange.detail = refusal.message
    problem = describe(refusal, exchange.endpoint, request_id=exchange.id)
    if exchange.has_started:
        exchange.status = problem.status  # for the record; the caller has seen another
        await exchange.break_off(refusal.message, code=refusal.code)
        return
    await exchange.answer(problem.status, problem.body, extra=problem.headers)


async def _refuse_or_log(exchange: Exchange, refusal: WaypostError) -> None:
    """Answer, whatever the answer meets: the record comes after it."""
    try:
        await refuse(exchange, refusal)
    except Exception:
        logger.exception("request %s could not be told that it failed", exchange.id)
