"""The receipt: a JWS of a kind of its own that says what was decided for one request. Pure.

Signed when the answer begins, it names the record it will be found in; what only the end shows,
as the bill, is in the record, which the log seals.
"""

import base64
import binascii
from hashlib import sha256

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Struct

from waypost.shared.contracts import Facts
from waypost.shared.records import DecisionRecord
from waypost.validator.receipts.keys import PublicKeys, ReceiptKeys
from waypost.validator.receipts.tlog import LogError

__all__ = ["HEADER", "Receipt", "differences", "facts_digest", "open_receipt", "sign_receipt"]

HEADER = b"waypost-receipt"
TYPE = "waypost-receipt+jwt"
MAX_BYTES = 8_192


class Receipt(Struct, frozen=True, kw_only=True):
    """The claims.

    Attributes:
        jti: id of the decision.
        sub: the caller's pseudonym.
        facts: SHA-256 of the facts as JSON.
    """

    iss: str
    jti: str
    iat: int
    sub: str
    verdict: str
    reason: str
    requested: str | None
    model: str | None
    provider: str | None
    region: str | None
    route: str | None
    manifest: int | None
    manifest_sha256: str | None
    facts: str | None


class _Header(Struct, forbid_unknown_fields=True):
    alg: str
    typ: str
    kid: str


_encode = msgspec.json.Encoder().encode


def facts_digest(facts: Facts | None) -> str | None:
    """Return what a receipt calls the facts."""
    return None if facts is None else sha256(_encode(facts)).hexdigest()


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign_receipt(receipt: Receipt, keys: ReceiptKeys) -> bytes:
    """Return the receipt as a compact JWS."""
    head = _b64(_encode({"alg": "EdDSA", "typ": TYPE, "kid": keys.kid}))
    signed = head + b"." + _b64(_encode(receipt))
    return signed + b"." + _b64(keys.receipt.sign(signed))


def open_receipt(token: bytes, keys: PublicKeys) -> Receipt:
    """Return the claims, if the operator with these keys signed them as a receipt.

    Raises:
        LogError: ``receipt_malformed`` or ``receipt_forged``.
    """
    try:
        if len(token) > MAX_BYTES:
            raise ValueError
        head, payload, signature = token.strip().split(b".")
        header = msgspec.json.decode(_unb64(head), type=_Header)
        receipt = msgspec.json.decode(_unb64(payload), type=Receipt)
        raw = _unb64(signature)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise LogError("this is no receipt", code="receipt_malformed") from None
    public = Ed25519PublicKey.from_public_bytes(_unb64(keys.receipt.encode()))
    try:
        public.verify(raw, head + b"." + payload)
    except InvalidSignature:
        header.alg = ""
    if (header.alg, header.typ, header.kid) != ("EdDSA", TYPE, keys.kid):
        raise LogError("the receipt is not signed by this operator", code="receipt_forged")
    if receipt.iss != keys.origin:
        raise LogError(f"the receipt is {receipt.iss}'s", code="receipt_forged")
    return receipt


def _unb64(data: bytes) -> bytes:
    return base64.b64decode(data + b"=" * (-len(data) % 4), altchars=b"-_", validate=True)


def differences(receipt: Receipt, record: DecisionRecord) -> tuple[str, ...]:
    """Return the names of what record and receipt say differently.

    The end may still change verdict and reason, as when a deadline passes; where the request
    went, whose it was and what it was decided from may not.
    """
    said: dict[str, tuple[object, object]] = {
        "sub": (receipt.sub, record.subject),
        "model": (receipt.model, record.model if record.verdict != "refused" else receipt.model),
        "manifest": (receipt.manifest_sha256, record.manifest_digest),
        "facts": (receipt.facts, facts_digest(record.facts)),
    }
    return tuple(name for name, (ours, theirs) in said.items() if ours != theirs)
