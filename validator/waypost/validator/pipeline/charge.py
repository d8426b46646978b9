"""What one attempt costs: by what its provider told, else by what bounds it. Pure.

The rules:

- What a provider refused, or was never sent, is free.
- What is told is told: a side of the usage that came is charged by it, also when the stream was
  cut before the rest. What came after the last word of the usage is bounded by its bytes, since a
  token is a byte or more.
- No attempt costs more than was held for it. A usage that says so is a mistake or a bound that
  does not hold, and either is for a person to look at: the charge is the hold, unconfirmed.
"""

from collections.abc import Iterator

from msgspec import UNSET, Struct, structs

from waypost.shared.contracts import Facts, HostedTool, Measured, Model
from waypost.shared.decision.costs import bound_nusd, calls_of, factor_of, price_needs, read_again
from waypost.shared.money import Usage, bill, upper_bound
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


def charge_for(evidence: Evidence, model: Model, facts: Facts) -> Charge:
    """Return what an attempt at ``model`` costs that has this ``evidence``."""
    if evidence.is_free:
        return FREE
    held = evidence.held_nusd
    measured = facts.measured
    unreported = max(0, (evidence.output_bytes or 0) - evidence.reported_bytes)
    usage = evidence.report.usage(has_output=evidence.has_output)
    if usage is not None and not unreported:
        tokens = bill(model.price, usage, price_needs(measured))
        cost = _with_extras(tokens, model, measured, evidence.report)
        return Charge(cost, usage) if cost <= held else Charge(held, told_nusd=cost)
    if evidence.output_bytes is None:
        # It may have been answered in full, for all we know, and cannot cost more than this.
        return Charge(held)
    most = evidence.output_tokens * measured.choices
    output = min(most, (evidence.report.output_tokens or 0) + unreported)
    told = evidence.report.told_input
    if told is None:
        return Charge(min(bound_nusd(model, measured, output_tokens=output), held))
    tokens = _with_told_input(model, measured, evidence.report, told, output)
    return Charge(min(_with_extras(tokens, model, measured, evidence.report), held))


def _with_extras(tokens_nusd: int, model: Model, measured: Measured, report: UsageReport) -> int:
    """Return what tokens that cost so much cost with all that was asked for beside them."""
    if measured.extras is UNSET and not report.asks:
        return tokens_nusd
    told = {ask.partition("=")[0]: ask for ask in report.asks}
    for extra in measured.extras or ():
        if extra.kind == "price":
            told.setdefault(extra.at, extra.name)
    percent = factor_of(model.price, told.values())
    calls = sum(tool.call_nusd * count for tool, count in _called(model, measured, report))
    return -(-tokens_nusd * percent // 100) + calls


def _called(
    model: Model, measured: Measured, report: UsageReport
) -> Iterator[tuple[HostedTool, int]]:
    """Give how often each tool was called: as told, as seen, or as often as it may be."""
    told = dict(report.calls or ())
    # Chat completions have no word for a call, unless their usage counts them.
    is_seen = report.calls is not None or measured.endpoint != "chat.completions"
    for tool, most in calls_of(model, measured):
        yield tool, told.get(tool.name, 0) if is_seen else most


def _with_told_input(
    model: Model, measured: Measured, report: UsageReport, told: int, output: int
) -> int:
    """Return the cost of a prompt as told and at most so much of an answer."""
    needs = price_needs(measured)
    price = model.price.at(told) if model.price.above else model.price
    of_prompt = structs.replace(
        report, output_tokens=0, total_tokens=None, reasoning_tokens=None, audio_output_tokens=None
    ).usage()
    prompt = bill(price, of_prompt or Usage(input_tokens=told), needs)
    # What was told is of the first time that the prompt was read.
    again = read_again(told, output, _called(model, measured, report)) - told
    rest = upper_bound(price, input_tokens=again, output_tokens=output, needs=needs)
    return prompt + rest - price.request_nusd
