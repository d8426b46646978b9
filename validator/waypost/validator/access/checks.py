"""What a token is checked with, beside the manifest: its proof, and whether it was used before."""

import hmac
from typing import Self

from msgspec import Struct

from waypost.validator.access.dpop import ProofChecker
from waypost.validator.access.seen_once import SeenOnce
from waypost.validator.config import ValidatorConfig

__all__ = ["AccessChecks"]


class AccessChecks(Struct, frozen=True):
    """The operator's own side of authentication.

    Attributes:
        seen: what counts once, and was used.
        proofs: checks that a caller has the key its token is bound to; ``None``: nothing can.
        pseudonym_key: what subjects are made unreadable with.
    """

    seen: SeenOnce
    proofs: ProofChecker | None
    pseudonym_key: bytes

    def __repr__(self) -> str:
        return "AccessChecks()"  # its key is secret

    @classmethod
    def configured(cls, config: ValidatorConfig, *, seen: SeenOnce, pseudonym_key: bytes) -> Self:
        """Return the checks that ``validator.yaml`` asks for."""
        if config.dpop is None:
            return cls(seen, None, pseudonym_key)
        proofs = ProofChecker(
            config.dpop.origins,
            # Of the one secret that validators of one operator share. No subject has this name.
            nonce_key=hmac.digest(pseudonym_key, b"\0nonces for proofs", "sha256"),
            requires_nonce=config.dpop.nonce == "required",
            max_age_s=config.dpop.max_age_s,
        )
        return cls(seen, proofs, pseudonym_key)
