"""Compiles example utterances of each route into an embedding model: softmax regression.

On embeddings it does better than what words are compiled to. On the same 600 prompts, with ten
examples a route: 0.85 against 0.81 (BANKING77) and 0.92 against 0.88 (CLINC150).
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from waypost.edge.training.packing import knots_of
from waypost.edge.training.utterances import ACCEPT_AT, FOLDS, check_examples
from waypost.shared.scoring.embedding import EmbeddingModel, EmbeddingScorer, embed

__all__ = ["compile_embeddings"]

Floats = NDArray[np.float64]

STEPS, STEP_SIZE, MOMENTUM = 300, 2.0, 0.9
DECAY = 0.003  # 0.001 does as well, 0.03 costs two points
START = 10.0  # times a route's centroid


def compile_embeddings(examples: Mapping[str, Sequence[str]], *, seed: int) -> EmbeddingModel:
    """Return a model that tells the routes in ``examples`` apart by meaning.

    The score is calibrated on examples that were held out: one in ten of those scores below 100.

    Raises:
        PolicyError: fewer than two routes, a route with too few examples, or an example of two.
    """
    routes, texts, route = check_examples(examples)
    inputs = np.array([embed(text) for text in texts], dtype=np.float64)
    fold = np.random.default_rng(seed).permutation(len(texts)) % FOLDS
    fits: list[int] = []
    for held in range(FOLDS):
        seen = fold != held
        scorer = EmbeddingScorer(_fit(inputs[seen], route[seen], routes))
        fits += [scorer.fit(text)[1] for text, was in zip(texts, seen, strict=True) if not was]
    return structs.replace(_fit(inputs, route, routes), knots=knots_of(np.maximum(fits, 0)))


def _fit(inputs: Floats, route: NDArray[np.int64], routes: tuple[str, ...]) -> EmbeddingModel:
    """Return the model for ``inputs``, row by row of the route in ``route``; not calibrated."""
    is_of = np.eye(len(routes))[route]
    count = max(1.0, len(inputs) / len(routes))
    sums = is_of.T @ inputs
    weights = START * sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    velocity = np.zeros_like(weights)
    for _ in range(STEPS):
        odds = inputs @ weights.T
        odds = np.exp(odds - odds.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        velocity = MOMENTUM * velocity + (odds - is_of).T @ inputs / count + DECAY * weights
        weights -= STEP_SIZE * velocity
    # What a dimension says for all routes alike tells none of them apart.
    weights -= weights.mean(axis=0)
    octets = np.rint(weights / max(float(np.abs(weights).max()), 1e-9) * 127).astype(np.int8)
    return EmbeddingModel(
        routes=routes,
        weights=b64encode(octets.tobytes()).decode(),
        knots=(0, 1),
        accept_at=ACCEPT_AT,
    )
