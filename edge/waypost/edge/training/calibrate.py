"""Where to set a cascade's threshold, so that a stated loss of quality is not exceeded.

Conformal risk control (Angelopoulos, Bates, Fisch, Lei, Schuster, arXiv 2208.02814): the loss of
a request is what is given up by keeping the cheap answer, ``max(0, strong - weak)`` if its
confidence reaches the threshold and 0 if not. It falls as the threshold rises and is at most 1, so
for the lowest threshold with ``(n · mean loss + 1) / (n + 1) ≤ within`` the expected loss of a
further request like these is at most ``within``, for any n and any distribution.

The judge is fitted to one half of the answers and the threshold set on the other: on answers that
the judge has seen the guarantee would not hold.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from waypost.edge.training.curves import Outcomes, Prices, apgr_interval, grade
from waypost.edge.training.labels import Graded
from waypost.shared.scoring.judge import JudgeModel, features, judge

__all__ = ["Calibration", "Point", "calibrate", "fit_judge"]

Floats = NDArray[np.float64]

PENALTY = 1.0  # on standardised weights; a dozen of them need little
NEWTON_STEPS = 25


class Point(Struct, frozen=True, kw_only=True):
    """What one threshold, 0 to 1,000, would do.

    Attributes:
        escalated: percentage of requests that the strong model is asked for as well.
        cost: percentage of what the strong model alone would cost; the weak one is always paid.
        quality: mean of the answers told, 0 to 1.
    """

    threshold: int
    escalated: float
    cost: float
    quality: float


class Calibration(Struct, frozen=True, kw_only=True):
    """A threshold, what it promises, and what others would do.

    Attributes:
        chosen: ``None`` where there are too few answers to promise ``within``.
        judge: ``None`` where the answers came with a confidence.
        answers: that the threshold was set on.
        apgr: of ordering by confidence, and where 95 % of it lie.
    """

    within: float
    chosen: Point | None
    curve: tuple[Point, ...]
    weak: float
    strong: float
    answers: int
    apgr: float
    apgr_between: tuple[float, float]
    judge: JudgeModel | None


def calibrate(graded: Sequence[Graded], *, within: float, prices: Prices, seed: int) -> Calibration:
    """Return the cheapest threshold that gives up at most ``within`` of quality, in expectation.

    Args:
        graded: answers of the weak model, all with a confidence, or all with their text.
        seed: of the partition into two halves, where a judge is fitted.
    """
    model: JudgeModel | None = None
    confidences = [one.confidence for one in graded if one.confidence is not None]
    if len(confidences) == len(graded):
        sure = np.array(confidences)
    else:
        shuffled = list(graded)
        Random(seed).shuffle(shuffled)
        half = len(shuffled) // 2
        model = fit_judge(shuffled[:half])
        graded = shuffled[half:]
        sure = np.array([judge(model, one.answer or "") for one in graded])
    outcomes = Outcomes(
        np.array([one.weak for one in graded]), np.array([one.strong for one in graded])
    )
    # As the validator compares them: a confidence in thousandths with a whole threshold.
    mille = sure * 1_000
    order = np.argsort(mille)
    outcomes = Outcomes(outcomes.weak[order], outcomes.strong[order])
    kept_from = np.searchsorted(mille[order], np.arange(1_001))
    curve = _curve(kept_from, outcomes, prices)
    count = len(graded)
    loss = _from(np.maximum(0.0, outcomes.strong - outcomes.weak))[kept_from]
    promised = np.flatnonzero((loss + 1) / (count + 1) <= within)
    chosen = curve[int(promised[0])] if promised.size else None
    return Calibration(
        within=within,
        chosen=chosen,
        curve=curve,
        weak=float(outcomes.weak.mean()),
        strong=float(outcomes.strong.mean()),
        answers=count,
        apgr=grade(-mille[order], outcomes, prices).apgr,
        apgr_between=apgr_interval(-mille[order], outcomes, seed=seed),
        judge=model,
    )


def _from(values: Floats) -> Floats:
    """Return the sum of ``values`` from each place on."""
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


def _curve(kept_from: NDArray[np.int64], outcomes: Outcomes, prices: Prices) -> tuple[Point, ...]:
    count = len(outcomes.weak)
    told = _from(outcomes.weak - outcomes.strong)[kept_from] + outcomes.strong.sum()
    return tuple(
        Point(
            threshold=threshold,
            escalated=100 * int(escalated) / count,
            cost=100 * (prices.weak / prices.strong + int(escalated) / count),
            quality=float(quality) / count,
        )
        for threshold, (escalated, quality) in enumerate(zip(kept_from, told, strict=True))
    )


def fit_judge(graded: Sequence[Graded]) -> JudgeModel:
    """Return a judge of how the weak model's answer compares with the strong one's.

    Logistic regression on (1 + weak - strong) ÷ 2, as for complexity: a half is a tie. Where both
    fail, asking the strong model buys nothing.
    """
    values = np.array([features(one.answer or "") for one in graded])
    target = np.array([(1 + one.weak - one.strong) / 2 for one in graded])
    mean, spread = values.mean(axis=0), values.std(axis=0)
    spread[spread == 0] = 1.0
    inputs = np.hstack([(values - mean) / spread, np.ones((len(graded), 1))])
    penalty = np.diag([PENALTY] * values.shape[1] + [0.0])
    weights = np.zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(inputs @ weights, -50, 50)))
        gradient = inputs.T @ (p - target) + penalty @ weights
        hessian = (inputs.T * np.maximum(p * (1 - p), 1e-6)) @ inputs + penalty
        weights -= np.linalg.solve(hessian, gradient)
    plain = weights[:-1] / spread
    bias = float(weights[-1] - plain @ mean)
    return JudgeModel(
        weights=tuple(round(float(weight), 6) for weight in plain), bias=round(bias, 6)
    )
