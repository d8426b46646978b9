"""What the request did cost: the provider's own count, or what bounds it where there is none.

The rule: what may have reached a provider is not free, unless the provider refused it. Without
a usage the charge is the upper bound and ``unconfirmed``, to be corrected by whoever learns more.
"""

import logging

from msgspec import structs

from waypost.shared.contracts import Facts
from waypost.shared.errors import StoreError
from waypost.shared.money import format_usd
from waypost.validator.pipeline.attempt import Delivered
from waypost.validator.pipeline.charge import Charge, charge_for
from waypost.validator.pipeline.exchange import Exchange
from waypost.validator.pipeline.hold import Reservation

__all__ = ["let_go", "pay", "settle"]

logger = logging.getLogger(__name__)


async def settle(exchange: Exchange, facts: Facts, delivered: Delivered) -> None:
    """Charge what reached the caller, and give back the rest of what was held for it."""
    exchange.usage = (await pay(exchange, facts, delivered)).usage
    exchange.mark("settle")


async def pay(exchange: Exchange, facts: Facts, delivered: Delivered) -> Charge:
    """Charge one try, of several that one request may have to pay for; return what it cost."""
    charge = _charge(exchange, facts, delivered)
    if delivered.is_paid:
        return charge
    reservation, cost = delivered.reservation, charge.cost_nusd
    if cost:
        exchange.cost_nusd += cost
        exchange.unconfirmed_nusd += 0 if charge.is_confirmed else cost
        attempt = exchange.attempts[delivered.place]
        exchange.attempts[delivered.place] = structs.replace(
            attempt, cost_nusd=cost, told_nusd=charge.told_nusd
        )
    exchange.reserved_nusd += reservation.amount_nusd
    if delivered.is_free:
        await let_go(exchange, reservation)
        return charge
    usage = charge.usage
    tokens = None if usage is None else usage.input_tokens + usage.output_tokens
    try:
        await reservation.settle(cost, tokens=tokens, is_confirmed=charge.is_confirmed)
    except StoreError as exc:
        # The provider has done its work. What nobody settles is charged when its lease ends.
        logger.error("request %s not settled: %s", exchange.id, exc)
    except Exception:
        logger.exception("request %s not settled", exchange.id)
    return charge


def _charge(exchange: Exchange, facts: Facts, delivered: Delivered) -> Charge:
    model, reservation = delivered.target.model, delivered.reservation
    try:
        charge = charge_for(delivered.evidence, model, facts)
    except Exception:
        # Better the bound than a hold that nobody ends.
        logger.exception("request %s: its cost is not known", exchange.id)
        return Charge(reservation.amount_nusd)
    if charge.told_nusd is not None and not delivered.is_paid:
        logger.warning(
            "request %s: %s tells a usage of %s for %s, more than the %s that it can cost; charged"
            " that, unconfirmed",
            exchange.id, model.provider, format_usd(charge.told_nusd), model.id,
            format_usd(charge.cost_nusd),
        )  # fmt: skip
    return charge


async def let_go(exchange: Exchange, reservation: Reservation) -> None:
    """Give back what is held, if anything is. The answer is not lost for a store that fails."""
    try:
        await reservation.release()
    except StoreError as exc:
        logger.error("request %s: what was held is not given back: %s", exchange.id, exc)
    except Exception:
        logger.exception("request %s: what was held is not given back", exchange.id)
