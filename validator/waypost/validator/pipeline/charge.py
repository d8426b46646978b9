"""What one attempt costs: by what its provider told, else by what bounds it. Pure.

The rules:

- What a provider refused, or was never sent, is free.
- The provider's own count is believed when nothing more of it can follow.
- What is told is told: a side of the usage that came is charged by it, also when the stream was
  cut before the rest. The answer of such a stream is bounded by its bytes, since a token is a byte
  or more, and by what was told of it where that is more. A prompt of no tokens is not believed
  then: some providers begin with zeros.
- No attempt costs more than was held for it. A usage that says so is a mistake or a bound that
  does not hold, and either is for a person to look at: the charge is the hold, unconfirmed.
"""

from msgspec import Struct, structs

from waypost.shared.contracts import Facts
from waypost.shared.decision.costs import price_needs
from waypost.shared.money import Price, Usage, bill, upper_bound
from waypost.validator.dialects.usage import NOTHING, UsageReport

__all__ = ["Charge", "Evidence", "charge_for"]


class Evidence(Struct, frozen=True):
    """What is known of what an attempt used.

    Attributes:
        is_free: whether no provider charges for it.
        report: what the provider told.
        has_output: whether the API writes an answer at all.
        is_final: whether the provider will tell no more of what it used.
        output_bytes: of the answer; ``None`` where it may be any length.
        reported_bytes: as many of them as ``report`` is of.
        held_nusd: what was held for it.
        output_tokens: bound of one answer, as sent to the provider.
    """

    is_free: bool
    report: UsageReport
    has_output: bool
    is_final: bool
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
MAX_NUSD = 2**53 - 1  # what every JSON reader in any language holds exactly


def charge_for(evidence: Evidence, price: Price, facts: Facts) -> Charge:
    """Return what an attempt with this ``evidence`` costs at ``price``."""
    if evidence.is_free:
        return FREE
    report, held = evidence.report, evidence.held_nusd
    needs = price_needs(facts.measured)
    usage = report.usage(has_output=evidence.has_output)
    if usage is not None and evidence.is_final and not _unreported(evidence):
        cost = bill(price, usage, needs)
        return Charge(cost, usage) if cost <= held else _disbelieved(cost, held)
    if report is NOTHING and evidence.output_bytes is None:
        # It may have been answered in full, for all we know, and cannot cost more than this.
        return Charge(held)
    least = bill(price, report.at_least(), needs)
    if least > held:
        return _disbelieved(least, held)
    return Charge(max(least, min(_bound(evidence, price, facts, needs), held)))


def _disbelieved(told_nusd: int, held_nusd: int) -> Charge:
    return Charge(held_nusd, told_nusd=min(told_nusd, MAX_NUSD))


def _unreported(evidence: Evidence) -> int:
    """Return how many bytes of the answer came after the provider last counted."""
    return max(0, (evidence.output_bytes or 0) - evidence.reported_bytes)


def _output(evidence: Evidence, facts: Facts) -> int:
    """Return how many tokens the answer has at most."""
    most = evidence.output_tokens * facts.measured.choices
    written = evidence.output_bytes
    if written is None:
        return most
    report = evidence.report
    told = report.told_output + _unreported(evidence)
    if evidence.is_final and report.output_tokens is not None:
        return min(most, told)
    unseen = max(0, report.told_output - (report.output_tokens or 0))
    return min(most, max(told, written + unseen))


def _bound(evidence: Evidence, price: Price, facts: Facts, needs: tuple[str, ...]) -> int:
    """Return the most that an attempt can have cost of which not everything was told."""
    report, output = evidence.report, _output(evidence, facts)
    told = report.told_input
    if not told:
        most = max(facts.measured.max_input_tokens, report.at_least().input_tokens)
        return upper_bound(price, input_tokens=most, output_tokens=output, needs=needs)
    if price.above:
        price = price.at(told)
    prompt = bill(price, structs.replace(report.at_least(), output_tokens=0), needs)
    answer = upper_bound(price, input_tokens=0, output_tokens=output, needs=needs)
    return prompt + answer - price.request_nusd
