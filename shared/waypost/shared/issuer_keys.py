"""The keys that access tokens are checked with: one reading for who publishes and who enforces.

Pure. A key that only the publisher could load would cost validators the whole set of issuers.
"""

from base64 import urlsafe_b64decode

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from waypost.shared.contracts import IssuerKey

__all__ = ["TokenKey", "public_key"]

TokenKey = Ed25519PublicKey | EllipticCurvePublicKey


def public_key(key: IssuerKey) -> TokenKey:
    """Return ``key`` ready to verify with; raises ValueError if it is not what it says."""
    try:
        if key.alg == "EdDSA" and key.y is None:
            return Ed25519PublicKey.from_public_bytes(_coordinate(key.x))
        if key.alg == "ES256" and key.y is not None:
            x, y = (int.from_bytes(_coordinate(part)) for part in (key.x, key.y))
            # Raises for coordinates that are no point of the curve.
            return EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
    except ValueError:
        pass
    raise ValueError(f"'{key.kid}' is no {key.alg} public key")


def _coordinate(text: str) -> bytes:
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) != 32:
        raise ValueError("not 32 bytes")
    return raw
