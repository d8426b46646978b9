"""What one attempt costs: by what its provider told, else by what bounds it. Pure.

The rules:

- What a provider refused, or was never sent, is free.
- What is told is told: a side of the usage that came is charged by it, also when the stream was
  cut before the rest. What came after the last word of the usage is bounded by its bytes, since a
  token is a byte or more.
- No attempt costs more than was held for it. A usage that says so is a mistake or a bound that
  does not hold, and either is for a person to look at: the charge is the hold, unconfirmed.
"""

from msgspec import Struct, structs

from waypost.shared.contracts import Facts
from waypost.shared.decision.costs import price_needs
from waypost.shared.money import Price, Usage, bill, upper_bound
from waypost.validator.dialects.usage import UsageReport

__all__ = ["Charge", "Evidence", "charge_for"]


class Evidence(Struct, frozen=True):
    """What is known of what an attempt used.

    Attributes:
        is_free: whether no provider charges for it.
        report: what the provider told.
        has_output: whether the API writes an answer at all.
        output_bytes: of the answer; ``None`` where it may be any length.
        reported_bytes: as many of them as ``report`` is of.
        held_nusd: what was held for it.
        output_tokens: bound of one answer, as sent to the provider.
    """

    is_free: bool
    report: UsageReport
    has_output: bool
    output_bytes: int | None
    reported_bytes: int
    held_nusd: int
    output_tokens: int


class Charge(Struct, frozen=True):
    """What to charge.

    Attributes:
        usage: the provider's own count, where it is whole and believed.
        told_nusd: what a usage that is not believed would cost; ``None``: there was none such.
    """

    cost_nusd: int
    usage: Usage | None = None
    told_nusd: int | None = None

    @property
    def is_confirmed(self) -> bool:
        """Whether the provider said so."""
        return self.usage is not None


FREE = Charge(0)


def charge_for(evidence: Evidence, price: Price, facts: Facts) -> Charge:
    """Return what an attempt with this ``evidence`` costs at ``price``."""
    if evidence.is_free:
        return FREE
    held = evidence.held_nusd
    needs = price_needs(facts.measured)
    unreported = max(0, (evidence.output_bytes or 0) - evidence.reported_bytes)
    usage = evidence.report.usage(has_output=evidence.has_output)
    if usage is not None and not unreported:
        cost = bill(price, usage, needs)
        return Charge(cost, usage) if cost <= held else Charge(held, told_nusd=cost)
    if evidence.output_bytes is None:
        # It may have been answered in full, for all we know, and cannot cost more than this.
        return Charge(held)
    most = evidence.output_tokens * facts.measured.choices
    output = min(most, (evidence.report.output_tokens or 0) + unreported)
    told = evidence.report.told_input
    if told is None:
        cost = upper_bound(
            price,
            input_tokens=facts.measured.max_input_tokens,
            output_tokens=output,
            needs=needs,
        )
    else:
        cost = _with_told_input(price, evidence.report, told, output, needs)
    return Charge(min(cost, held))


def _with_told_input(
    price: Price, report: UsageReport, told: int, output: int, needs: tuple[str, ...]
) -> int:
    """Return the cost of a prompt as told and at most so much of an answer."""
    price = price.at(told) if price.above else price
    of_prompt = structs.replace(
        report, output_tokens=0, total_tokens=None, reasoning_tokens=None, audio_output_tokens=None
    ).usage()
    prompt = bill(price, of_prompt or Usage(input_tokens=told), needs)
    answer = upper_bound(price, input_tokens=0, output_tokens=output, needs=needs)
    return prompt + answer - price.request_nusd
