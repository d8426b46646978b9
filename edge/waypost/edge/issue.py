"""Issues access tokens, for apps that have no identity provider to do it.

The other half is ``waypost.validator.tokens``. Pure: keys, time and the token's id arrive as
arguments. The profile is RFC 9068 with one signature algorithm per key.
"""

import json
from typing import Literal, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt import PyJWS, PyJWTError
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from waypost.shared.contracts import Claims, IssuerKey, Issuers, Limits, SpendLimit
from waypost.shared.errors import PolicyError, StoreError, TokenError
from waypost.shared.issuer_keys import public_key

__all__ = [
    "SigningKey",
    "is_signed",
    "issuer_key",
    "load_signing_key",
    "mint",
    "new_claims",
    "read_unverified",
]

# RFC 8725 §3.1: a key has exactly one algorithm, and it follows from the key.
SigningKey = Ed25519PrivateKey | EllipticCurvePrivateKey

DEFAULT_LIFETIME_S = 600

_jws = PyJWS(algorithms=["EdDSA", "ES256"])


def load_signing_key(pem: bytes) -> SigningKey:
    """Return the Ed25519 or P-256 private key in ``pem``.

    Raises:
        StoreError: ``key_unusable``: not PEM, encrypted, or a key of another kind.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (TypeError, ValueError):
        # The cause may quote the file.
        raise StoreError(
            "this is not an unencrypted private key in PEM", code="key_unusable"
        ) from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
    ):
        return key
    raise StoreError("tokens are signed with Ed25519 or P-256 keys only", code="key_unusable")


def issuer_key(key: SigningKey, *, kid: str) -> IssuerKey:
    """Return the public half of ``key`` as an issuers file lists it."""
    if isinstance(key, Ed25519PrivateKey):
        jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return IssuerKey(kid=kid, alg=_alg(key), x=jwk["x"], y=jwk.get("y"))


def _alg(key: SigningKey) -> Literal["EdDSA", "ES256"]:
    return "EdDSA" if isinstance(key, Ed25519PrivateKey) else "ES256"


def new_claims(
    *,
    iss: str,
    aud: str,
    sub: str,
    tier: str,
    account: str,
    now: int,
    jti: str,
    lifetime_s: int = DEFAULT_LIFETIME_S,
    limits: tuple[SpendLimit, ...] = (),
    client_id: str | None = None,
    tenant: str | None = None,
    region: str | None = None,
    data_classes: tuple[str, ...] = (),
    models: tuple[str, ...] | None = None,
) -> Claims:
    """Return claims that are valid from ``now`` for ``lifetime_s`` seconds.

    Args:
        aud: the validator's own name, its ``audience`` setting.
        jti: unique to this token, 16 characters or more, as ``uuid4().hex``.
        client_id: the app that asks; ``sub`` when it asks for itself (RFC 9068 §2.2).

    Raises:
        PolicyError: ``claims_invalid``: a claim that no validator would take, and why.
    """
    claims = Claims(
        iss=iss,
        aud=aud,
        sub=sub,
        exp=now + lifetime_s,
        iat=now,
        nbf=now,
        jti=jti,
        client_id=sub if client_id is None else client_id,
        tier=tier,
        budget=Limits(account=account, limits=limits),
        tenant=tenant,
        region=region,
        data_classes=data_classes,
        models=models,
    )
    try:
        # Structs are not checked when made; a token that is refused later is worse than none.
        return msgspec.convert(msgspec.to_builtins(claims), Claims)
    except msgspec.ValidationError as exc:
        raise PolicyError(f"the token would be refused: {exc}", code="claims_invalid") from None


def mint(claims: Claims, *, key: SigningKey, kid: str) -> str:
    """Return ``claims`` as a signed access token (``typ: at+jwt``)."""
    filled = cast("dict[str, object]", msgspec.to_builtins(claims))
    payload = {name: value for name, value in filled.items() if value is not None}
    return _jws.encode(
        msgspec.json.encode(payload),
        key,
        algorithm=_alg(key),
        headers={"typ": "at+jwt", "kid": kid},
    )


def read_unverified(token: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return header and claims of ``token`` without believing them: to be shown, never obeyed.

    Raises:
        TokenError: ``token_format``: this is no token.
    """
    try:
        read = _jws.decode_complete(token, options={"verify_signature": False})
        claims: object = json.loads(read["payload"])
    except (PyJWTError, ValueError, RecursionError):
        raise TokenError("this is not an access token", code="token_format") from None
    if not isinstance(claims, dict):
        raise TokenError("this is not an access token", code="token_format")
    return read["header"], cast("dict[str, object]", claims)


def is_signed(token: str, issuers: Issuers) -> bool:
    """Return whether an active key of ``issuers`` signed ``token``, for the issuer it names.

    A help for people. A validator checks a great deal more.
    """
    header, claims = read_unverified(token)
    for issuer in issuers.issuers:
        for key in issuer.keys:
            if (key.kid, issuer.iss) != (header.get("kid"), claims.get("iss")):
                continue
            try:
                _jws.decode_complete(token, public_key(key), algorithms=[key.alg])
            except PyJWTError:
                return False
            return key.status != "revoked"
    return False
