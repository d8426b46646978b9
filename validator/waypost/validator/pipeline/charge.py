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

from collections.abc import Iterator

from msgspec import UNSET, Struct, structs

from waypost.shared.contracts import Facts, HostedTool, Measured, Model
from waypost.shared.decision.costs import bound_nusd, calls_of, factor_of, price_needs, read_again
from waypost.shared.money import Usage, bill, upper_bound
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


def charge_for(evidence: Evidence, model: Model, facts: Facts) -> Charge:
    """Return what an attempt at ``model`` costs that has this ``evidence``."""
    if evidence.is_free:
        return FREE
    report, held, measured = evidence.report, evidence.held_nusd, facts.measured
    needs = price_needs(measured)
    usage = report.usage(has_output=evidence.has_output)
    if usage is not None and evidence.is_final and not _unreported(evidence):
        cost = _with_extras(bill(model.price, usage, needs), model, measured, report)
        return Charge(cost, usage) if cost <= held else _disbelieved(cost, held)
    if report is NOTHING and evidence.output_bytes is None:
        # It may have been answered in full, for all we know, and cannot cost more than this.
        return Charge(held)
    least = _with_factor(bill(model.price, report.at_least(), needs), model, measured, report)
    if least > held:
        return _disbelieved(least, held)
    return Charge(max(least, min(_bound(evidence, model, measured, needs), held)))


def _disbelieved(told_nusd: int, held_nusd: int) -> Charge:
    return Charge(held_nusd, told_nusd=min(told_nusd, MAX_NUSD))


def _unreported(evidence: Evidence) -> int:
    """Return how many bytes of the answer came after the provider last counted."""
    return max(0, (evidence.output_bytes or 0) - evidence.reported_bytes)


def _output(evidence: Evidence, measured: Measured) -> int:
    """Return how many tokens the answer has at most."""
    most = evidence.output_tokens * measured.choices
    written = evidence.output_bytes
    if written is None:
        return most
    report = evidence.report
    told = report.told_output + _unreported(evidence)
    if evidence.is_final and report.output_tokens is not None:
        return min(most, told)
    unseen = max(0, report.told_output - (report.output_tokens or 0))
    return min(most, max(told, written + unseen))


def _bound(evidence: Evidence, model: Model, measured: Measured, needs: tuple[str, ...]) -> int:
    """Return the most that an attempt can have cost of which not everything was told."""
    report, output = evidence.report, _output(evidence, measured)
    told = report.told_input
    if told:
        tokens = _with_told_input(model, measured, report, told, output)
        return _with_extras(tokens, model, measured, report)
    most = bound_nusd(model, measured, output_tokens=output)
    parts = report.at_least().input_tokens
    if parts <= measured.max_input_tokens:
        return most
    tokens = upper_bound(model.price, input_tokens=parts, output_tokens=output, needs=needs)
    return max(most, _with_extras(tokens, model, measured, report))


def _with_factor(tokens_nusd: int, model: Model, measured: Measured, report: UsageReport) -> int:
    """Return what tokens that cost so much cost in the tier that was told, or else asked for."""
    if measured.extras is UNSET and not report.asks:
        return tokens_nusd
    told = {ask.partition("=")[0]: ask for ask in report.asks}
    for extra in measured.extras or ():
        if extra.kind == "price":
            told.setdefault(extra.at, extra.name)
    return -(-tokens_nusd * factor_of(model.price, told.values()) // 100)


def _with_extras(tokens_nusd: int, model: Model, measured: Measured, report: UsageReport) -> int:
    """Return what tokens that cost so much cost with all that was asked for beside them."""
    cost = _with_factor(tokens_nusd, model, measured, report)
    if measured.extras is UNSET:
        return cost
    return cost + sum(tool.call_nusd * count for tool, count in _called(model, measured, report))


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
        report.at_least(), output_tokens=0, reasoning_tokens=0, audio_output_tokens=0
    )
    prompt = bill(price, of_prompt, needs)
    # What was told is of the first time that the prompt was read.
    again = read_again(told, output, _called(model, measured, report)) - told
    rest = upper_bound(price, input_tokens=again, output_tokens=output, needs=needs)
    return prompt + rest - price.request_nusd
