"""Issues access tokens, for apps that have no identity provider to do it.

The other half is ``waypost.validator.access.tokens``. Pure: keys, time and the token's id arrive as
arguments. The profile is RFC 9068 with one signature algorithm per key.
"""

import json
from typing import cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt import PyJWS, PyJWTError
from jwt.algorithms import RSAAlgorithm
from msgspec import UNSET

from waypost.shared.contracts import (
    ALGORITHMS,
    Algorithm,
    Claims,
    Confirmation,
    IssuerKey,
    Issuers,
    Limits,
    SpendLimit,
)
from waypost.shared.errors import PolicyError, StoreError, TokenError
from waypost.shared.tokens.issuer_keys import jwk_of, key_from_jwk, public_key

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
SigningKey = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey

DEFAULT_LIFETIME_S = 600

_jws = PyJWS(algorithms=ALGORITHMS)


def load_signing_key(pem: bytes) -> SigningKey:
    """Return the Ed25519, P-256 or RSA private key in ``pem``.

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
    if isinstance(key, SigningKey):
        try:
            issuer_key(key, kid="new")
        except ValueError:
            pass
        else:
            return key
    raise StoreError(
        "tokens are signed with Ed25519, P-256 or RSA keys (of 2048 to 4096 bits) only",
        code="key_unusable",
    )


def issuer_key(key: SigningKey, *, kid: str) -> IssuerKey:
    """Return the public half of ``key`` as an issuers file lists it.

    Raises:
        ValueError: of a curve or size that validators do not take.
    """
    if isinstance(key, RSAPrivateKey):
        jwk = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        jwk = {name: jwk[name] for name in ("kty", "n", "e")}
    else:
        jwk = jwk_of(key.public_key())
    return key_from_jwk({**jwk, "kid": kid})


def _alg(key: SigningKey) -> Algorithm:
    if isinstance(key, RSAPrivateKey):
        return "RS256"
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
    scope: str = "",
    auth_epoch: int = 0,
    one_time: bool = False,
    jkt: str | None = None,
) -> Claims:
    """Return claims that are valid from ``now`` for ``lifetime_s`` seconds.

    Args:
        aud: the validator's own name, its ``audience`` setting.
        jti: unique to this token, 16 characters or more, as ``uuid4().hex``.
        client_id: the app that asks; ``sub`` when it asks for itself (RFC 9068 §2.2).
        one_time: the token is good for one request.
        jkt: thumbprint of the client's key (RFC 9449), which alone may use the token.

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
        scope=scope,
        auth_epoch=auth_epoch,
        one_time=one_time,
        cnf=UNSET if jkt is None else Confirmation(jkt),
    )
    try:
        # Structs are not checked when made; a token that is refused later is worse than none.
        return msgspec.convert(msgspec.to_builtins(claims), Claims)
    except msgspec.ValidationError as exc:
        raise PolicyError(f"the token would be refused: {exc}", code="claims_invalid") from None


def mint(claims: Claims, *, key: SigningKey, kid: str) -> str:
    """Return ``claims`` as a signed access token (``typ: at+jwt``)."""
    return _jws.encode(
        msgspec.json.encode(claims),
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
