"""What a trained model is worth, beside orderings that need no training."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from scipy.optimize import isotonic_regression

from waypost.edge.training.curves import Grade, Outcomes, Prices, apgr_interval, grade, grade_random
from waypost.edge.training.labels import Label
from waypost.edge.training.train import Training
from waypost.shared.scoring.complexity import ComplexityScorer

__all__ = ["Report", "Threshold", "make_report"]

TRAINED, BUILT_IN, LENGTH = "trained", "built-in heuristic", "prompt length"


class Threshold(Struct, frozen=True, kw_only=True):
    """What a rule ``complexity: at least …`` would do. Percentages, but for quality and gain.

    Attributes:
        gain: how much better the strong model is on prompts that score just this, by isotonic
            regression: what the next call sent to it buys.
    """

    at_least: int
    calls: float
    quality: float
    cost: float
    gain: float


class Report(Struct, frozen=True, kw_only=True):
    """How a model did on prompts that it had not seen."""

    prompts: int
    weak: float
    strong: float
    grades: dict[str, Grade]
    intervals: dict[str, tuple[float, float]]
    thresholds: tuple[Threshold, ...]
    is_beaten_by_length: bool


def make_report(labels: Sequence[Label], trained: Training, prices: Prices, *, seed: int) -> Report:
    """Return how the held-out scores of ``trained`` do; ``seed`` draws the bootstrap samples."""
    outcomes = Outcomes(
        np.array([label.weak for label in labels]), np.array([label.strong for label in labels])
    )
    held_out = trained.held_out.astype(np.float64)
    built_in = ComplexityScorer()
    orders = {
        TRAINED: held_out,
        BUILT_IN: np.array([float(built_in.score(label.prompt)) for label in labels]),
        LENGTH: np.array([float(len(label.prompt)) for label in labels]),
    }
    gain = outcomes.strong - outcomes.weak
    grades = {name: grade(scores, outcomes, prices) for name, scores in orders.items()}
    grades["random"] = grade_random(outcomes, prices)
    # Ties are drawn, as the others' are by chance: a score of three values has no deciles.
    ties = np.random.default_rng(seed).random(len(labels)) * 1e-6
    grades["oracle"] = grade(gain + ties, outcomes, prices)
    order = np.argsort(held_out, kind="stable")
    fitted = np.empty(len(labels))
    fitted[order] = isotonic_regression(gain[order]).x
    thresholds: list[Threshold] = []
    for at_least in range(100, 1_000, 100):
        goes = held_out >= at_least
        share = float(goes.mean())
        thresholds.append(
            Threshold(
                at_least=at_least,
                calls=100 * share,
                quality=float(np.where(goes, outcomes.strong, outcomes.weak).mean()),
                cost=prices.share_of_strong(share),
                gain=float(fitted[np.abs(held_out - at_least).argmin()]),
            )
        )
    return Report(
        prompts=len(labels),
        weak=float(outcomes.weak.mean()),
        strong=float(outcomes.strong.mean()),
        grades=grades,
        intervals={
            name: apgr_interval(scores, outcomes, seed=seed) for name, scores in orders.items()
        },
        thresholds=tuple(thresholds),
        is_beaten_by_length=grades[LENGTH].apgr >= grades[TRAINED].apgr,
    )
