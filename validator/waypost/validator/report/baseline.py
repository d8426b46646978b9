"""What the same requests would have cost on one model: the yardstick of a report. Pure.

The rule: a yardstick is named, and nothing is compared that totals do not hold. They hold tokens,
so another model is taken to read and write as many; and the discount that a row had on its list
price, as for input from a cache, is taken to hold for the other model too.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from waypost.shared.contracts import Model, Policy
from waypost.shared.money import Price, Usage, bill
from waypost.validator.records import StatsRow

__all__ = ["Alone", "best_in_use"]

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

    def cost_nusd(self, rows: Iterable[StatsRow]) -> int:
        """Return what the requests of ``rows``, each of one model, would have cost."""
        if self.policy is None or self.model is None:
            return sum(row.cost_nusd + row.saved_nusd for row in rows)
        prices = {model.id: model.price for model in self.policy.models}
        return sum(_cost(row, prices.get(row.model or ""), self.model.price) for row in rows)


def _cost(row: StatsRow, paid: Price | None, price: Price) -> int:
    full, listed = _list_nusd(row, price), 0 if paid is None else _list_nusd(row, paid)
    # Above its list price a row has attempts that another model would not have had.
    return full if row.cost_nusd >= listed else full * row.cost_nusd // listed


def _list_nusd(row: StatsRow, price: Price) -> int:
    if not (row.input_tokens or row.output_tokens):
        return 0
    usage = Usage(input_tokens=row.input_tokens, output_tokens=row.output_tokens)
    return bill(price, usage) + price.request_nusd * (row.requests - 1)


def best_in_use(policy: Policy, rows: Sequence[StatsRow]) -> Model | None:
    """Return the best-rated model that answered a good part, so that no rare one is the yardstick.

    Args:
        rows: one for each model.
    """
    answered = {row.model: row.requests for row in rows if row.output_tokens}
    few = REGULAR_SHARE * sum(answered.values())
    models = [model for model in policy.models if model.id in answered]
    regular = [model for model in models if answered[model.id] >= few]
    if not regular:
        return max(models, key=lambda one: answered[one.id], default=None)
    return max(regular, key=lambda one: (one.quality, one.price.output_nusd_per_mtok))
