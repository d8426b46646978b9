"""The keys that receipts and checkpoints are signed with, both from one secret of 32 bytes.

Two keys, so that nothing that is signed as the one can ever be passed off as the other.
"""

import base64
import binascii
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from waypost.shared.errors import StoreError
from waypost.validator.receipts.tlog import vkey
from waypost.validator.whole_files import make_once

__all__ = ["PublicKeys", "ReceiptKeys", "load_keys"]

SECRET_BYTES = 32


class PublicKeys(Struct, frozen=True):
    """What an auditor needs; the operator publishes it, and by a way auditors trust.

    Attributes:
        receipt: public Ed25519 key of receipts, base64url.
        log: of checkpoints, as signed-note writes keys.
    """

    origin: str
    kid: str
    receipt: str
    log: str


class ReceiptKeys:
    """Both private keys."""

    def __init__(self, secret: bytes, *, origin: str) -> None:
        self.origin = origin
        self.receipt = _derived(secret, b"waypost receipt")
        self.log = _derived(secret, b"waypost checkpoint")
        self.log_public = self.log.public_key().public_bytes_raw()
        public = self.receipt.public_key().public_bytes_raw()
        self.kid = base64.urlsafe_b64encode(public).decode()[:16]
        self.public = PublicKeys(
            origin=origin,
            kid=self.kid,
            receipt=base64.urlsafe_b64encode(public).decode().rstrip("="),
            log=vkey(origin, self.log_public),
        )


def _derived(secret: bytes, purpose: bytes) -> Ed25519PrivateKey:
    seed = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
    return Ed25519PrivateKey.from_private_bytes(seed)


def load_keys(path: Path, *, origin: str) -> ReceiptKeys:
    """Return the keys of the secret in ``path``, which is made if it is not there.

    Raises:
        StoreError: it cannot be read or written, or is no secret of ours.
    """
    try:
        new = base64.b64encode(secrets.token_bytes(SECRET_BYTES)) + b"\n"
        secret = base64.b64decode(make_once(path, new).strip(), validate=True)
    except (OSError, binascii.Error) as exc:
        raise StoreError(f"the receipts' key at {path} cannot be used: {exc}") from exc
    if len(secret) != SECRET_BYTES:
        raise StoreError(f"the receipts' key at {path} needs {SECRET_BYTES} bytes in base64")
    return ReceiptKeys(secret, origin=origin)
