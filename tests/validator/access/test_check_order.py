"""What is wrong with a token twice is refused for what docs/checks.md checks first."""

import itertools
import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from support.tokens import AUDIENCE, NOW, App
from waypost.client.dpop import DPoPKey
from waypost.shared.errors import ForbiddenError, TokenError
from waypost.shared.tokens.issuer_keys import b64url, jwk_of
from waypost.validator.access.dpop import ProofChecker
from waypost.validator.access.tokens import TokenVerifier

CHECKS = (Path(__file__).parents[3] / "docs/checks.md").read_text()
APP = App()
KEY, OTHER = DPoPKey.generate(), DPoPKey.generate()
METHOD, ORIGIN, PATH = "POST", "https://gateway.example", "/v1/chat/completions"
PROOFS = ProofChecker([ORIGIN], nonce_key=b"n" * 32)
JTI = "0123456789abcdef"
CLAIMS = jwt.decode(APP.mint(jti=JTI, jkt=KEY.thumbprint), options={"verify_signature": False})
SUBJECT = f"{APP.iss} {CLAIMS['sub']}"


class Request:
    """A request that is let in, until something is changed of it."""

    def __init__(self) -> None:
        self.scheme = "DPoP"
        self.header: dict[str, Any] = {"alg": "EdDSA", "kid": APP.kid, "typ": "at+jwt"}
        self.says_alg_twice = False
        self.claims: dict[str, Any] = {**CLAIMS}
        self.tail = ""
        self.is_signed = True
        self.key: dict[str, Any] = {}
        self.issuer: dict[str, Any] = {}
        self.issuers: dict[str, Any] = {}
        self.has_proof = True
        self.proof_key = KEY
        self.proof_header: dict[str, Any] = {}
        self.proof_claims: dict[str, Any] = {}
        self.proof_tail = ""
        self.is_proof_signed = True

    def token(self) -> str:
        header = json.dumps(self.header)
        if self.says_alg_twice:
            header = header.replace("{", '{"alg": "EdDSA", ', 1)
        text = f"{b64url(header.encode())}.{b64url(json.dumps(self.claims).encode())}"
        assert isinstance(APP.key, Ed25519PrivateKey)
        signature = APP.key.sign(text.encode() if self.is_signed else b"another text")
        return f"{text}.{b64url(signature)}{self.tail}"

    def proof(self, token: str) -> str:
        private = self.proof_key._private
        header = {"alg": "ES256", "typ": "dpop+jwt", "jwk": jwk_of(private.public_key())}
        claims = {"jti": "j" * 22, "htm": METHOD, "htu": ORIGIN + PATH, "iat": NOW}
        claims["ath"] = b64url(sha256(token.encode()).digest())
        text = ".".join(
            b64url(json.dumps(part).encode())
            for part in (header | self.proof_header, claims | self.proof_claims)
        )
        signed = text.encode() if self.is_proof_signed else b"another text"
        r, s = decode_dss_signature(private.sign(signed, ECDSA(SHA256())))
        return f"{text}.{b64url(r.to_bytes(32) + s.to_bytes(32))}{self.proof_tail}"

    def code(self) -> str | None:
        """Return the code of its refusal; ``None`` if it is let in."""
        issuer = APP.issuer(keys=(APP.public_key(**self.key),), **self.issuer)
        verifier = TokenVerifier(APP.issuers(issuers=(issuer,), **self.issuers), audience=AUDIENCE)
        token = self.token()
        try:
            verifier.verify(f"{self.scheme} {token}", now=NOW)
            proof = self.proof(token) if self.has_proof else None
            PROOFS.check(proof, method=METHOD, path=PATH, token=token, jkt=KEY.thumbprint, now=NOW)
        except (TokenError, ForbiddenError) as exc:
            return exc.code
        return None


def claim(**changes: object) -> Callable[[Request], None]:
    return lambda request: request.claims.update(changes)


def part(name: str, **changes: object) -> Callable[[Request], None]:
    return lambda request: getattr(request, name).update(changes)


def field(name: str, value: object) -> Callable[[Request], None]:
    return lambda request: setattr(request, name, value)


def unbound(request: Request) -> None:
    request.claims.pop("cnf", None)
    request.issuer["dpop"] = "required"


# In the order of docs/checks.md: number of the check, code, and what is wrong.
WRONGS: list[tuple[int, str, Callable[[Request], None]]] = [
    (1, "token_auth_header", field("scheme", "Basic")),
    (2, "token_size", claim(pad="x" * 9_000)),
    (3, "token_format", field("tail", "=")),
    (4, "token_json", field("says_alg_twice", True)),
    (5, "token_header", part("header", jku="https://evil.example")),
    (6, "token_typ", part("header", typ="JWT")),
    (7, "token_kid", part("header", kid="../x")),
    (7, "token_unknown_kid", part("header", kid="another")),
    (8, "token_key_revoked", part("key", status="revoked")),
    (8, "token_key_inactive", part("key", expires_at=NOW)),
    (9, "token_alg", part("header", alg="ES256")),
    (10, "token_signature", field("is_signed", False)),
    (11, "token_claims", claim(tier=7)),
    (12, "token_issuer", claim(iss="https://other.example")),
    (13, "token_audience", claim(aud="another validator")),
    (14, "token_expired", claim(iat=NOW - 700, exp=NOW - 100)),
    (15, "token_not_yet_valid", claim(nbf=NOW + 100)),
    (16, "token_lifetime", part("issuer", max_lifetime_s=60)),
    (17, "token_key_inactive", part("key", not_before=NOW + 20)),
    (17, "token_superseded", part("issuer", min_iat=NOW + 1)),
    (18, "token_epoch", part("issuers", min_epoch_by_subject={SUBJECT: 3})),
    (19, "token_revoked", part("issuers", revoked_jtis=(f"{APP.iss} {JTI}",))),
    (20, "token_tenant", part("issuer", tenants=("clinic",))),
    (20, "token_account", part("issuer", accounts=("clinic",))),
    (21, "scope_missing", part("issuer", scope="infer")),
    (22, "token_unbound", unbound),
    (22, "token_cnf", field("scheme", "Bearer")),
    (22, "dpop_missing", field("has_proof", False)),
    (23, "dpop_format", field("proof_tail", "=")),
    (23, "dpop_header", part("proof_header", kid="x")),
    (23, "dpop_signature", field("is_proof_signed", False)),
    (23, "dpop_claims", part("proof_claims", jti="")),
    (24, "dpop_target", part("proof_claims", htm="GET")),
    (25, "dpop_nonce", part("proof_claims", nonce="nobody's")),
    (25, "dpop_time", part("proof_claims", iat=NOW - 100)),
    (26, "dpop_token", part("proof_claims", ath=b64url(b"another token"))),
    (26, "dpop_key", field("proof_key", OTHER)),
]


def test_what_all_departs_from_is_let_in() -> None:
    assert Request().code() is None


@pytest.mark.parametrize(
    ("number", "code", "bend"), WRONGS, ids=[f"{number} {code}" for number, code, _ in WRONGS]
)
def test_each_check_has_the_code_that_the_page_says(
    number: int, code: str, bend: Callable[[Request], None]
) -> None:
    request = Request()
    bend(request)

    assert request.code() == code
    (row,) = re.findall(rf"^\| {number} \|.*$", CHECKS, re.M)
    assert f"`{code}`" in row


def test_of_two_faults_the_one_that_is_checked_first_is_told() -> None:
    told: dict[tuple[str, str], str | None] = {}
    for (_, first, bend_first), (_, second, bend_second) in itertools.combinations(WRONGS, 2):
        request = Request()
        # Where both change the same thing, the first is what is there.
        bend_second(request)
        bend_first(request)
        code = request.code()
        if code != first:
            told[first, second] = code

    assert told == {}
    assert [number for number, _, _ in WRONGS] == sorted(number for number, _, _ in WRONGS)
