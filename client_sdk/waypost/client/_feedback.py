"""What an answer was worth: the words that are sent to the validator, and what it says to them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from waypost.shared.errors import InvalidRequestError, UpstreamError
from waypost.shared.wire.headers import DECISION, parse_decision

if TYPE_CHECKING:
    import httpx

__all__ = ["Rating", "check_heard", "decision_id", "feedback", "unheard"]

Rating = Literal["good", "bad"]


def decision_id(headers: Mapping[str, str]) -> str | None:
    """Return the id of the decision behind an answer, from its headers; ``None`` if none is said.

    With the ``openai`` SDK they are at ``client.chat.completions.with_raw_response.create(…)``.
    """
    text = headers.get(DECISION) or headers.get(DECISION.lower())
    try:
        said = None if text is None else parse_decision(text).get("id")
    except InvalidRequestError:
        return None
    return said if isinstance(said, str) else None


def feedback(decision: str, rating: Rating, cause: str | None) -> dict[str, str]:
    """Return what is sent."""
    said = {"decision": decision, "rating": rating}
    return said if cause is None else {**said, "cause": cause}


def unheard(exc: Exception) -> UpstreamError:
    """Return what to raise when nobody took it."""
    return UpstreamError(
        f"The validator did not take the feedback: {type(exc).__name__}.",
        code="validator_unreachable",
    )


def check_heard(answer: "httpx.Response") -> None:
    """Raise InvalidRequestError with the validator's code unless it took the word."""
    if answer.is_success:
        return
    try:
        error = answer.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "feedback_refused", f"The validator answered {answer.status_code}."
    raise InvalidRequestError(message, code=code)
