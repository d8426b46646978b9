"""How sure an answer sounds: a logistic score over features of its text. Pure.

The rule: the same text has the same score everywhere, whoever trained the judge and whoever asks
it. Features are counts by regular expressions that run in linear time, so that a long answer costs
microseconds and none can stall anybody. The weights are trained on answers that were graded
(``waypost policy calibrate``) and travel in the manifest.
"""

import math
import re
from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["FEATURES", "JudgeModel", "features", "judge"]

# An answer may be a book; what it ends with says most.
LOOKED_AT = 20_000

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|might|possibly|probably|likely|unsure|not sure|i think|i believe|seems?"
    r"|appears?|assum(?:e|ing)|guess)\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:sorry|unable|cannot|can't|not possible|insufficient|not enough information|unclear"
    r"|none of the (?:above|options|given|answers))\b",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"\b(?:wait|actually|however|but|mistake|correction|incorrect|let me re\w*|instead"
    r"|otherwise)\b",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"\b(?:approximately|about|roughly|closest|nearly|around)\b|[≈~]", re.IGNORECASE
)
_CONCLUSION = re.compile(
    r"\b(?:the answer is|final answer|the correct (?:answer|option)|therefore|thus|hence)\b|####"
    r"|\\boxed",
    re.IGNORECASE,
)
_STEP = re.compile(r"\b(?:first|second|third|next|then|finally|step)\b", re.IGNORECASE)

FEATURES = (
    "length", "sentences", "numbers", "equations", "hedges", "refusals", "turns",
    "approximations", "conclusions", "steps", "repetition", "unfinished",
)  # fmt: skip

Weight = Annotated[float, Meta(ge=-1e3, le=1e3)]


class JudgeModel(Struct, frozen=True, kw_only=True):
    """A trained judge.

    Attributes:
        weights: one for each of ``FEATURES``.
        bias: of the logistic function.
    """

    weights: Annotated[tuple[Weight, ...], Meta(min_length=len(FEATURES), max_length=len(FEATURES))]
    bias: Weight = 0.0


def features(text: str) -> tuple[float, ...]:
    """Return what is looked at in ``text``, in the order of ``FEATURES``, each about 0 to 3."""
    text = text[-LOOKED_AT:].strip()
    words = _WORD.findall(text)
    counts = (
        len(words),
        len(_SENTENCE.findall(text)),
        len(_NUMBER.findall(text)),
        text.count("="),
        len(_HEDGE.findall(text)),
        len(_REFUSAL.findall(text)),
        len(_TURN.findall(text)),
        len(_ABOUT.findall(text)),
        len(_CONCLUSION.findall(text)),
        len(_STEP.findall(text)),
    )
    distinct = len({word.casefold() for word in words})
    repetition = 1 - distinct / len(words) if words else 0.0
    unfinished = 0.0 if text.endswith((".", "!", "?", ")", "}", "]", "`", '"')) else 1.0
    # Counts by their orders of magnitude: the hundredth number says less than the second.
    return (*(math.log1p(count) for count in counts), repetition, unfinished)


def judge(model: JudgeModel, text: str) -> float:
    """Return how sure ``text`` sounds, 0 to 1; half is as good as the dearer model's answer."""
    score = model.bias + sum(
        weight * value for weight, value in zip(model.weights, features(text), strict=True)
    )
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, score))))
