"""Says who is asking: the claims of an access token, or a refusal.

A strict shell around PyJWT, which by itself takes a wrong ``typ``, ``jwk`` headers, duplicate
claims, times as text and tokens of megabytes. The checks run in one order: those that cost
nothing first, the signature before any claim is believed, and nothing is ever fetched.

Sources: RFC 9068 (profile), RFC 8725 (best current practice), RFC 7515 (compact form).
"""

import json
import re
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import Literal, cast

import jwt
import msgspec
from msgspec import Struct

from waypost.shared.contracts import SUPPORTED_FEATURES, Claims, Issuer, IssuerKey, Issuers
from waypost.shared.errors import PolicyError, TokenError
from waypost.shared.issuer_keys import TokenKey, public_key

__all__ = ["TokenCode", "TokenVerifier"]

TokenCode = Literal[
    "token_missing",  # no Authorization header
    "token_auth_header",  # several of them, or not "Bearer <token>"
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
    "token_cnf",  # bound to a key whose proof this validator cannot check
    "token_issuer",  # signed with the key of another issuer
    "token_audience",
    "token_expired",
    "token_not_yet_valid",
    "token_lifetime",  # valid for longer than its issuer may make it
    "token_superseded",  # issued before the instant its issuer or subject was reset
    "token_revoked",
]

# One sentence for all causes: whoever probes learns the code and nothing else. No part of a
# token is ever quoted, since answers and logs are read by others than its owner.
REFUSAL = "The access token does not hold. Get a new one from your app and send it as Bearer."

MAX_TOKEN_CHARS = 8_192
MAX_HEADER_CHARS = MAX_TOKEN_CHARS + len("Bearer ")

# Canonical base64url only: where the last group is short, its unused bits are zero. Padding,
# whitespace, the JSON serialization and the five parts of an encrypted token do not match.
# Possessive (*+), so that a long near miss is not tried again from each place in it.
_PART = r"(?=[\w-])(?:[\w-]{4})*+(?:[\w-][AQgw]|[\w-]{2}[AEIMQUYcgkosw048])?"
_TOKEN = re.compile(rf"{_PART}\.{_PART}\.{_PART}", re.ASCII)
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")

HEADER_FIELDS = {"alg", "kid", "typ"}

# RFC 9068 §2.1 allows the full media type as well.
TYPES = frozenset({"at+jwt", "application/at+jwt"})

# Counted before parsing, in strings too: bounds depth, and the work for it, from the outside.
MAX_BRACKETS = 64

_jws = jwt.PyJWS(
    algorithms=["EdDSA", "ES256"],
    options={"verify_signature": True, "enforce_minimum_key_length": True},
)
_claims_decoder = msgspec.json.Decoder(Claims)


class _Key(Struct, frozen=True):
    issuer: Issuer
    meta: IssuerKey
    public: TokenKey


class TokenVerifier:
    """Verifies tokens against one set of issuers. A new set takes a new verifier.

    So the memory of verified tokens never outlives the keys and revocations it was checked
    against. For one event loop; not thread-safe.
    """

    def __init__(
        self,
        issuers: Issuers,
        *,
        audience: str,
        leeway_s: int = 30,
        cache_size: int = 10_000,
    ) -> None:
        """Load the keys.

        Args:
            audience: this validator's own name; a token must name it and nothing else.
            leeway_s: how far the issuer's clock may be off.
            cache_size: how many verified tokens to remember.

        Raises:
            PolicyError: ``issuers_invalid``: a key that cannot be what it says, or two with
                one id. The whole set is refused; keep the verifier in force.
        """
        self._keys = _load(issuers)
        self._audience = audience
        self._leeway_s = leeway_s
        self._cache_size = cache_size
        self._revoked = frozenset(issuers.revoked_jtis)
        self._floors = issuers.min_iat_by_subject
        self._verified: OrderedDict[bytes, tuple[Claims, int]] = OrderedDict()

    def verify(self, authorization: str | None, *, now: int) -> Claims:
        """Return the claims of the bearer token in an ``Authorization`` header.

        Args:
            authorization: the header's value; several headers joined with commas, as HTTP
                joins them, are refused. ``None`` if there was none.
            now: Unix seconds.

        Raises:
            TokenError: its code is one of ``TokenCode``. ``token_unknown_kid`` may mean that
                newer issuers exist; look once, at a limited rate, and never per request.
        """
        if authorization is None:
            raise _refused("token_missing")
        if len(authorization) > MAX_HEADER_CHARS:
            raise _refused("token_size")
        try:
            # A digest, so that a dump of this process holds no live tokens.
            digest = sha256(authorization.encode("ascii")).digest()
        except UnicodeEncodeError:
            raise _refused("token_auth_header") from None
        known = self._verified.get(digest)
        if known is not None and now < known[1]:
            self._verified.move_to_end(digest)
            return known[0]
        claims, until = self._check(authorization, now)
        # By exact bytes: one token may have several spellings (an ECDSA signature has a twin,
        # "bearer" may be in capitals), each of which was checked for itself. Revocation goes by
        # issuer and id, which all spellings share, so that no spelling escapes it.
        self._verified[digest] = (claims, until)
        if len(self._verified) > self._cache_size:
            self._verified.popitem(last=False)
        return claims

    def _check(self, authorization: str, now: int) -> tuple[Claims, int]:
        """Return claims that hold, and the instant until which they do."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or " " in token or "," in token:
            raise _refused("token_auth_header")
        if not _TOKEN.fullmatch(token):
            raise _refused("token_format")
        key = self._key(*_header(token), now)
        try:
            signed = _jws.decode_complete(token, key.public, algorithms=[key.meta.alg])
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _refused("token_signature") from None
        claims = _claims(signed["payload"])
        self._check_claims(claims, key, now)
        until = claims.exp + self._leeway_s
        expires_at = key.meta.expires_at
        return claims, until if expires_at is None else min(until, expires_at)

    def _key(self, alg: str, kid: str, now: int) -> _Key:
        if not _KID.fullmatch(kid):
            raise _refused("token_kid")
        key = self._keys.get(kid)
        if key is None:
            raise _refused("token_unknown_kid")
        if key.meta.status == "revoked":
            raise _refused("token_key_revoked")
        expires_at = key.meta.expires_at
        if now + self._leeway_s < key.meta.not_before or (
            expires_at is not None and now >= expires_at
        ):
            raise _refused("token_key_inactive")
        # One key, one algorithm (RFC 8725 §3.1): the token does not get to choose.
        if alg != key.meta.alg:
            raise _refused("token_alg")
        return key

    def _check_claims(self, claims: Claims, key: _Key, now: int) -> None:
        if claims.iss != key.issuer.iss:
            raise _refused("token_issuer")
        if claims.aud != self._audience:
            raise _refused("token_audience")
        if now >= claims.exp + self._leeway_s:
            raise _refused("token_expired")
        if max(claims.nbf, claims.iat) > now + self._leeway_s:
            raise _refused("token_not_yet_valid")
        if not 0 < claims.exp - claims.iat <= key.issuer.max_lifetime_s:
            raise _refused("token_lifetime")
        if claims.iat < key.meta.not_before:
            raise _refused("token_key_inactive")
        # Neither sub nor jti can hold a space, so that no two pairs read alike.
        floor = self._floors.get(f"{claims.iss} {claims.sub}", 0)
        if claims.iat < max(key.issuer.min_iat, floor):
            raise _refused("token_superseded")
        if f"{claims.iss} {claims.jti}" in self._revoked:
            raise _refused("token_revoked")


def _refused(code: TokenCode) -> TokenError:
    return TokenError(REFUSAL, code=code)


def _header(token: str) -> tuple[str, str]:
    """Return ``alg`` and ``kid`` of a token whose form is right. Nothing is verified yet."""
    encoded = token.partition(".")[0]
    header = _strict_json(
        urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), lambda: _refused("token_json")
    )
    # Exactly these: jwk, jku and x5c would bring their own key, crit and b64 their own rules.
    if header.keys() != HEADER_FIELDS:
        raise _refused("token_header")
    alg, kid, typ = header["alg"], header["kid"], header["typ"]
    if not isinstance(alg, str) or not isinstance(kid, str) or not isinstance(typ, str):
        raise _refused("token_header")
    if typ.lower() not in TYPES:
        raise _refused("token_typ")
    return alg, kid


def _claims(payload: bytes) -> Claims:
    names = _strict_json(payload, lambda: _refused("token_claims")).keys()
    if "cnf" in names:
        # Sender-constrained (RFC 7800). Taken as a bearer token, it would lose its bond.
        raise _refused("token_cnf")
    try:
        return _claims_decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _refused("token_claims") from None


def _strict_json(text: bytes, refusal: Callable[[], TokenError]) -> dict[str, object]:
    """Return the object in ``text``: UTF-8 without BOM, no name twice, no NaN or Infinity."""
    if text.count(b"{") + text.count(b"[") > MAX_BRACKETS:
        raise refusal()
    try:
        # Not json.loads(bytes): that guesses UTF-16 and UTF-32 as well.
        value: object = json.loads(
            text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise refusal() from None
    if not isinstance(value, dict):
        raise refusal()
    return cast("dict[str, object]", value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # RFC 8725 §2.4: which of two readers is right? Neither.
        raise ValueError("a name occurs twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _load(issuers: Issuers) -> dict[str, _Key]:
    unknown = set(issuers.must_understand) - SUPPORTED_FEATURES
    if unknown:
        raise PolicyError(
            f"needs a newer version, for: {', '.join(sorted(unknown))}", code="issuers_invalid"
        )
    keys: dict[str, _Key] = {}
    for issuer in issuers.issuers:
        for meta in issuer.keys:
            if meta.kid in keys:
                raise PolicyError(f"there are two keys '{meta.kid}'", code="issuers_invalid")
            try:
                public = public_key(meta)
            except ValueError as exc:
                raise PolicyError(f"key {exc}", code="issuers_invalid") from None
            keys[meta.kid] = _Key(issuer, meta, public)
    return keys
