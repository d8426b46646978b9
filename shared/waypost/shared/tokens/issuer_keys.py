"""The keys that tokens are checked with: one reading for who publishes and who enforces.

Pure. A key that only the publisher could load would cost validators the whole set of issuers.

Sources: RFC 7517 and 7518 (JWK), RFC 7638 (thumbprint), RFC 8725 §3.1 (one key, one algorithm).
"""

import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from waypost.shared.contracts import IssuerKey

__all__ = ["TokenKey", "as_jwk", "b64url", "jwk_of", "key_from_jwk", "public_key", "thumbprint"]

TokenKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

# 2048 is RFC 7518's least; more than 4096 buys little and makes each check dear.
RSA_BITS = range(2_048, 4_097)
RSA_EXPONENTS = range(65_537, 2**32)

# What JWK calls a key of each algorithm.
_KINDS = {"EdDSA": ("OKP", "Ed25519"), "ES256": ("EC", "P-256"), "RS256": ("RSA", None)}
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def public_key(key: IssuerKey) -> TokenKey:
    """Return ``key`` ready to verify with; raises ValueError if it is not what it says."""
    try:
        match key:
            case IssuerKey(alg="EdDSA", x=str(x), y=None, n=None, e=None):
                return Ed25519PublicKey.from_public_bytes(_bytes(x, 32))
            case IssuerKey(alg="ES256", x=str(x), y=str(y), n=None, e=None):
                point = (int.from_bytes(_bytes(x, 32)), int.from_bytes(_bytes(y, 32)))
                # Raises for coordinates that are no point of the curve.
                return EllipticCurvePublicNumbers(*point, SECP256R1()).public_key()
            case IssuerKey(alg="RS256", x=None, y=None, n=str(n), e=str(e)):
                return _rsa(int.from_bytes(_bytes(n)), int.from_bytes(_bytes(e)))
            case _:
                pass
    except ValueError:
        pass
    raise ValueError(f"'{key.kid}' is no {key.alg} public key")


def _rsa(modulus: int, exponent: int) -> RSAPublicKey:
    if modulus.bit_length() not in RSA_BITS or exponent not in RSA_EXPONENTS:
        raise ValueError("an RSA key of a size or exponent that is not used")
    if _looks_like_roca(modulus):
        raise ValueError("made by a library whose keys can be factored")
    return RSAPublicNumbers(exponent, modulus).public_key()


def _looks_like_roca(modulus: int) -> bool:
    """Whether ``modulus`` has the mark of CVE-2017-15361; one in 2^27 of others has it too.

    Its primes are powers of 65537 modulo each small prime, and so is their product.
    """
    return all(_is_power_of_65537(modulus % prime, prime) for prime in _ROCA_PRIMES)


def _is_power_of_65537(value: int, prime: int) -> bool:
    power = 1
    while True:
        if power == value:
            return True
        power = power * 65_537 % prime
        if power == 1:
            return False


_ROCA_PRIMES = [p for p in range(3, 168) if all(p % d for d in range(2, math.isqrt(p) + 1))]


def _bytes(text: str, length: int | None = None) -> bytes:
    """Decode canonical base64url; raises ValueError for any other spelling or length.

    Without a ``length``: a number, which has no zero in front (RFC 7518 §2).
    """
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url(raw) != text or (raw[:1] in {b"", b"\0"} if length is None else len(raw) != length):
        raise ValueError("not its one spelling")
    return raw


def b64url(raw: bytes) -> str:
    """Return ``raw`` in base64url without padding, as JOSE writes bytes."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def key_from_jwk(jwk: Mapping[str, object]) -> IssuerKey:
    """Return the issuer key that ``jwk`` is, as identity providers publish them.

    Raises:
        ValueError: it is no public key to check signatures of ours with, and why.
    """
    if _PRIVATE & jwk.keys():
        raise ValueError("holds a private or secret key; whoever published it must replace it")
    kind = (jwk.get("kty"), jwk.get("crv"))
    fitting = [alg for alg, of in _KINDS.items() if kind == of]
    if not fitting:
        raise ValueError(f"is a key of another kind than {', '.join(_KINDS)}")
    if jwk.get("alg", fitting[0]) not in (fitting[0], "Ed25519" if kind[0] == "OKP" else None):
        raise ValueError("is a key for another algorithm")
    if jwk.get("use", "sig") != "sig" or "verify" not in cast(
        "list[object]", jwk.get("key_ops", ["verify"])
    ):
        raise ValueError("is not for checking signatures")
    numbers = {name: jwk[name] for name in ("x", "y", "n", "e") if name in jwk}
    try:
        key = msgspec.convert({"kid": jwk.get("kid"), "alg": fitting[0], **numbers}, IssuerKey)
    except msgspec.ValidationError as exc:
        raise ValueError(f"cannot be used: {exc}") from None
    public_key(key)
    return key


def as_jwk(key: IssuerKey) -> dict[str, str]:
    """Return ``key`` as a JWK, as identity providers publish them."""
    kty, crv = _KINDS[key.alg]
    named = {"crv": crv, "x": key.x, "y": key.y, "n": key.n, "e": key.e}
    numbers = {name: value for name, value in named.items() if value is not None}
    return {"kid": key.kid, "kty": kty, "alg": key.alg, "use": "sig", **numbers}


def jwk_of(public: Ed25519PublicKey | EllipticCurvePublicKey) -> dict[str, str]:
    """Return ``public`` as a JWK with its required members alone.

    Raises:
        ValueError: it is of another curve than Ed25519 and P-256.
    """
    if isinstance(public, Ed25519PublicKey):
        return {"crv": "Ed25519", "kty": "OKP", "x": b64url(public.public_bytes_raw())}
    if public.curve.name != "secp256r1":
        raise ValueError(f"a key of curve {public.curve.name}, which is not used")
    numbers = public.public_numbers()
    x, y = (b64url(part.to_bytes(32)) for part in (numbers.x, numbers.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def thumbprint(jwk: Mapping[str, str]) -> str:
    """Return the RFC 7638 thumbprint of a JWK that has its required members alone."""
    text = json.dumps(jwk, sort_keys=True, separators=(",", ":"))
    return b64url(sha256(text.encode()).digest())
