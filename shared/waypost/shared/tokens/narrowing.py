"""A token made weaker by who holds it, for a part of a program to use: what it says, what it means.

The holder of the key that a token is bound to signs a ``Narrowing`` around the whole token, and
names the key that may use the result. Nothing in it can grant: each field restricts, and one that
a reader does not know refuses the token, since overlooking a restriction would widen it. Pure.

docs/adr/0022 has the design.
"""

from typing import Annotated, TypeVar

from msgspec import Meta, Struct, structs
from msgspec.json import Decoder

from waypost.shared.contracts import (
    Claims,
    Confirmation,
    Instant,
    Name,
    Signed,
    SpendLimit,
    TokenId,
)

__all__ = ["MAX_NARROWINGS", "NARROWED", "Narrowing", "decode_narrowing", "restricted"]

NARROWED = "narrow+jwt"
MAX_NARROWINGS = 3  # each makes the token a third longer, and costs a signature to check


class Narrowing(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The payload of a narrowed token, signed by the holder of its ``parent``.

    Attributes:
        parent: the wider token, whole: so neither can be exchanged for another.
        cnf: the key whose holder may use this one.
        models: only these of the parent's.
        data_classes: duties on top of the parent's.
        limits: what may be spent with this token, on top of what limits its parent.
    """

    parent: Annotated[str, Meta(max_length=8_192)]
    jti: TokenId
    iat: Instant
    exp: Instant
    cnf: Confirmation
    models: tuple[Name, ...] | None = None
    data_classes: tuple[Name, ...] = ()
    limits: tuple[SpendLimit, ...] = ()


decode_narrowing = Decoder(Narrowing).decode

S = TypeVar("S", Claims, Signed)


def restricted(parent: S, by: Narrowing) -> S:
    """Return what ``parent`` says, with models and duties as ``by`` leaves them."""
    models = by.models if parent.models is None else parent.models
    if models is not None and by.models is not None:
        models = tuple(name for name in models if name in by.models)
    duties = tuple(sorted({*parent.data_classes, *by.data_classes}))
    return structs.replace(parent, models=models, data_classes=duties)
