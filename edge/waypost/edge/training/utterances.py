"""Compiles example utterances of each route into a semantic model.

Two linear readings of the same tf-idf vectors, added: centroids, which do better where routes
overlap (BANKING77, ten examples a route: 0.70 against 0.68), and ridge-regression heads, which
do better where they do not (CLINC150: 0.79 against 0.76).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from waypost.edge.training.packing import STEPS, knots_of, pack
from waypost.shared.errors import PolicyError
from waypost.shared.scoring.semantic import SemanticModel, SemanticScorer, hashes

__all__ = ["ACCEPT_AT", "FOLDS", "check_examples", "compile_utterances"]

Floats = NDArray[np.float32]

BUCKET_BITS = 12  # 2.7 kB a route in the manifest; 13 tell no more apart
# What is cut off by four bits a weight. In standard deviations of the weights that were fitted:
CLIP = 5.0  # in standard deviations of the weights that are not 0; 3 and 9 cost a point
RIDGE = 1.0  # 0.3 and 3 differ by less than draws of the examples do
FOLDS = 5
# One held-out example in ten is taken for none of the routes. On CLINC150: 88 % of prompts are
# accepted, 84 % of those rightly, and 72 % of what is out of scope is not; at 50: 93, 82, 55 %.
ACCEPT_AT = 100

TINY = 1e-9  # instead of dividing by zero: examples without a word, or all alike

MIN_UTTERANCES = 5  # a route; each fold leaves some to learn from


def compile_utterances(examples: Mapping[str, Sequence[str]], *, seed: int) -> SemanticModel:
    """Return a model that tells the routes in ``examples`` apart.

    The score is calibrated on examples that were held out: one in ten of those scores below 100.

    Raises:
        PolicyError: fewer than two routes, or a route with too few examples.
    """
    routes, texts, route = check_examples(examples)
    hits = _hits(texts)
    fold = np.random.default_rng(seed).permutation(len(texts)) % FOLDS
    fits: list[int] = []
    for held in range(FOLDS):
        seen = fold != held
        scorer = SemanticScorer(_fit(hits[seen], route[seen], routes))
        fits += [
            scorer.fit(text)[1] for text, is_seen in zip(texts, seen, strict=True) if not is_seen
        ]
    return structs.replace(_fit(hits, route, routes), knots=knots_of(np.maximum(fits, 0)))


def check_examples(
    examples: Mapping[str, Sequence[str]],
) -> tuple[tuple[str, ...], list[str], NDArray[np.int64]]:
    """Return the routes, their different examples, and the place of each one's route.

    Raises:
        PolicyError: as ``compile_utterances`` does.
    """
    if len(examples) < 2:
        raise PolicyError("semantic routes are told apart from each other; give at least two")
    for name, utterances in examples.items():
        if len(set(utterances)) < MIN_UTTERANCES:
            raise PolicyError(
                f"route '{name}' has {len(set(utterances))} different examples;"
                f" at least {MIN_UTTERANCES} are needed"
            )
    owner: dict[str, str] = {}
    for name, utterances in examples.items():
        for text in utterances:
            if owner.setdefault(text, name) != name:
                raise PolicyError(f"routes '{owner[text]}' and '{name}' share an example")
    routes = tuple(examples)
    texts = [text for name in routes for text in dict.fromkeys(examples[name])]
    route = np.repeat(
        np.arange(len(routes)), [len(set(utterances)) for utterances in examples.values()]
    )
    return routes, texts, route


def _hits(texts: Sequence[str]) -> Floats:
    """Return one row a text: 1 where it hits a bucket."""
    rows = np.zeros((len(texts), 1 << BUCKET_BITS), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        row[[value & (rows.shape[1] - 1) for value in hashes(text)]] = 1
    return rows


def _fit(hits: Floats, route: NDArray[np.int64], routes: tuple[str, ...]) -> SemanticModel:
    """Return the model for ``hits``, row by row of the route in ``route``; not calibrated."""
    count = len(hits)
    hit_by = hits.sum(axis=0)
    rarity = np.where(hit_by > 0, np.log((1 + count) / (1 + hit_by)) + 1, 0)
    inputs = _unit(hits * rarity)
    is_of = np.eye(len(routes))[route]
    centroids = _unit(is_of.T @ inputs)
    duals = np.linalg.solve(inputs @ inputs.T + RIDGE * np.eye(count), is_of - 1 / len(routes))
    heads = duals.T @ inputs
    weights = rarity * (
        centroids / max((inputs @ centroids.T).std(), TINY)
        + heads / max((inputs @ heads.T).std(), TINY)
    )
    # What a bucket says for all routes alike tells none of them apart.
    weights -= weights.mean(axis=0)
    spread = math.sqrt(float((weights**2).sum()) / max(1, int(np.count_nonzero(weights))))
    step = CLIP * max(spread, TINY) / STEPS
    return SemanticModel(
        routes=routes,
        bucket_bits=BUCKET_BITS,
        weights=pack(weights.T, step),
        knots=(0, 1),
        accept_at=ACCEPT_AT,
    )


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    unit: NDArray[np.floating] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), TINY
    )
    return unit
