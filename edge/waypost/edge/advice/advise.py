"""Whether routing is worth it yet, from a usage export. Says no where it is no.

The rule: every figure is of the export and of listed prices (genai-prices), and what neither can
tell is said: an export has no quality in it, so a saving is what the bill would fall by *if* the
cheaper model's answers do.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Literal

from genai_prices import Usage, calc_price
from msgspec import Struct, structs

from waypost.edge.advice.usage_export import Used

__all__ = ["Advice", "ModelBill", "Rule", "advise"]

Verdict = Literal["not_yet", "perhaps", "worth_it", "nothing_to_save", "unknown"]

LOW_USD, HIGH_USD = 500, 1_000  # a month; below, a person's time costs more than routing saves
MONTH_DAYS = 30
FEW_DAYS = 7  # fewer do not hold a week's shape
MIN_SHARE = Decimal("0.10")  # of the bill; less is within what a policy's upkeep costs
MIN_FACTOR = 2  # a model that is not twice as dear is not worth a rule
THRESHOLDS = (100, 500, 2_000)  # input tokens of a request that is short

# The small model of each maker: the same contract, the same key, the same SDK.
SMALL = {
    "anthropic": "claude-haiku-4-5",
    "google": "gemini-2.5-flash",
    "mistral": "mistral-small-latest",
    "openai": "gpt-5-mini",
}
SOURCE = f"genai-prices {version('genai-prices')}"


class Rates(Struct, frozen=True):
    """What a token costs, in dollars. Of prices in tiers, the first; a provider may charge more."""

    provider: str
    input_usd: Decimal
    cached_usd: Decimal
    output_usd: Decimal

    def cost(self, used: Used) -> Decimal:
        """Return what ``used`` costs at these rates."""
        plain = used.input_tokens - used.cached_tokens
        return (
            plain * self.input_usd
            + used.cached_tokens * self.cached_usd
            + used.output_tokens * self.output_usd
        )


class ModelBill(Struct, frozen=True, kw_only=True):
    """One model's part, in the time of the export."""

    model: str
    requests: int
    cost_usd: float
    is_priced: bool


class Rule(Struct, frozen=True, kw_only=True):
    """Send requests of ``model`` below ``input_tokens_below`` to ``to`` instead.

    Attributes:
        requests_share: of all requests.
        saves_usd: a month, if the cheaper answers do.
    """

    model: str
    to: str
    input_tokens_below: int
    requests_share: float
    saves_usd: float
    policy: str


class Advice(Struct, frozen=True, kw_only=True):
    """What was found, and what to do.

    Attributes:
        days: that the export spans; ``None`` without times, and then it is taken for a month.
        monthly_usd: the bill, scaled to thirty days.
        caching_usd: a month, what prompt caching could save at most, where little is cached.
        unpriced: models that the price list does not know and the export gives no cost for.
        is_summed: whether rows are sums, so that sizes of requests are averages.
        is_uncounted: whether rows are sums of so many requests that nobody tells.
    """

    verdict: Verdict
    sentences: tuple[str, ...]
    days: float | None
    monthly_usd: float
    models: tuple[ModelBill, ...]
    rules: tuple[Rule, ...]
    caching_usd: float
    unpriced: tuple[str, ...]
    is_summed: bool
    is_uncounted: bool = False
    prices: str = SOURCE


class _Sums:
    """All of an export, one pass over its rows."""

    def __init__(self, cheap: str | None) -> None:
        self.rates: dict[str, Rates | None] = {}
        self.requests: dict[str, int] = {}
        self.cost: dict[str, Decimal] = {}
        self.saved: dict[tuple[str, str, int], Decimal] = {}
        self.moved: dict[tuple[str, str, int], int] = {}
        self.uncached = Decimal(0)
        self.is_summed = self.is_uncounted = False
        self.first: datetime | None = None
        self.last: datetime | None = None
        self._cheap = cheap
        self._to: dict[str, str | None] = {}

    def rates_of(self, model: str) -> Rates | None:
        if model not in self.rates:
            self.rates[model] = _rates(model)
        return self.rates[model]

    def add(self, used: Used) -> None:
        model, rates = used.model, self.rates_of(used.model)
        self.requests[model] = self.requests.get(model, 0) + used.requests
        listed = None if rates is None else rates.cost(used)
        cost = used.cost_usd if used.cost_usd is not None else listed
        if cost is not None:
            self.cost[model] = self.cost.get(model, Decimal(0)) + cost
        self.is_summed |= used.requests > 1
        self.is_uncounted |= not used.is_counted
        if used.at is not None:
            self.first = min(self.first or used.at, used.at)
            self.last = max(self.last or used.at, used.at)
        if rates is None or cost is None or not listed:
            return
        plain = used.input_tokens - used.cached_tokens
        self.uncached += plain * (rates.input_usd - rates.cached_usd)
        to = self._cheaper(model) if used.is_counted else None
        other = self.rates_of(to) if to is not None else None
        if to is None or other is None:
            return
        # What was paid may be a negotiated price: the share saved is what the list can tell.
        saved = cost * (1 - other.cost(used) / listed)
        for below in THRESHOLDS:
            if used.input_tokens / used.requests < below and saved > 0:
                key = (model, to, below)
                self.saved[key] = self.saved.get(key, Decimal(0)) + saved
                self.moved[key] = self.moved.get(key, 0) + used.requests

    def _cheaper(self, model: str) -> str | None:
        if model not in self._to:
            rates = self.rates_of(model)
            to = self._cheap or (SMALL.get(rates.provider) if rates is not None else None)
            other = self.rates_of(to) if to is not None else None
            is_dear = (
                rates is not None
                and other is not None
                and rates.input_usd + rates.output_usd
                >= MIN_FACTOR * (other.input_usd + other.output_usd)
            )
            self._to[model] = to if is_dear else None
        return self._to[model]


def _rates(model: str) -> Rates | None:
    """Return the listed prices; gateways write the provider before the model's name."""
    maker, _, name = model.rpartition("/")
    # Some names say nothing of their maker, as those of OpenAI's embeddings.
    known: list[tuple[str, str | None]] = [(name, each) for each in SMALL]
    for reference, provider in (
        (model, None),
        (name, maker.rpartition("/")[2]),
        (name, None),
        *known,
    ):
        if not reference or provider == "":
            continue
        try:
            found = [
                calc_price(Usage(**usage), reference, provider_id=provider)
                for usage in (
                    {"input_tokens": 1_000},
                    {"input_tokens": 1_000, "cache_read_tokens": 1_000},
                    {"output_tokens": 1_000},
                )
            ]
        except LookupError:
            continue
        plain, cached, output = (Decimal(one.total_price) / 1_000 for one in found)
        return Rates(found[0].provider.id, plain, cached or plain, output)
    return None


def advise(rows: Iterable[Used], *, cheap: str | None = None) -> Advice:
    """Return what the export says about routing.

    Args:
        cheap: the model to compare with, instead of the small one of each maker.
    """
    sums = _Sums(cheap)
    for used in rows:
        sums.add(used)
    days = _days(sums)
    scale = Decimal(MONTH_DAYS) / Decimal(days or MONTH_DAYS)
    monthly = sum(sums.cost.values(), Decimal(0)) * scale
    rules = _rules(sums, scale)
    verdict = _verdict(sums, monthly, rules)
    unpriced = tuple(sorted(set(sums.requests) - set(sums.cost)))
    bills = [
        ModelBill(
            model=model,
            requests=requests,
            cost_usd=round(float(sums.cost.get(model, 0)), 2),
            is_priced=model in sums.cost,
        )
        for model, requests in sums.requests.items()
    ]
    advice = Advice(
        verdict=verdict,
        sentences=(),
        days=days,
        monthly_usd=round(float(monthly), 2),
        models=tuple(sorted(bills, key=lambda bill: -bill.cost_usd)),
        rules=rules,
        caching_usd=round(float(sums.uncached * scale), 2),
        unpriced=unpriced,
        is_summed=sums.is_summed,
        is_uncounted=sums.is_uncounted,
    )
    return structs.replace(advice, sentences=tuple(_sentences(advice)))


def _days(sums: _Sums) -> float | None:
    if sums.first is None or sums.last is None:
        return None
    # A day's sum is stamped with its beginning.
    return round(max((sums.last - sums.first).total_seconds() / 86_400, 0) + 1, 2)


def _rules(sums: _Sums, scale: Decimal) -> tuple[Rule, ...]:
    total = sum(sums.requests.values())
    rules = [
        Rule(
            model=model,
            to=to,
            input_tokens_below=below,
            requests_share=round(sums.moved[model, to, below] / total, 4),
            saves_usd=round(float(saved * scale), 2),
            policy=_policy(to, below),
        )
        for (model, to, below), saved in sums.saved.items()
    ]
    return tuple(sorted(rules, key=lambda rule: -rule.saves_usd))


def _policy(to: str, below: int) -> str:
    return f"- name: short\n  when: {{input_tokens: {{below: {below}}}}}\n  models: {to}"


def _verdict(sums: _Sums, monthly: Decimal, rules: tuple[Rule, ...]) -> Verdict:
    if not sums.cost:
        return "unknown"
    if monthly < LOW_USD:
        return "not_yet"
    if sums.is_uncounted and not rules:
        return "unknown"
    if not rules or Decimal(str(_together(rules))) < MIN_SHARE * monthly:
        return "nothing_to_save"
    return "perhaps" if monthly < HIGH_USD else "worth_it"


def _together(rules: Iterable[Rule]) -> float:
    """Return what the best rule of each model saves; rules of one model contain each other."""
    best: dict[str, float] = {}
    for rule in rules:
        best[rule.model] = max(best.get(rule.model, 0), rule.saves_usd)
    return sum(best.values())


def _span(advice: Advice) -> str:
    if advice.days is None:
        return "a month, as it says no times"
    return "one day" if advice.days == 1 else f"{advice.days:g} days"


_ANSWERS: Mapping[Verdict, str] = {
    "not_yet": "Not worth it yet.",
    "perhaps": "Perhaps: it pays if a rule is quick to try.",
    "worth_it": "Worth it.",
    "nothing_to_save": "Not for the money.",
    "unknown": "Cannot say.",
}


def _sentences(advice: Advice) -> Iterable[str]:
    yield _ANSWERS[advice.verdict]
    if advice.verdict == "unknown" and not advice.monthly_usd:
        yield "No model of this export is in the price list, and it has no column of costs."
        return
    yield f"The export spans {_span(advice)}; that is ${advice.monthly_usd:,.2f} a month."
    if advice.days is not None and advice.days < FEW_DAYS:
        yield (
            f"So few days say little of a month: weekends and the ends of months differ. Export at"
            f" least {FEW_DAYS} days before you act on this."
        )
    if advice.is_uncounted:
        yield (
            "This export tells sums and not how many requests they are of, so nobody can say how"
            " long a request is, nor what a rule about its length saves. An export with a column of"
            " requests, or with a row for each request, tells it."
        )
    together = _together(advice.rules)
    match advice.verdict:
        case "unknown":
            pass
        case "not_yet" if advice.is_uncounted:
            yield (
                f"Below about ${LOW_USD} a month, writing rules, keeping them right and watching"
                " the answers costs more than it saves."
            )
        case "not_yet":
            yield (
                f"Below about ${LOW_USD} a month, writing rules, keeping them right and watching"
                f" the answers costs more than it saves: at most ${together:,.2f} a month here."
                f" Come back at ${HIGH_USD:,}, or when you need budgets, compliance or an answer to"
                " 'why', which are reasons of their own."
            )
        case "nothing_to_save":
            yield (
                f"All rules together would save ${together:,.2f} a month, less than a tenth of the"
                " bill: most of it is on cheap models already, or in requests that are long."
            )
        case _:
            yield f"The best rule of each model together would save ${together:,.2f} a month."
    if advice.rules:
        best = advice.rules[0]
        yield (
            f"The rule that would save most: requests of {best.model} with fewer than"
            f" {best.input_tokens_below:,} input tokens to {best.to}. That is"
            f" {best.requests_share:.0%} of all requests and ${best.saves_usd:,.2f} a month, if its"
            " answers do: an export cannot tell. Try it on a share of the traffic first."
        )
    if advice.is_summed:
        yield (
            "Rows of this export are sums of many requests, so a request's size is an average;"
            " rows of single requests would tell more."
        )
    if advice.caching_usd > max(together, 0.1 * advice.monthly_usd):
        yield (
            f"Look at prompt caching first: up to ${advice.caching_usd:,.2f} a month is paid for"
            " input at the full price, as far as prompts begin alike."
        )
    if advice.unpriced:
        yield f"Without a price, and so left out: {', '.join(advice.unpriced[:8])}."
