"""How sure an answer is: one number from 0 to 1, by the signal that the route names. Pure.

The rule: what cannot be read is not sure. A signal that the cheap model's provider does not give
makes a cascade dear, which its records show; it never makes it worse.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import assert_never

import msgspec
from msgspec import Struct

from waypost.shared.contracts import Signal
from waypost.shared.scoring.judge import JudgeModel, judge
from waypost.validator.pipeline.cascade.answers import Answer

__all__ = ["agreement", "confidence", "needs_logprobs"]

_FENCED = re.compile(r"\A\s*```\w*\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class _Confident(Struct):
    confidence: float


_decode_confident = msgspec.json.Decoder(_Confident).decode


def needs_logprobs(signal: Signal) -> bool:
    """Whether the provider has to be asked for the probability of each token."""
    return signal in ("answer_logprob", "sequence_logprob")


def confidence(signal: Signal, answer: Answer, *, model: JudgeModel | None) -> float | None:
    """Return how sure ``answer`` is, 0 to 1; ``None`` if that cannot be told from it alone.

    Args:
        model: the policy's judge, for the signal ``judge``.
    """
    match signal:
        case "sequence_logprob":
            # The geometric mean, so that a long answer is not unsure for its length.
            lps = answer.logprobs
            return math.exp(min(0.0, sum(lps) / len(lps))) if lps else None
        case "answer_logprob":
            return _first_word(answer)
        case "confidence":
            return _named(answer.text)
        case "judge":
            return judge(model, answer.text) if model is not None and answer.text else None
        case "self_consistency":
            return None  # takes several: see ``agreement``
    assert_never(signal)


def _first_word(answer: Answer) -> float | None:
    """Return the probability of the first token that is more than blank space or a quote."""
    for logprob, token in zip(answer.logprobs, answer.tokens, strict=True):
        if token.strip().strip("\"'`*"):
            return math.exp(min(0.0, logprob))
    return None


def _named(text: str) -> float | None:
    """Return the ``confidence`` that a JSON answer names itself."""
    fenced = _FENCED.match(text)
    try:
        value = _decode_confident((fenced[1] if fenced else text).encode()).confidence
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    return value if 0 <= value <= 1 else None


def agreement(texts: Sequence[str]) -> tuple[float, int]:
    """Return what share of the answers agree, and the place of the first of those that do.

    Answers agree if they end in the same number, or, without any number, say the same but for
    case and spacing.
    """
    gist = [_gist(text) for text in texts]
    winner, count = Counter(gist).most_common(1)[0]
    # Answers of which nothing can be read agree in nothing.
    return (count / len(texts) if winner else 0.0), gist.index(winner)


def _gist(text: str) -> str:
    numbers: list[str] = _NUMBER.findall(text)
    if numbers:
        number = numbers[-1].replace(",", "")
        return number.rstrip("0").rstrip(".") if "." in number else number
    return " ".join(text.casefold().split())
