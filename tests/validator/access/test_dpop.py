"""Which proofs of possession a validator takes (RFC 9449). One departure from the valid a test."""

import json
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from support.tokens import NOW, App
from waypost.client.dpop import DPoPKey
from waypost.shared.errors import TokenError
from waypost.shared.tokens.issuer_keys import jwk_of, thumbprint
from waypost.validator.access.dpop import NONCE_SPAN_S, Proof, ProofChecker

ORIGIN = "https://gateway.example"
PATH = "/v1/chat/completions"
EC = generate_private_key(SECP256R1())
KEY = DPoPKey(EC)
TOKEN = App().mint(jkt=KEY.thumbprint)
CHECKER = ProofChecker([ORIGIN], nonce_key=b"n" * 32)
STRICT = ProofChecker([ORIGIN], nonce_key=b"n" * 32, requires_nonce=True)


class Change(TypedDict, total=False):
    method: str
    url: str
    token: str
    now: int
    jti: str
    nonce: str


def proof(key: DPoPKey = KEY, **change: Unpack[Change]) -> str:
    """Return a proof that ``check`` takes, but for ``change``."""
    method, url = change.pop("method", "POST"), change.pop("url", ORIGIN + PATH)
    defaults = {"token": TOKEN, "now": NOW, "jti": "0123456789abcdef"}
    return key.proof(method, url, **{**defaults, **change})  # type: ignore[arg-type]


def check(sent: str | None, *, checker: ProofChecker = CHECKER, now: int = NOW) -> Proof:
    return checker.check(sent, method="POST", path=PATH, token=TOKEN, jkt=KEY.thumbprint, now=now)


def refusal(sent: str | None, *, checker: ProofChecker = CHECKER, now: int = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        check(sent, checker=checker, now=now)
    assert (caught.value.nonce is not None) == (caught.value.code in {"dpop_nonce", "dpop_time"})
    return caught.value.code


def forged(key: Any, claims: Mapping[str, object] | None = None, **header: object) -> str:  # noqa: ANN401
    """Return a proof signed by ``key``, whatever it says."""
    said = jwt.decode(proof(), options={"verify_signature": False})
    alg = str(header.get("alg", "ES256"))
    payload = json.dumps(said if claims is None else {**said, **claims}).encode()
    made = jwt.PyJWS().encode(payload, key, alg, headers={"typ": "dpop+jwt", **header})
    return made + "AAAA" if alg == "none" else made


def test_a_good_proof_holds_and_is_told_from_others() -> None:
    mark = check(proof()).mark

    assert check(proof(now=NOW - 1)).mark == mark
    assert check(proof(jti="another")).mark != mark


def test_an_ed25519_key_proves_as_well() -> None:
    key = Ed25519PrivateKey.generate()
    jwk = jwk_of(key.public_key())
    sent = forged(key, alg="EdDSA", jwk=jwk)

    held = CHECKER.check(sent, method="POST", path=PATH, token=TOKEN, jkt=thumbprint(jwk), now=NOW)
    assert held.until == NOW + 61


def test_the_thumbprint_is_that_of_the_standard() -> None:
    # RFC 8037 appendix A.3.
    jwk = {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    }

    assert thumbprint(jwk) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_the_standard_s_own_example_holds() -> None:
    # RFC 9449 §7.1.
    sent = (
        "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNo"
        "UklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERW"
        "clUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1"
        "IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwi"
        "YXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey7"
        "1EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
    )

    assert ProofChecker(["https://resource.example.org"], nonce_key=b"n").check(
        sent,
        method="GET",
        path="/protectedresource",
        token="Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
        jkt="0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        now=1_562_262_618,
    )


# ── form and header ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sent", [None, "", f"{proof()}, {proof(jti='another')}"])
def test_there_must_be_exactly_one_proof(sent: str | None) -> None:
    assert refusal(sent) == "dpop_missing"


@pytest.mark.parametrize("sent", ["x", proof() + "=", proof() + " ", "a" * 5_000, proof()[:-90]])
def test_a_proof_has_the_one_form_of_a_token(sent: str) -> None:
    assert refusal(sent) == "dpop_format"


JWK = jwk_of(EC.public_key())
PRIVATE_JWK = ECAlgorithm.to_jwk(EC, as_dict=True)
RSA = rsa.generate_private_key(65_537, 2_048)
P384 = generate_private_key(SECP384R1())


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": JWK, "typ": "at+jwt"},
        {"jwk": JWK, "typ": "DPOP+JWT"},
        {"jwk": JWK, "kid": "x"},
        {"jwk": JWK, "crit": ["x"]},
        {},
        {"jwk": "x"},
        {"jwk": PRIVATE_JWK},
        {"jwk": {**JWK, "x": JWK["y"]}},
        {"jwk": {**JWK, "crv": "P-384"}},
        {"jwk": {**JWK, "kty": "oct", "k": "AAAA"}},
        {"jwk": {**JWK, "use": "enc"}},
        {"jwk": {**JWK, "pad": "x" * 1_000}},
    ],
    ids=[
        "an access token's typ",
        "typ in capitals",
        "kid",
        "crit",
        "no jwk",
        "jwk is text",
        "private",
        "not on the curve",
        "curve",
        "symmetric",
        "use",
        "large",
    ],
)
def test_a_proof_s_header_brings_one_public_key_and_nothing_else(header: dict[str, Any]) -> None:
    assert refusal(forged(EC, **header)) == "dpop_header"


@pytest.mark.parametrize(
    ("key", "alg", "jwk"),
    [
        (RSA, "RS256", RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True)),
        (P384, "ES384", ECAlgorithm.to_jwk(P384.public_key(), as_dict=True)),
        (b"k" * 32, "HS256", JWK),
        ("", "none", JWK),
        (Ed25519PrivateKey.generate(), "EdDSA", JWK),
    ],
    ids=["RS256", "ES384", "HS256", "none", "EdDSA by a P-256 key"],
)
def test_a_proof_s_key_is_of_a_kind_that_fits_its_algorithm(key: Any, alg: str, jwk: Any) -> None:  # noqa: ANN401
    assert refusal(forged(key, alg=alg, jwk=jwk)) == "dpop_header"


def test_a_proof_is_signed_by_the_key_it_brings() -> None:
    assert refusal(forged(EC, jwk=jwk_of(generate_private_key(SECP256R1()).public_key()))) == (
        "dpop_signature"
    )


# ── what it says ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "claims",
    [
        {"jti": None},
        {"jti": ""},
        {"jti": "x" * 129},
        {"jti": "a b"},
        {"iat": str(NOW)},
        {"iat": NOW + 0.5},
        {"iat": True},
        {"iat": 10**400},
        {"htm": ["POST"]},
        {"htu": "https://gateway.example/a b"},
        {"ath": 1},
        {"nonce": 1},
    ],
)
def test_a_proof_s_claims_have_their_types(claims: dict[str, object]) -> None:
    assert refusal(forged(EC, claims, jwk=JWK)) == "dpop_claims"


def test_no_claim_of_a_proof_may_be_there_twice() -> None:
    said = jwt.decode(proof(), options={"verify_signature": False})
    text = b'{"htm":"GET",' + json.dumps(said).encode()[1:]
    sent = jwt.PyJWS().encode(text, EC, "ES256", headers={"typ": "dpop+jwt", "jwk": JWK})

    assert refusal(sent) == "dpop_claims"


@pytest.mark.parametrize("missing", ["jti", "htm", "htu", "iat", "ath"])
def test_no_claim_of_a_proof_may_be_missing(missing: str) -> None:
    said = jwt.decode(proof(), options={"verify_signature": False})
    del said[missing]
    sent = jwt.PyJWS().encode(
        json.dumps(said).encode(), EC, "ES256", headers={"typ": "dpop+jwt", "jwk": JWK}
    )

    assert refusal(sent) == "dpop_claims"


@pytest.mark.parametrize("method", ["GET", "post", "PUT", ""])
def test_a_proof_is_for_one_method(method: str) -> None:
    assert refusal(forged(EC, {"htm": method}, jwk=JWK)) in {"dpop_target", "dpop_claims"}


@pytest.mark.parametrize(
    "url",
    [
        ORIGIN,
        ORIGIN + "/v1/models",
        ORIGIN + PATH + "/",
        ORIGIN + PATH.upper(),
        ORIGIN + "/v1/../v1/chat/completions",
        "http://gateway.example" + PATH,
        "https://gateway.example:8443" + PATH,
        "https://gateway.example.evil.example" + PATH,
        "https://gateway.example@evil.example" + PATH,
        "https://user@gateway.example" + PATH,
        PATH,
        "https://[" + PATH,
        "https://gateway.example:99999" + PATH,
    ],
)
def test_a_proof_is_for_one_url(url: str) -> None:
    assert refusal(proof(url=url)) == "dpop_target"


@pytest.mark.parametrize(
    "url",
    [
        "HTTPS://GATEWAY.example:443" + PATH,
        ORIGIN + PATH + "?x=1",
        ORIGIN + PATH + "#x",
    ],
)
def test_spellings_of_the_same_origin_and_queries_make_no_difference(url: str) -> None:
    assert check(proof(url=url))


def test_what_a_proxy_takes_off_a_path_belongs_to_the_origin() -> None:
    behind = ProofChecker(["https://gateway.example/llm/"], nonce_key=b"n" * 32)

    assert check(proof(url="https://gateway.example/llm" + PATH), checker=behind)
    assert refusal(proof(), checker=behind) == "dpop_target"


def test_a_proof_is_for_one_token() -> None:
    assert refusal(proof(token=App().mint(jkt=KEY.thumbprint))) == "dpop_token"


def test_a_proof_is_by_the_key_that_the_token_is_bound_to() -> None:
    assert refusal(proof(DPoPKey.generate())) == "dpop_key"


# ── time and nonces ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("off_s", [-61, 61])
def test_a_proof_lasts_a_minute(off_s: int) -> None:
    assert refusal(proof(now=NOW + off_s)) == "dpop_time"
    assert check(proof(now=NOW + off_s - off_s // abs(off_s)))


def test_a_proof_is_remembered_for_as_long_as_it_would_hold() -> None:
    sent = proof(now=NOW + 60)
    until = check(sent).until

    assert check(sent, now=until - 1)
    assert refusal(sent, now=until) == "dpop_time"


def test_a_client_whose_clock_is_off_goes_on_with_the_nonce_it_is_told() -> None:
    with pytest.raises(TokenError) as caught:
        check(proof(now=NOW - 86_400))
    nonce = caught.value.nonce
    assert nonce is not None

    assert check(proof(now=NOW - 86_400, nonce=nonce))


def test_where_nonces_are_required_a_right_clock_is_not_enough() -> None:
    assert refusal(proof(), checker=STRICT) == "dpop_nonce"
    assert check(proof(nonce=STRICT.nonce(NOW)), checker=STRICT)


def test_a_nonce_lasts_for_its_span_and_the_next_when_it_is_replaced() -> None:
    start = NOW - NOW % NONCE_SPAN_S
    sent = proof(nonce=CHECKER.nonce(start))
    until = start + 2 * NONCE_SPAN_S

    early, late = check(sent, now=start + NONCE_SPAN_S - 1), check(sent, now=until - 1)

    assert (early.until, early.next_nonce) == (until, None)
    assert (late.until, late.next_nonce) == (until, CHECKER.nonce(until - 1))
    assert refusal(sent, now=until) == "dpop_nonce"


@pytest.mark.parametrize("nonce", ["x", "A" * 22])
def test_a_nonce_of_somebody_else_is_none(nonce: str) -> None:
    assert refusal(proof(nonce=nonce)) == "dpop_nonce"


def test_a_nonce_from_the_future_is_none() -> None:
    assert refusal(proof(nonce=CHECKER.nonce(NOW + NONCE_SPAN_S))) == "dpop_nonce"


def test_validators_that_share_a_key_take_each_other_s_nonces() -> None:
    other = ProofChecker([ORIGIN], nonce_key=b"n" * 32, requires_nonce=True)
    stranger = ProofChecker([ORIGIN], nonce_key=b"m" * 32, requires_nonce=True)

    assert check(proof(nonce=STRICT.nonce(NOW)), checker=other)
    assert refusal(proof(nonce=STRICT.nonce(NOW)), checker=stranger) == "dpop_nonce"
