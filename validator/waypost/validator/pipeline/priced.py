"""What a request asks for beyond tokens must have a price, or nobody can hold what it costs."""

from collections.abc import Sequence

from waypost.shared.contracts import Extra, Model
from waypost.shared.decision.costs import is_priced
from waypost.shared.errors import InvalidRequestError

__all__ = ["require_priced"]


def require_priced(extras: Sequence[Extra], models: Sequence[Model]) -> None:
    """Return if for each of ``extras`` there is a model that says what it may cost.

    Raises:
        InvalidRequestError: ``unbounded_input``, or ``unpriced`` for another tier or speed.
    """
    for extra in extras:
        if not any(is_priced(model, extra) for model in models):
            raise _refusal(extra)


def _refusal(extra: Extra) -> InvalidRequestError:
    match extra.kind:
        case "part":
            return InvalidRequestError(
                f"The price of {extra.name} has no bound: it is not in the request, or a byte of it"
                " may be any number of tokens. Send text, pictures and PDFs in the request itself,"
                f" or have the operator bound it: part_tokens.{extra.name} of a model in the"
                " policy.",
                code="unbounded_input",
                param=extra.at,
            )
        case "tool":
            return InvalidRequestError(
                f"The provider runs {extra.name} itself, and no model of the policy says what that"
                " may cost. Leave it out, or have the operator price it:"
                f" hosted_tools.{extra.name} of a model in the policy.",
                code="unbounded_input",
                param=extra.at,
            )
        case "price":
            field, _, value = extra.name.partition("=")
            return InvalidRequestError(
                f"{field}: {value} changes the price, and no model of the policy says how. Leave it"
                " out, or have the operator price it:"
                f" price.factors.{field}.{value} of a model in the policy.",
                code="unpriced",
                param=extra.at,
            )
