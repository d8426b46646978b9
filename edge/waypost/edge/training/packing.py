"""Brings what was fitted into the shape that ``waypost.shared.scoring.grams`` reads."""

from base64 import b64encode
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from waypost.shared.scoring.grams import NO_WEIGHT

__all__ = ["STEPS", "knots_of", "pack"]

STEPS = 7  # a weight is −7 to 7 steps

KNOTS = 21  # every five per cent of what is calibrated on


def pack(weights: NDArray[np.floating], step: float) -> str:
    """Return ``weights``, even in number, as half bytes of whole ``step``s; larger ones are cut."""
    steps = np.clip(np.rint(weights.ravel() / step), -STEPS, STEPS)
    halves = (steps + NO_WEIGHT).astype(np.uint8)
    return b64encode((halves[::2] | halves[1::2] << 4).tobytes()).decode()


def knots_of(values: Sequence[int] | NDArray[np.int64]) -> tuple[int, ...]:
    """Return the quantiles of ``values``, strictly increasing even where values are equal."""
    knots: list[int] = []
    for value in np.quantile(values, np.linspace(0, 1, KNOTS)).round().tolist():
        knots.append(max(int(value), knots[-1] + 1) if knots else int(value))
    return tuple(knots)
