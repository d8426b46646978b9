"""What the same requests would have cost on one model, and so what routing saved. Pure.

The one definition of *saved*, of report and console. The rules:

- A yardstick is named: by the operator (``report.against``), or else it is the best-rated model in
  regular use.
- Nothing is compared that totals do not hold. They hold tokens, so another model is taken to read
  and write as many; and the discount that a row had on its list price, as for input from a cache,
  is taken to hold for the other model too.
- Embeddings stay where they were: no model that writes could have made them.
- What an attempt cost that was not told is cost without an answer: the other model would not have
  had it.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from waypost.shared.contracts import Model, Policy
from waypost.shared.money import Price, Usage, bill
from waypost.validator.records.totals import StatsRow

__all__ = ["Alone", "alone_of", "best_in_use", "by_model", "writes"]

REGULAR_SHARE = 0.1  # of the answers


class Alone(Struct, frozen=True):
    """One model in the place of all.

    Attributes:
        model: ``None``: the best-rated that each request was allowed, as records tell it.
        is_chosen: whether somebody named it.
    """

    policy: Policy | None = None
    model: Model | None = None
    is_chosen: bool = False

    @property
    def name(self) -> str:
        """What it is, in words."""
        if self.model is None:
            return "the best-rated model that each request was allowed"
        regular = "" if self.is_chosen else ", the best-rated model in regular use"
        return f"{self.model.id}{regular}"

    def cost_nusd(self, rows: Iterable[StatsRow]) -> int:
        """Return what the requests of ``rows``, each of one model, would have cost."""
        if self.policy is None or self.model is None:
            return sum(row.cost_nusd + row.saved_nusd for row in rows)
        models = {model.id: model for model in self.policy.models}
        price = self.model.price
        return sum(_cost(row, models.get(row.model or ""), price) for row in by_model(rows))

    def saved_nusd(self, rows: Iterable[StatsRow]) -> int:
        """Return how much less the requests of ``rows`` did cost; negative if it was more."""
        rows = tuple(rows)
        return self.cost_nusd(rows) - sum(row.cost_nusd for row in rows)


def by_model(rows: Iterable[StatsRow]) -> list[StatsRow]:
    """Return one row for each model: what is compared is told of all its requests together."""
    found: dict[str | None, StatsRow] = {}
    for row in rows:
        have = found.get(row.model)
        found[row.model] = row if have is None else _joined(have, row)
    return list(found.values())


def _joined(one: StatsRow, other: StatsRow) -> StatsRow:
    return structs.replace(
        one,
        requests=one.requests + other.requests,
        cost_nusd=one.cost_nusd + other.cost_nusd,
        saved_nusd=one.saved_nusd + other.saved_nusd,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
    )


def writes(model: Model) -> bool:
    """Whether a model answers anything but embeddings."""
    return any(endpoint != "embeddings" for endpoint in model.endpoints)


def _cost(row: StatsRow, own: Model | None, price: Price) -> int:
    if (
        not row.output_tokens
        and row.input_tokens
        and (own is None or "embeddings" in own.endpoints)
    ):
        return row.cost_nusd
    if own is not None and not writes(own):
        return row.cost_nusd
    full, listed = _list_nusd(row, price), 0 if own is None else _list_nusd(row, own.price)
    # Above its list price a row has attempts that another model would not have had.
    return full if row.cost_nusd >= listed else full * row.cost_nusd // listed


def _list_nusd(row: StatsRow, price: Price) -> int:
    if not (row.input_tokens or row.output_tokens):
        return 0
    # A step of the price is for one long prompt, and not for many that are long together.
    price = price.at(row.input_tokens // max(1, row.requests)) if price.above else price
    usage = Usage(input_tokens=row.input_tokens, output_tokens=row.output_tokens)
    return bill(price, usage) + price.request_nusd * (row.requests - 1)


def alone_of(policy: Policy | None, rows: Iterable[StatsRow], against: str | None) -> Alone:
    """Return the yardstick of a time.

    Args:
        rows: of all requests of that time, each of one model.
        against: the model that somebody named. One that the policy does not have, or that writes
            nothing, is passed over.
    """
    if policy is None:
        return Alone()
    named = next((one for one in policy.models if one.id == against and writes(one)), None)
    if named is not None:
        return Alone(policy, named, True)
    return Alone(policy, best_in_use(policy, by_model(rows)))


def best_in_use(policy: Policy, rows: Sequence[StatsRow]) -> Model | None:
    """Return the best-rated model that answered a good part, so that no rare one is the yardstick.

    Args:
        rows: one for each model.
    """
    answered = {row.model: row.requests for row in rows if row.output_tokens}
    few = REGULAR_SHARE * sum(answered.values())
    models = [model for model in policy.models if model.id in answered and writes(model)]
    regular = [model for model in models if answered[model.id] >= few]
    if not regular:
        return max(models, key=lambda one: answered[one.id], default=None)
    return max(regular, key=lambda one: (one.quality, one.price.output_nusd_per_mtok))
