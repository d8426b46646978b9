"""An app with a token-issuer key of its own: gives issuers, and tokens that hold."""

from dataclasses import dataclass, field
from typing import TypedDict, Unpack
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs

from waypost.edge.tokens.issue import SigningKey, issuer_key, mint, new_claims
from waypost.shared.contracts import Claims, Issuer, IssuerKey, Issuers, Limits, SpendLimit

NOW = 1_800_000_000  # Friday 2027-01-15 08:00:00 UTC
AUDIENCE = "waypost-validator"
CHANNEL = "prod"


class Wishes(TypedDict, total=False):
    """What a test wants of a token; the rest is valid at ``NOW``."""

    now: int
    lifetime_s: int
    account: str
    limits: tuple[SpendLimit, ...]
    iss: str
    aud: str
    sub: str
    exp: int
    iat: int
    nbf: int
    jti: str
    client_id: str
    tier: str
    tenant: str
    region: str
    data_classes: tuple[str, ...]
    models: tuple[str, ...]
    scope: str
    auth_epoch: int
    one_time: bool
    allowances: tuple[Limits, ...]
    jkt: str


@dataclass
class App:
    """One token issuer.

    ``app.bearer(tier="free")`` is an ``Authorization`` header that
    ``TokenVerifier(app.issuers(), audience=AUDIENCE)`` accepts at ``NOW``.
    """

    iss: str = "https://app.example"
    kid: str = "app-1"
    audience: str = AUDIENCE
    key: SigningKey = field(default_factory=Ed25519PrivateKey.generate)

    @classmethod
    def with_es256(cls) -> "App":
        return cls(kid="app-ec-1", key=generate_private_key(SECP256R1()))

    @classmethod
    def with_rs256(cls) -> "App":
        return cls(kid="app-rsa-1", key=rsa.generate_private_key(65_537, 2_048))

    def public_key(self, **changes: object) -> IssuerKey:
        return structs.replace(issuer_key(self.key, kid=self.kid), **changes)

    def issuer(self, **changes: object) -> Issuer:
        return structs.replace(Issuer(iss=self.iss, keys=(self.public_key(),)), **changes)

    def issuers(self, *others: "App", version: int = 1, **changes: object) -> Issuers:
        everyone = (self.issuer(), *(other.issuer() for other in others))
        made = Issuers(channel=CHANNEL, version=version, issued_at=NOW, issuers=everyone)
        return structs.replace(made, **changes)

    def claims(self, **wishes: Unpack[Wishes]) -> Claims:
        claims = new_claims(
            iss=self.iss,
            aud=self.audience,
            sub=wishes.get("sub", "user-1"),
            tier=wishes.get("tier", "pro"),
            account=wishes.pop("account", "acme"),
            now=wishes.pop("now", NOW),
            jti=uuid4().hex,
            limits=wishes.pop("limits", ()),
            lifetime_s=wishes.pop("lifetime_s", 600),
            jkt=wishes.pop("jkt", None),
        )
        return structs.replace(claims, **wishes)

    def mint(self, **wishes: Unpack[Wishes]) -> str:
        return mint(self.claims(**wishes), key=self.key, kid=self.kid)

    def bearer(self, **wishes: Unpack[Wishes]) -> str:
        return f"Bearer {self.mint(**wishes)}"

    def sign(self, payload: bytes, **header: object) -> str:
        """Return ``payload`` as it is, well signed, with header fields added or replaced."""
        return jwt.api_jws.encode(
            payload,
            self.key,
            algorithm=self.public_key().alg,
            headers={"typ": "at+jwt", "kid": self.kid, **header},
        )
