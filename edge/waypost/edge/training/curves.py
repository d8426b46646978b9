"""How good an ordering of prompts is at picking those that deserve the strong model.

The definitions are RouteLLM's (arXiv 2406.18665, section 3.3): PGR is the share of the quality
gap between the weak and the strong model that is recovered, over the share of calls that go to
the strong one; APGR its mean over all shares (a random order has 0.5); CPT50 and CPT80 the
percentage of strong calls that recovers 50 and 80 per cent (random: 50 and 80). Like theirs,
the curve has its points at the deciles of the score.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

__all__ = ["Grade", "Outcomes", "Prices", "apgr_interval", "grade", "grade_random"]

Floats = NDArray[np.float64]

TARGET_QUALITY = 0.95  # of the strong model's: where the costs are compared
BOOTSTRAPS = 200


class Outcomes(Struct, frozen=True):
    """Quality of each model's answer to each prompt, 0 to 1."""

    weak: Floats
    strong: Floats


class Prices(Struct, frozen=True, kw_only=True):
    """Dollars per million tokens; only their ratio counts. Defaults: RouteLLM, section 5.4."""

    weak: Annotated[float, Meta(gt=0)] = 0.24
    strong: Annotated[float, Meta(gt=0)] = 24.7

    def share_of_strong(self, calls: float) -> float:
        """Return the cost of sending the share ``calls`` to the strong model, in per cent."""
        return 100 * ((1 - calls) * self.weak / self.strong + calls)


class Grade(Struct, frozen=True, kw_only=True):
    """Percentages but for ``apgr``. ``cost`` is of what strong calls alone would cost."""

    apgr: float
    cpt50: float
    cpt80: float
    cost: float


def _apgr_cpt(scores: Floats, outcomes: Outcomes) -> tuple[float, float, float]:
    count = len(scores)
    weak = float(outcomes.weak.mean())
    gap = float(outcomes.strong.mean()) - weak
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    gains = np.concatenate([[0.0], np.cumsum((outcomes.strong - outcomes.weak)[order][::-1])])
    edges = np.unique(np.quantile(ordered, np.linspace(0, 1, 11)))
    # All calls strong at the lowest edge, none at the highest, where even its equals stay weak.
    calls = count - np.searchsorted(ordered, edges)
    calls[-1] = 0
    calls = calls[::-1]
    shares = calls / count
    recovered = gains[calls] / count / gap if gap else np.zeros(len(calls))
    apgr = float(np.trapezoid(recovered, shares))
    cpt50, cpt80 = np.interp([0.5, 0.8], recovered, shares * 100)
    return apgr, float(cpt50), float(cpt80)


def grade(scores: Floats, outcomes: Outcomes, prices: Prices) -> Grade:
    """Return how well sending the highest scores to the strong model does. Equals move together."""
    apgr, cpt50, cpt80 = _apgr_cpt(scores, outcomes)
    order = np.argsort(-scores, kind="stable")
    quality = outcomes.weak.sum() + np.concatenate(
        [[0.0], np.cumsum((outcomes.strong - outcomes.weak)[order])]
    )
    descending = scores[order]
    between_equals = np.concatenate([[False], descending[1:] == descending[:-1], [False]])
    enough = quality >= TARGET_QUALITY * outcomes.strong.sum() - 1e-12
    calls = int(np.flatnonzero(enough & ~between_equals)[0])
    return Grade(
        apgr=apgr, cpt50=cpt50, cpt80=cpt80, cost=prices.share_of_strong(calls / len(scores))
    )


def grade_random(outcomes: Outcomes, prices: Prices) -> Grade:
    """Return what a coin would be graded, in expectation."""
    weak, strong = float(outcomes.weak.mean()), float(outcomes.strong.mean())
    calls = max(0.0, (TARGET_QUALITY * strong - weak) / (strong - weak))
    return Grade(apgr=0.5, cpt50=50.0, cpt80=80.0, cost=prices.share_of_strong(calls))


def apgr_interval(scores: Floats, outcomes: Outcomes, *, seed: int) -> tuple[float, float]:
    """Return where 95 % of the APGRs of resampled prompts lie."""
    random = np.random.default_rng(seed)
    samples: list[float] = []
    for _ in range(BOOTSTRAPS):
        rows = random.integers(len(scores), size=len(scores))
        sample = Outcomes(outcomes.weak[rows], outcomes.strong[rows])
        if sample.strong.mean() > sample.weak.mean():
            samples.append(_apgr_cpt(scores[rows], sample)[0])
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
