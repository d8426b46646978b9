"""Whose access tokens hold, and what is in one."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import Decoder

from waypost.shared.contracts.common import Instant, Name, Version
from waypost.shared.money import Nusd

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Claims",
    "Confirmation",
    "Epoch",
    "Issuer",
    "IssuerKey",
    "Issuers",
    "Limits",
    "SpendLimit",
    "TokenId",
    "Window",
    "decode_issuers",
]

# 32 bytes in canonical base64url: the last letter has four bits, so that one key has one spelling.
_Digest = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]\Z")]
_Integer = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,700}\Z")]
_Word = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+\Z")]
Epoch = Annotated[int, Meta(ge=0, lt=2**53)]

_ACCOUNT = r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}"
AccountPattern = Annotated[str, Meta(pattern=rf"^{_ACCOUNT}\*?\Z")]

Algorithm = Literal["EdDSA", "ES256", "RS256"]
ALGORITHMS: tuple[Algorithm, ...] = ("EdDSA", "ES256", "RS256")


class IssuerKey(Struct, frozen=True, kw_only=True):
    """One public key of a token issuer, as RFC 7517 writes an OKP, EC or RSA key.

    ``alg`` is the key's single algorithm (RFC 8725 §3.1): a token saying another is refused.
    """

    kid: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    alg: Algorithm
    x: _Digest | None = None
    y: _Digest | None = None
    n: _Integer | None = None
    e: _Integer | None = None
    status: Literal["active", "retiring", "revoked"] = "active"
    not_before: Instant = 0
    expires_at: Instant | None = None


class Issuer(Struct, frozen=True, kw_only=True):
    """One token issuer, and what it is trusted to say.

    Attributes:
        algorithms: of its keys; a key of another is refused with the whole document.
        min_iat: revokes everything it issued before that instant.
        scope: what a token's ``scope`` must hold; ``None`` asks for none.
        tenants: those it may speak for; ``None``: any, or none where there are other issuers.
        accounts: those it may spend from, by name, or by a name's beginning and ``*``; ``None``:
            any, or none where there are other issuers.
        one_time: each of its tokens counts once, whatever the token says.
        dpop: whether its tokens must be bound to a key (RFC 9449).
        bearer_clients: by ``client_id``, those whose tokens need not be.
    """

    iss: Annotated[str, Meta(min_length=1, max_length=300)]
    keys: tuple[IssuerKey, ...]
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    max_lifetime_s: Annotated[int, Meta(ge=1, le=86_400)] = 3_600
    min_iat: Instant = 0
    scope: _Word | None = None
    tenants: tuple[Name, ...] | None = None
    accounts: tuple[AccountPattern, ...] | None = None
    one_time: bool = False
    dpop: Literal["optional", "required"] = "optional"
    bearer_clients: tuple[_Word, ...] = ()


class Issuers(Struct, frozen=True, kw_only=True):
    """Target ``issuers/<channel>.json``: who may issue tokens, and which of them are revoked.

    Attributes:
        revoked_jtis: token ids, each as ``<iss> <jti>``.
        min_iat_by_subject: subject, as ``<iss> <sub>`` → instant before which its tokens fall.
        min_iat_by_tenant: tenant, as ``<iss> <tenant>`` → likewise.
        min_epoch_by_subject: subject → the lowest ``auth_epoch`` that its tokens may have.
    """

    channel: Name
    version: Version
    issued_at: Instant
    issuers: tuple[Issuer, ...] = ()
    revoked_jtis: tuple[str, ...] = ()
    min_iat_by_subject: dict[str, Instant] = {}
    min_iat_by_tenant: dict[str, Instant] = {}
    min_epoch_by_subject: dict[str, Epoch] = {}
    kind: Literal["issuers"] = "issuers"
    schema: Literal[1] = 1
    must_understand: tuple[str, ...] = ()


decode_issuers = Decoder(Issuers).decode

Window = Literal["request", "minute", "hour", "day", "week", "month", "total"]


class SpendLimit(Struct, frozen=True, kw_only=True):
    """At most ``limit_nusd`` in each calendar ``window`` of the ledger; ``total`` never resets."""

    window: Window
    limit_nusd: Nusd


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of one account, as ceilings: the lowest of several holds."""

    account: Annotated[str, Meta(pattern=rf"^{_ACCOUNT}\Z")]
    limits: tuple[SpendLimit, ...] = ()


TokenId = Annotated[str, Meta(min_length=16, max_length=128, pattern=r"^[\x21-\x7e]+\Z")]


class Confirmation(Struct, frozen=True, forbid_unknown_fields=True):
    """The key that a token is bound to: its RFC 7638 thumbprint (RFC 9449 §6.1).

    Another kind of bond than this one cannot be checked, and so must not be overlooked.
    """

    jkt: _Digest


class Claims(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An access token's claims: RFC 9068's, and ours. Grants are ceilings; the rest narrows.

    Attributes:
        cnf: the key whose holder alone may use the token.
        scope: words with spaces between (RFC 8693 §4.2); an issuer may have to give one.
        auth_epoch: how often the subject's tokens had been taken back when this was made.
        one_time: the token counts once.
        allowances: further accounts, each with limits of its own, that must all be able to pay.
        tier: must be one of the policy's tiers.
        budget: the account that pays, and ceilings for it. The ledger's own limits hold too.
        data_classes: duties that always hold for this caller.
        models: narrows the set; ``None`` leaves it as the tier has it.
    """

    iss: Annotated[str, Meta(min_length=1, max_length=300)]
    aud: Annotated[str, Meta(min_length=1, max_length=300)]
    sub: _Word
    exp: Instant
    iat: Instant
    jti: TokenId
    client_id: _Word
    tier: Name
    budget: Limits
    nbf: Instant = 0
    tenant: Name | None = None
    region: Name | None = None
    data_classes: tuple[Name, ...] = ()
    models: tuple[Name, ...] | None = None
    scope: Annotated[str, Meta(max_length=1_000)] = ""
    auth_epoch: Epoch = 0
    one_time: bool = False
    allowances: Annotated[tuple[Limits, ...], Meta(max_length=4)] = ()
    cnf: Confirmation | UnsetType = UNSET  # never null: that would be a bond taken off
