"""What the request did cost: the provider's own count, or what bounds it where there is none."""

import logging

from waypost.shared.contracts import Facts
from waypost.shared.errors import StoreError
from waypost.shared.money import bill, upper_bound
from waypost.validator.pipeline.attempt import Delivered
from waypost.validator.pipeline.call import Call
from waypost.validator.pipeline.reserve import Booking

__all__ = ["cost_of", "settle"]

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
    # A token is a byte or more, so what came through bounds what was produced.
    return upper_bound(
        price,
        input_tokens=facts.measured.max_input_tokens,
        output_tokens=min(delivered.output_bytes, output_tokens * facts.measured.choices),
        needs=facts.measured.needs,
    )


async def settle(call: Call, facts: Facts, booking: Booking, delivered: Delivered) -> None:
    """Charge what the request did cost, and give back the rest."""
    cost = cost_of(delivered, facts, output_tokens=booking.output_tokens)
    call.usage = delivered.usage
    call.cost_nusd = cost
    call.reserved_nusd = booking.amount_nusd
    try:
        if delivered.is_free:
            await booking.release()
        else:
            await booking.settle(cost)
    except StoreError as exc:
        # The answer has gone out. What nobody settles is charged in full when its lease ends.
        logger.error("request %s not settled: %s", call.id, exc)
    call.mark("settle")
