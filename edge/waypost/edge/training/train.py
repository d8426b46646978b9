"""Fits a complexity model to outcomes, and says how it does on prompts it has not seen.

What is predicted is which model wins: a logistic regression on (1 + strong − weak) ÷ 2, so 1 is
a prompt that only the strong model gets right, 0 one that only the weak does, ½ a tie. Whether
the weak model fails is the wrong target: the strong one fails on many of the same prompts, and
paying for it there buys nothing (APGR on MMLU 0.54 against 0.60, before the rest was added).

Every inverse scale below was set once, on MMLU's questions with several partitions into folds,
and left alone for the other sets: the plateau is wide, and finer tuning fits the noise.
"""

import math
from collections.abc import Sequence
from itertools import compress
from typing import cast

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array, diags_array, hstack
from scipy.special import expit

from waypost.edge.training.labels import Label
from waypost.edge.training.packing import STEPS, knots_of, pack
from waypost.shared.scoring.complexity import (
    LONGEST_RUN,
    ComplexityModel,
    ComplexityScorer,
    Reading,
    read,
)

__all__ = ["Training", "fit", "train"]

Floats = NDArray[np.float64]

BUCKET_BITS = 14  # 33 kB in the manifest. APGR on MMLU at 12: 0.62, at 13: 0.63, at 14 to 16: 0.63
LOGIT = 1 << 20  # the unit of raw scores, fine enough for a weight times one thousandth

PENALTY = 1.0
# The topics speak for the single words too, so these count less. APGR with ones: 0.63.
LENGTH_FACTORS = (0.7, 1.0, 1.0)

# Mean squares of what the penalty is laid on, so that it weighs alike on any set.
GRAMS_SHARE = 3.0
FEATURES_SHARE = 0.05
TOPICS_SHARE = 1.0

# Directions in which single words vary most, so that words that occur together share a weight:
# 1,300 labels say little of any one word. APGR on MMLU without: 0.62.
TOPICS = 10


class Training(Struct, frozen=True):
    """A model, and what was learnt about it.

    Attributes:
        held_out: each label's score, by a model that never saw its prompt.
    """

    model: ComplexityModel
    held_out: NDArray[np.int64]


def train(labels: Sequence[Label], *, folds: int, seed: int) -> Training:
    """Return a model fitted to all ``labels``, and what models fitted without each say of it.

    The score is calibrated to mean a share of traffic: one label in ten scores above 900. The
    shares are those of the held-out scores, since a model is surer of what it has seen.
    """
    readings = [read(label.prompt) for label in labels]
    wins = np.array([(1 + label.strong - label.weak) / 2 for label in labels])
    # A prompt that occurs twice is in one fold, or the model would have seen it after all.
    group: NDArray[np.int64] = np.unique([label.prompt for label in labels], return_inverse=True)[1]
    fold = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group] % folds
    raw = np.zeros(len(labels), dtype=np.int64)
    for held in range(folds):
        seen = fold != held
        scorer = ComplexityScorer(fit(list(compress(readings, seen)), wins[seen]))
        raw[~seen] = [scorer.raw(label.prompt) for label in compress(labels, ~seen)]
    model = structs.replace(fit(readings, wins), knots=knots_of(raw))
    calibrated = ComplexityScorer(model).calibrated
    return Training(model, np.array([calibrated(int(value)) for value in raw]))


def fit(readings: Sequence[Reading], wins: Floats) -> ComplexityModel:
    """Return the model that predicts ``wins`` from ``readings``, uncalibrated."""
    size = 1 << BUCKET_BITS
    hits = _hits(readings)
    hit_by = np.bincount(hits.indices, minlength=hits.shape[1])
    used = np.flatnonzero(hit_by)
    # Rare grams say more: weighed as in tf-idf. A gram that all prompts share says nothing.
    worth = np.log((1 + len(readings)) / (1 + hit_by)) * np.repeat(LENGTH_FACTORS, size)
    grams, gram_factor = _scaled((hits @ diags_array(worth))[:, used], GRAMS_SHARE)
    singles = grams[:, used < size]
    directions = _topics(singles)
    themes, theme_factor = _scaled(csr_array(singles @ directions), TOPICS_SHARE)
    features = np.array([reading.features for reading in readings], dtype=np.float64)
    middle, spread = features.mean(axis=0), features.std(axis=0) + 1.0
    traits, trait_factor = _scaled(csr_array((features - middle) / spread), FEATURES_SHARE)

    weights, bias = _regress(csr_array(hstack([grams, themes, traits])), wins)
    of_grams, of_themes, of_traits = np.split(
        weights, [grams.shape[1], grams.shape[1] + themes.shape[1]]
    )
    # All is linear in the buckets, so the topics fold into the weights of their words.
    of_grams[used < size] += directions @ of_themes * theme_factor
    of_grams *= gram_factor * worth[used]
    of_traits = of_traits * trait_factor / spread

    step = float(np.abs(of_grams).max()) / STEPS or 1.0
    buckets = np.zeros(len(worth))
    buckets[used] = of_grams
    return ComplexityModel(
        weights=tuple(round(float(weight) * LOGIT) for weight in of_traits),
        bias=round((bias - float(of_traits @ middle)) * LOGIT),
        gram_scale=round(step * LOGIT),
        bucket_bits=BUCKET_BITS,
        buckets=pack(buckets, step),
        knots=(-8 * LOGIT, 8 * LOGIT),
    )


def _hits(readings: Sequence[Reading]) -> csr_array:
    """Return the buckets that each reading hits, each as 1 ÷ √(their number), table by table."""
    mask = (1 << BUCKET_BITS) - 1
    columns: list[int] = []
    values: list[float] = []
    ends = [0]
    for reading in readings:
        hit = [
            (length << BUCKET_BITS) + bucket
            for length, hashes in enumerate(reading.grams)
            for bucket in {value & mask for value in hashes}
        ]
        columns += hit
        values += [1 / math.sqrt(len(hit) or 1)] * len(hit)
        ends.append(len(columns))
    width = LONGEST_RUN << BUCKET_BITS
    return csr_array((values, columns, ends), shape=(len(readings), width))


def _topics(singles: csr_array) -> Floats:
    """Return the directions of most variance, each over the root of its strength.

    By subspace iteration, which minds neither a rank below ``TOPICS`` nor equal strengths.
    """
    found = np.random.default_rng(0).standard_normal((singles.shape[1], 2 * TOPICS))
    for _ in range(20):
        found = np.linalg.qr(singles.T @ (singles @ found)).Q
    _, strengths, mix = np.linalg.svd(singles @ found, full_matrices=False)
    directions: Floats = found @ mix[:TOPICS].T / np.sqrt(np.maximum(strengths[:TOPICS], 1e-9))
    return directions


def _scaled(matrix: csr_array, share: float) -> tuple[csr_array, float]:
    """Return ``matrix`` times a factor that makes its rows' mean square ``share``, and that."""
    factor = math.sqrt(share * matrix.shape[0] / max(float((matrix.data**2).sum()), 1e-9))
    return matrix * factor, factor


def _regress(inputs: csr_array, wins: Floats) -> tuple[Floats, float]:
    """Return weights and bias of the ridge-penalised logistic regression."""

    def loss(point: Floats) -> tuple[float, Floats]:
        weights, bias = point[:-1], point[-1]
        logits = inputs @ weights + bias
        errors = cast("Floats", expit(logits)) - wins
        value = float((np.logaddexp(0, logits) - wins * logits).sum())
        slope = np.append(inputs.T @ errors + PENALTY * weights, errors.sum())
        return value + PENALTY / 2 * float(weights @ weights), slope

    found = minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B")
    point = cast("Floats", found.x)
    return point[:-1], float(point[-1])
