"""What an access token says of itself, to guess what a validator will find in it.

Nothing here checks a signature: clients and edges hold no secret and decide nothing that counts.
"""

import binascii

import msgspec
from msgspec import Struct

from waypost.shared.contracts import Signed
from waypost.shared.decision.rules import cohort
from waypost.shared.tokens.narrowing import MAX_NARROWINGS, decode_narrowing, restricted

__all__ = ["UnverifiedClaims", "unverified_claims"]


class UnverifiedClaims(Struct, frozen=True, kw_only=True):
    """What a token says of itself: ``exp`` and ``iat`` in Unix seconds, and the rest as facts."""

    exp: int
    iat: int
    signed: Signed


class _Payload(Signed, frozen=True, kw_only=True):
    exp: int = 2**40
    iat: int = 0
    iss: str = ""
    sub: str = ""


_decode = msgspec.json.Decoder(_Payload).decode


def unverified_claims(token: str) -> UnverifiedClaims | None:
    """Return what ``token`` says, unverified; ``None`` if it is not a JWT of ours."""
    try:
        return _read(token, narrowings=0)
    except (IndexError, ValueError, RecursionError):
        # msgspec's errors are ValueErrors, as are those of base64 and UTF-8.
        return None


def _read(token: str, *, narrowings: int) -> UnverifiedClaims:
    part = token.split(".")[1]
    payload = binascii.a2b_base64(part.translate(_URL_SAFE) + "=" * (-len(part) % 4))
    if narrowings < MAX_NARROWINGS and b'"parent":' in payload:
        by = decode_narrowing(payload)
        parent = _read(by.parent, narrowings=narrowings + 1)
        return UnverifiedClaims(
            exp=min(parent.exp, by.exp), iat=by.iat, signed=restricted(parent.signed, by)
        )
    said = _decode(payload)
    signed = Signed(
        tier=said.tier,
        cohort=cohort(said.iss, said.sub),
        tenant=said.tenant,
        region=said.region,
        data_classes=said.data_classes,
        models=said.models,
    )
    return UnverifiedClaims(exp=said.exp, iat=said.iat, signed=signed)


_URL_SAFE = str.maketrans("-_", "+/")
