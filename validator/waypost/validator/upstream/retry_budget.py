"""How much may be sent beyond what was asked for. Pure.

The rule: retries and hedges are a share of the ordinary requests, so that an ailing provider is
never met with a multiple of its load. After Finagle's retry budget.
"""

__all__ = ["ExtraBudget", "HedgeBudgets", "full_jitter_s"]

# Saved up at most, and had at the start: a validator with little traffic could otherwise never
# retry at all.
RESERVE = 10.0

FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0


class ExtraBudget:
    """At most ``percent`` of the requests more, and ten at once."""

    __slots__ = ("_share", "_tokens")

    def __init__(self, percent: float, *, saved: float = RESERVE) -> None:
        self._share = percent / 100
        self._tokens = saved if percent else 0.0

    def deposit(self) -> None:
        """Note an ordinary request."""
        self._tokens = min(RESERVE, self._tokens + self._share)

    def withdraw(self) -> bool:
        """Return whether one more may be sent; if so it is counted."""
        # Tenths do not add up to one exactly.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens -= 1
        return True


class HedgeBudgets:
    """How many of each route's requests may be asked twice; a route begins with none."""

    __slots__ = ("_budgets",)

    def __init__(self) -> None:
        self._budgets: dict[tuple[str, int], ExtraBudget] = {}

    def __call__(self, route: str, percent: int) -> ExtraBudget:
        """Return the budget of ``route``, at most ``percent`` of its requests."""
        budget = self._budgets.get((route, percent))
        if budget is None:
            budget = self._budgets[route, percent] = ExtraBudget(percent, saved=0.0)
        return budget


def full_jitter_s(tries: int, *, rng: float) -> float:
    """Return how long to wait before another try, after ``tries`` that failed.

    Anything from nothing to a bound that doubles, so that those who failed together do not come
    back together. Source: AWS Architecture Blog, "Exponential Backoff And Jitter".

    Args:
        rng: 0 to 1.
    """
    return rng * min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (tries - 1))
