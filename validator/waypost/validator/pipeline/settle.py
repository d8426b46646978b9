"""What the request did cost: the provider's own count, or what bounds it where there is none.

The rule: what may have reached a provider is not free, unless the provider refused it. Without
a usage the charge is the upper bound and ``unconfirmed``, to be corrected by whoever learns more.
"""

import logging

from msgspec import structs

from waypost.shared.contracts import Facts
from waypost.shared.errors import StoreError
from waypost.shared.money import bill, upper_bound
from waypost.validator.pipeline.attempt import Delivered
from waypost.validator.pipeline.call import Call
from waypost.validator.pipeline.reserve import Booking

__all__ = ["cost_of", "let_go", "pay", "settle"]

logger = logging.getLogger(__name__)


def cost_of(delivered: Delivered, facts: Facts, *, output_tokens: int) -> int:
    """Return what to charge, in nano-dollars.

    Args:
        output_tokens: the bound of one answer that was sent upstream.
    """
    if delivered.is_free:
        return 0
    price = delivered.target.model.price
    if delivered.usage is not None:
        return bill(price, delivered.usage, facts.measured.needs)
    if delivered.output_bytes is None:
        # It may have been answered in full, for all we know, and cannot cost more than this.
        return delivered.booking.amount_nusd
    # A token is a byte or more, so what came through bounds what was produced.
    return upper_bound(
        price,
        input_tokens=facts.measured.max_input_tokens,
        output_tokens=min(delivered.output_bytes, output_tokens * facts.measured.choices),
        needs=facts.measured.needs,
    )


async def settle(call: Call, facts: Facts, delivered: Delivered) -> None:
    """Charge what reached the caller, and give back the rest of what was held for it."""
    call.usage = delivered.usage
    await pay(call, facts, delivered)
    call.mark("settle")


async def pay(call: Call, facts: Facts, delivered: Delivered) -> None:
    """Charge one try, of several that one request may have to pay for."""
    if delivered.is_paid:
        return
    booking = delivered.booking
    is_confirmed = delivered.usage is not None
    try:
        cost = cost_of(delivered, facts, output_tokens=booking.output_tokens)
    except Exception:
        # Better the bound than a hold that nobody ends.
        logger.exception("request %s: its cost is not known", call.id)
        cost, is_confirmed = booking.amount_nusd, False
    if cost:
        call.cost_nusd += cost
        call.unconfirmed_nusd += 0 if is_confirmed else cost
        attempt = call.attempts[delivered.place]
        call.attempts[delivered.place] = structs.replace(attempt, cost_nusd=cost)
    call.reserved_nusd += booking.amount_nusd
    if delivered.is_free:
        await let_go(call, booking)
        return
    usage = delivered.usage
    tokens = None if usage is None else usage.input_tokens + usage.output_tokens
    try:
        await booking.settle(cost, tokens=tokens, is_confirmed=is_confirmed)
    except StoreError as exc:
        # The provider has done its work. What nobody settles is charged when its lease ends.
        logger.error("request %s not settled: %s", call.id, exc)
    except Exception:
        logger.exception("request %s not settled", call.id)


async def let_go(call: Call, booking: Booking) -> None:
    """Give back what is held, if anything is. The answer is not lost for a store that fails."""
    try:
        await booking.release()
    except StoreError as exc:
        logger.error("request %s: what was held is not given back: %s", call.id, exc)
    except Exception:
        logger.exception("request %s: what was held is not given back", call.id)
