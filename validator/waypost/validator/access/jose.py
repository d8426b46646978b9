"""Reads signed JSON strictly: what access tokens, narrowed ones and proofs have in common.

PyJWT checks signatures and leaves much open: it takes duplicate claims, UTF-16 payloads, padded
spellings of one token. Here is what is checked around a signature, cheapest first.

Sources: RFC 7515 (compact form), RFC 8725 (best current practice).
"""

import json
import re
from base64 import urlsafe_b64decode
from functools import lru_cache
from typing import Literal, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from msgspec import Struct

from waypost.shared.contracts import ALGORITHMS, Algorithm
from waypost.shared.errors import TokenError
from waypost.shared.tokens.issuer_keys import TokenKey, jwk_of, key_from_jwk, public_key, thumbprint

__all__ = [
    "MAX_TOKEN_CHARS",
    "REFUSAL",
    "Holder",
    "TokenCode",
    "header_of",
    "holder_of",
    "is_compact",
    "payload_of",
    "refused",
    "signed_payload",
    "strict_json",
]

TokenCode = Literal[
    "token_missing",  # no Authorization header
    "token_auth_header",  # several of them, or neither "Bearer <token>" nor "DPoP <token>"
    "token_size",
    "token_format",  # not three parts of canonical base64url
    "token_json",  # the header is not one plain JSON object
    "token_header",  # fields other than alg, typ and kid, or not text
    "token_typ",  # not an access token
    "token_kid",  # no legal key id
    "token_unknown_kid",  # the issuers in force have no such key; newer ones might
    "token_key_revoked",
    "token_key_inactive",  # the key is not yet, or no longer, in use
    "token_alg",  # another algorithm than the key's own
    "token_signature",
    "token_claims",  # well signed, but not our claims
    "token_issuer",  # signed with the key of another issuer
    "token_audience",
    "token_expired",
    "token_not_yet_valid",
    "token_lifetime",  # valid for longer than its issuer may make it
    "token_superseded",  # issued before the instant its issuer, tenant or subject was reset
    "token_epoch",  # of an epoch of its subject that is over
    "token_revoked",
    "token_tenant",  # of a tenant that its issuer may not speak for
    "token_account",  # of an account that its issuer may not spend from
    "token_narrow_depth",  # narrowed too many times over
    "token_narrow_key",  # not narrowed by the holder of the key that the wider one is bound to
    "token_unbound",  # bound to no key, which its issuer or "DPoP" asks for
    "token_cnf",  # bound to a key, but sent as Bearer, or to a validator that checks no proofs
    "token_replayed",  # good for one request, which was made
    "dpop_missing",  # no proof, or several
    "dpop_format",  # not three parts of canonical base64url, or too long
    "dpop_header",  # not exactly typ, alg and a public jwk of a kind we check
    "dpop_signature",
    "dpop_claims",
    "dpop_target",  # made for another method or URL
    "dpop_time",  # made too long ago, or in the future
    "dpop_nonce",  # without a current nonce of ours; the answer brings one
    "dpop_token",  # made for another token
    "dpop_key",  # made with another key than the token is bound to
    "dpop_replayed",
]

# One sentence for all causes: whoever probes learns the code and nothing else. No part of a
# token is ever quoted, since answers and logs are read by others than its owner.
REFUSAL = (
    "The access token does not hold. Get a new one from your app, and send it as it was issued:"
    " as Bearer, or as DPoP with a proof."
)

MAX_TOKEN_CHARS = 8_192

# Canonical base64url only: where the last group is short, its unused bits are zero. Padding,
# whitespace, the JSON serialization and the five parts of an encrypted token do not match.
# Possessive (*+), so that a long near miss is not tried again from each place in it.
_PART = r"(?=[\w-])(?:[\w-]{4})*+(?:[\w-][AQgw]|[\w-]{2}[AEIMQUYcgkosw048])?"
_COMPACT = re.compile(rf"{_PART}\.{_PART}\.{_PART}", re.ASCII)

# Counted before parsing, in strings too: bounds depth, and the work for it, from the outside.
MAX_BRACKETS = 64

MAX_HOLDER_CHARS = 1_024
MAX_HOLDERS = 4_096  # with the line above, 4 MiB at the most

_jws = jwt.PyJWS(
    algorithms=ALGORITHMS,
    options={"verify_signature": True, "enforce_minimum_key_length": True},
)


def refused(code: TokenCode, *, nonce: str | None = None) -> TokenError:
    """Return the error to raise; ``nonce`` is for the client to use in its next proof."""
    return TokenError(REFUSAL, code=code, nonce=nonce)


def is_compact(token: str) -> bool:
    """Whether ``token`` is three parts of canonical base64url with dots between them."""
    return _COMPACT.fullmatch(token) is not None


def header_of(token: str, *, code: TokenCode) -> dict[str, object]:
    """Return the header of a token whose form is right. Nothing is verified yet."""
    return strict_json(_decoded(token.partition(".")[0]), code=code)


class Holder(Struct, frozen=True):
    """The key that a proof or a narrowed token brings along, and its thumbprint."""

    alg: Algorithm
    public: TokenKey
    thumbprint: str


# By the header as sent: what one holder signs differs in its claims alone.
@lru_cache(MAX_HOLDERS)
def holder_of(header: str, *, typ: str, code: TokenCode) -> Holder:
    """Return the key in a token's encoded ``header``, which has ``typ``, ``alg``, ``jwk`` alone.

    Only possession is to be proved here, so a key from the token itself is right; whose it must
    be is for the caller to say, by its thumbprint.
    """
    if len(header) > MAX_HOLDER_CHARS:
        raise refused(code)
    fields = strict_json(_decoded(header), code=code)
    jwk = fields.get("jwk")
    if fields.keys() != {"alg", "jwk", "typ"} or fields["typ"] != typ or not isinstance(jwk, dict):
        raise refused(code)
    try:
        key = key_from_jwk({**cast("dict[str, object]", jwk), "kid": "holder"})
        public = public_key(key)
    except ValueError:
        raise refused(code) from None
    if key.alg != fields["alg"] or isinstance(public, RSAPublicKey):
        raise refused(code)
    return Holder(key.alg, public, thumbprint(jwk_of(public)))


def payload_of(token: str) -> bytes:
    """Return the payload of a token whose form is right. Nothing is verified yet."""
    return _decoded(token.split(".")[1])


def _decoded(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def signed_payload(token: str, key: TokenKey, alg: Algorithm, *, code: TokenCode) -> bytes:
    """Return what ``key`` signed, with the one algorithm it is for.

    Raises:
        TokenError: ``code``: it did not sign this.
    """
    try:
        payload = _jws.decode_complete(token, key, algorithms=[alg])["payload"]
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise refused(code) from None
    return cast("bytes", payload)


def strict_json(text: bytes, *, code: TokenCode) -> dict[str, object]:
    """Return the object in ``text``: UTF-8 without BOM, no name twice, no NaN or Infinity.

    Raises:
        TokenError: ``code``: it is not one.
    """
    if text.count(b"{") + text.count(b"[") > MAX_BRACKETS:
        raise refused(code)
    try:
        # Not json.loads(bytes): that guesses UTF-16 and UTF-32 as well.
        value: object = json.loads(
            text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise refused(code) from None
    if not isinstance(value, dict):
        raise refused(code)
    return cast("dict[str, object]", value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # RFC 8725 §2.4: which of two readers is right? Neither.
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
