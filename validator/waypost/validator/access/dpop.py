"""Says whether a request's sender holds the key that its access token is bound to.

Pure: what was seen before is remembered elsewhere (``waypost.validator.access.seen_once``). Nonces
need no memory: each is a keyed hash of its span of time, so all validators that share a key agree.

Source: RFC 9449 (DPoP) §4.3, in the order of docs/tokens.md.
"""

import hmac
from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from waypost.shared.tokens.issuer_keys import (
    b64url,
)
from waypost.validator.access.jose import (
    holder_of,
    is_compact,
    refused,
    signed_payload,
    strict_json,
)

__all__ = ["Proof", "ProofChecker"]

MAX_PROOF_CHARS = 4_096

# A proof is good for this span and the next, so that none lapses on its way.
NONCE_SPAN_S = 300

DEFAULT_PORTS = {"http": 80, "https": 443}

_Text = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+\Z")]


class _Proven(Struct, frozen=True):
    """A proof's claims. Others may be there (RFC 9449 §4.2) and change nothing."""

    jti: _Text
    htm: _Text
    htu: Annotated[str, Meta(max_length=2_000, pattern=r"^[\x21-\x7e]+\Z")]
    iat: Annotated[int, Meta(ge=0, le=2**40)]
    ath: _Text
    nonce: _Text | None = None


_decode = msgspec.json.Decoder(_Proven).decode


class Proof(Struct, frozen=True):
    """A proof that holds, if it was not seen before.

    Attributes:
        mark: tells it from others; no secret.
        until: Unix seconds until which it would hold again.
        next_nonce: to give out with the answer; ``None`` while the client needs no other.
    """

    mark: bytes
    until: int
    next_nonce: str | None = None


class ProofChecker:
    """Checks proofs made for this validator."""

    def __init__(
        self,
        origins: Iterable[str],
        *,
        nonce_key: bytes,
        requires_nonce: bool = False,
        max_age_s: int = 60,
    ) -> None:
        """Args:
        origins: what clients put before the path; never what ``Host`` says, which they choose.
        nonce_key: shared by validators that one client may reach.
        requires_nonce: else a client's own clock counts, as long as it is right.
        max_age_s: how far that clock may be off.
        """
        self._origins = tuple(_normal(origin.rstrip("/")) for origin in origins)
        self._nonce_key = nonce_key
        self._requires_nonce = requires_nonce
        self._max_age_s = max_age_s

    def check(
        self, proof: str | None, *, method: str, path: str, token: str, jkt: str, now: int
    ) -> Proof:
        """Return the proof, good for this request with this token.

        Args:
            proof: the ``DPoP`` header; several joined with commas are refused.
            path: without query.
            jkt: the thumbprint in the token.
            now: Unix seconds.

        Raises:
            TokenError: a code of ``TokenCode`` that begins with ``dpop_``.
        """
        if not proof:
            raise refused("dpop_missing")
        if len(proof) > MAX_PROOF_CHARS or not is_compact(proof):
            raise refused("dpop_missing" if "," in proof else "dpop_format")
        holder = holder_of(proof.partition(".")[0], typ="dpop+jwt", code="dpop_header")
        payload = signed_payload(proof, holder.public, holder.alg, code="dpop_signature")
        strict_json(payload, code="dpop_claims")
        try:
            said = _decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise refused("dpop_claims") from None
        if said.htm != method or not self._is_here(said.htu, path):
            raise refused("dpop_target")
        until, next_nonce = self._until(said, now)
        if not hmac.compare_digest(said.ath, b64url(sha256(token.encode()).digest())):
            raise refused("dpop_token")
        if not hmac.compare_digest(holder.thumbprint, jkt):
            raise refused("dpop_key")
        return Proof(sha256(f"{jkt} {said.jti}".encode()).digest()[:16], until, next_nonce)

    def nonce(self, now: int) -> str:
        """Return the nonce to give out now."""
        return self._nonce(now // NONCE_SPAN_S)

    def _nonce(self, span: int) -> str:
        return b64url(hmac.digest(self._nonce_key, b"%d" % span, "sha256")[:16])

    def _until(self, said: _Proven, now: int) -> tuple[int, str | None]:
        """Return how long the proof holds, and the nonce to go on with.

        Its time counts by its nonce, else by its ``iat``. Whoever asks at all often gets a newer
        nonce in an answer before the old one lapses (RFC 9449 §8.2), and is never refused for it.
        """
        span = now // NONCE_SPAN_S
        if said.nonce is not None:
            if hmac.compare_digest(said.nonce, self._nonce(span)):
                return (span + 2) * NONCE_SPAN_S, None
            if hmac.compare_digest(said.nonce, self._nonce(span - 1)):
                return (span + 1) * NONCE_SPAN_S, self._nonce(span)
            raise refused("dpop_nonce", nonce=self.nonce(now))
        if self._requires_nonce:
            raise refused("dpop_nonce", nonce=self.nonce(now))
        if abs(now - said.iat) > self._max_age_s:
            # The client's clock may be wrong for ever; with a nonce it need not be right.
            raise refused("dpop_time", nonce=self.nonce(now))
        return said.iat + self._max_age_s + 1, None

    def _is_here(self, htu: str, path: str) -> bool:
        here = [origin + path for origin in self._origins]
        return htu in here or _normal(htu) in here


def _normal(url: str) -> str:
    """Return ``url`` without query, its origin as RFC 3986 §6.2 compares them; "" if it is none."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return ""
    if not host or scheme not in DEFAULT_PORTS or parts.username is not None:
        return ""
    host = f"[{host}]" if ":" in host else host
    where = host if port in (None, DEFAULT_PORTS[scheme]) else f"{host}:{port}"
    return f"{scheme}://{where}{parts.path}"
