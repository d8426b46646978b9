"""Forged, bent and oversized tokens. PyJWT by itself takes about half of these.

Attacks on proofs of possession are in ``validator/access/test_dpop.py`` and ``test_bound_tokens.py``, on
narrowed tokens in ``test_narrowing.py``, Wycheproof's beside this file.
"""

import base64
import hmac
import itertools
import json
import time
from collections.abc import Callable

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st

from support.tokens import AUDIENCE, NOW, App
from waypost.shared.errors import TokenError
from waypost.shared.tokens.issuer_keys import as_jwk
from waypost.validator.access.jose import REFUSAL
from waypost.validator.access.tokens import TokenVerifier

APP = App()
VERIFIER = TokenVerifier(APP.issuers(), audience=AUDIENCE)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def refusal(token: str, verifier: TokenVerifier = VERIFIER) -> str:
    with pytest.raises(TokenError) as caught:
        verifier.verify(f"Bearer {token}", now=NOW)
    assert caught.value.message == REFUSAL
    assert caught.value.__cause__ is None
    return caught.value.code


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def payload(**changes: object) -> bytes:
    return json.dumps(
        {**json.loads(jwt.api_jws.decode(APP.mint(), APP.key.public_key(), ["EdDSA"])), **changes}
    ).encode()


def signed(claims: bytes, **header: object) -> str:
    return APP.sign(claims, **header)


def with_header(header: bytes) -> str:
    """Return a token with exactly this header, correctly signed."""
    signing_input = f"{b64(header)}.{b64(payload())}"
    signature = jwt.algorithms.OKPAlgorithm().sign(signing_input, APP.key)  # type: ignore[arg-type]
    return f"{signing_input}.{b64(signature)}"


def test_the_forgers_own_tools_make_a_good_token() -> None:
    # Else every attack below might fail for a reason of its own.
    plain = with_header(b'{"alg":"EdDSA","typ":"at+jwt","kid":"app-1"}')

    assert VERIFIER.verify(f"Bearer {signed(payload())}", now=NOW)
    assert VERIFIER.verify(f"Bearer {plain}", now=NOW)


# ── form ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "bend",
    [
        lambda t: t + "=",
        lambda t: t + "==",
        lambda t: t + "\n",
        lambda t: t + " ",
        lambda t: t + "\t",
        lambda t: t + "\x00",
        lambda t: " " + t,
        lambda t: "\t" + t,
        lambda t: t.replace(".", " .", 1),
        lambda t: t.replace(".", ".\n", 1),
        lambda t: t[:20] + "\r\n" + t[20:],
        lambda t: t[:20] + "%" + t[20:],
        lambda t: t.replace(".", "\uff0e"),
        lambda t: t.replace(".", "..", 1),
        lambda t: t + ".e30.e30",
        lambda t: t.rsplit(".", 1)[0],
        lambda t: t.rsplit(".", 1)[0] + ".",
        lambda t: json.dumps({"payload": t}).replace(" ", "").replace(",", ""),
        lambda t: t.replace("_", "/").replace("-", "+") + "/",
        lambda t: "é" + t,
    ],
    ids=[
        "=",
        "==",
        "newline",
        "space",
        "tab",
        "NUL",
        "space before",
        "tab before",
        "space in front of the dot",
        "newline after the dot",
        "folded",
        "percent",
        "wide dots",
        "empty part",
        "five parts",
        "two parts",
        "no signature",
        "JSON",
        "base64",
        "é",
    ],
)
def test_another_spelling_of_a_token_is_not_a_token(bend: Callable[[str], str]) -> None:
    assert refusal(bend(APP.mint())) in {"token_format", "token_auth_header"}


def test_spare_bits_cannot_spell_a_token_anew() -> None:
    token = APP.mint()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 64 bytes of signature end in a group of two characters, of which four bits are spare.
    twin = token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]

    assert base64.urlsafe_b64decode(twin.rsplit(".")[-1] + "==") == base64.urlsafe_b64decode(
        token.rsplit(".")[-1] + "=="
    )
    assert refusal(twin) == "token_format"


def test_the_twin_of_an_ecdsa_signature_is_revoked_with_its_token() -> None:
    app = App.with_es256()
    token = app.mint(jti="0123456789abcdef")
    head, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    der = encode_dss_signature(int.from_bytes(raw[:32]), P256_ORDER - int.from_bytes(raw[32:]))
    r, s = decode_dss_signature(der)
    twin = f"{head}.{b64(r.to_bytes(32) + s.to_bytes(32))}"

    assert TokenVerifier(app.issuers(), audience=AUDIENCE).verify(f"Bearer {twin}", now=NOW)
    revoked = app.issuers(revoked_jtis=(f"{app.iss} 0123456789abcdef",))
    assert refusal(twin, TokenVerifier(revoked, audience=AUDIENCE)) == "token_revoked"


# ── header ─────────────────────────────────────────────────────────────────────────────────────


NONES = ["".join(letters) for letters in itertools.product("nN", "oO", "nN", "eE")]


@pytest.mark.parametrize(
    "alg", [*NONES, "none ", "", "HS256", "HS512", "ES256", "ES256K", "RS256", "PS256", "eddsa"]
)
def test_the_token_does_not_choose_its_algorithm(alg: str) -> None:
    header = json.dumps({"alg": alg, "kid": "app-1", "typ": "at+jwt"}).encode()

    assert refusal(with_header(header)) == "token_alg"
    # Nor does it help to leave the signature out, which "none" would have one do.
    assert refusal(f"{b64(header)}.{b64(payload())}.") == "token_format"


@pytest.mark.parametrize("app", [APP, App.with_es256(), App.with_rs256()], ids=lambda app: app.kid)
def test_the_public_key_is_no_hmac_secret(app: App) -> None:
    public = app.key.public_key()
    verifier = TokenVerifier(app.issuers(), audience=AUDIENCE)
    head = b64(json.dumps({"alg": "HS256", "kid": app.kid, "typ": "at+jwt"}).encode())
    text = f"{head}.{b64(payload())}".encode()
    jwk = json.dumps(as_jwk(app.public_key()))
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        jwk.encode(),  # GHSA-xgmm-8j9v-c9wx: PyJWT once took this for a secret
        jwk.replace(" ", "").encode(),
        b"",
    ):
        signature = hmac.digest(secret, text, "sha256")
        assert refusal(f"{text.decode()}.{b64(signature)}", verifier) == "token_alg"


def test_one_issuer_s_key_is_not_another_s() -> None:
    other = App(iss="https://other.example", kid="other-1")
    verifier = TokenVerifier(APP.issuers(other), audience=AUDIENCE)
    claims = payload()

    # Their key, our name; our key id, their key; our key id and name, their key.
    assert refusal(other.sign(claims), verifier) == "token_issuer"
    assert refusal(other.sign(claims, kid="app-1"), verifier) == "token_signature"
    assert refusal(APP.sign(claims, kid="other-1"), verifier) == "token_signature"


def test_a_key_of_one_algorithm_checks_no_other() -> None:
    others = (App.with_es256(), App.with_rs256())
    verifier = TokenVerifier(APP.issuers(*others), audience=AUDIENCE)

    for signer in (APP, *others):
        for named in (APP, *others):
            if signer is not named:
                token = signer.sign(payload(), kid=named.kid)
                assert refusal(token, verifier) == "token_alg"


def test_a_signature_with_an_rsa_key_has_one_padding() -> None:
    app = App.with_rs256()
    verifier = TokenVerifier(app.issuers(), audience=AUDIENCE)
    assert isinstance(app.key, rsa.RSAPrivateKey)
    head = b64(json.dumps({"alg": "RS256", "kid": app.kid, "typ": "at+jwt"}).encode())
    text = f"{head}.{b64(payload())}"
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)

    for how, digest in ((pss, hashes.SHA256()), (padding.PKCS1v15(), hashes.SHA1())):  # noqa: S303
        forged = app.key.sign(text.encode(), how, digest)
        assert refusal(f"{text}.{b64(forged)}", verifier) == "token_signature"


def test_a_key_brought_along_is_not_looked_at() -> None:
    thief = App(kid="app-1")
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": thief.public_key().x}

    assert refusal(thief.sign(payload(), jwk=jwk)) == "token_header"


@pytest.mark.parametrize("field", ["jku", "x5u", "x5c", "crit", "b64", "zip", "cty", "alg2"])
def test_header_fields_that_change_the_rules_are_refused(field: str) -> None:
    header = {"alg": "EdDSA", "kid": "app-1", "typ": "at+jwt", field: "x"}

    assert refusal(with_header(json.dumps(header).encode())) == "token_header"


@pytest.mark.parametrize("missing", ["alg", "kid", "typ"])
def test_a_header_needs_all_three_fields(missing: str) -> None:
    header = {"alg": "EdDSA", "kid": "app-1", "typ": "at+jwt"}
    del header[missing]

    assert refusal(with_header(json.dumps(header).encode())) == "token_header"


@pytest.mark.parametrize("value", [None, 1, ["EdDSA"], {"a": 1}, True])
@pytest.mark.parametrize("field", ["alg", "kid", "typ"])
def test_header_fields_are_text(field: str, value: object) -> None:
    header = {"alg": "EdDSA", "kid": "app-1", "typ": "at+jwt", field: value}

    assert refusal(with_header(json.dumps(header).encode())) == "token_header"


@pytest.mark.parametrize("typ", ["JWT", "dpop+jwt", "id+jwt", "at+jwt ", "", "application/jwt"])
def test_a_token_made_for_something_else_is_no_access_token(typ: str) -> None:
    header = json.dumps({"alg": "EdDSA", "kid": "app-1", "typ": typ}).encode()

    assert refusal(with_header(header)) == "token_typ"


@pytest.mark.parametrize(
    "kid",
    [
        "",
        "../../etc/passwd",
        "/dev/null",
        "file:///etc/passwd",
        "https://evil.example/jwks.json",
        "' OR 1=1 --",
        "x' UNION SELECT 'secret",
        "$(id)",
        "app-1\n",
        "app-1\x00",
        "a" * 65,
        "кey",
        "\ud800",
    ],
)
def test_an_illegal_key_id_is_refused_and_starts_no_refresh(kid: str) -> None:
    header = json.dumps({"alg": "EdDSA", "kid": kid, "typ": "at+jwt"}).encode()

    assert refusal(with_header(header)) == "token_kid"


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"EdDSA","alg":"EdDSA","kid":"app-1","typ":"at+jwt"}',
        b'\xef\xbb\xbf{"alg":"EdDSA","kid":"app-1","typ":"at+jwt"}',
        '{"alg":"EdDSA","kid":"app-1","typ":"at+jwt"}'.encode("utf-16"),
        b'{"alg":"EdDSA","kid":"app-1","typ":"\xff"}',
        b'{"alg":"EdDSA","kid":"app-1","typ":NaN}',
        b'["EdDSA"]',
        b"null",
        b"{",
        b"[" * 3_000,
        b'{"alg":' + b"1" * 5_000 + b"}",
    ],
    ids=["twice", "BOM", "UTF-16", "bad UTF-8", "NaN", "list", "null", "cut", "deep", "digits"],
)
def test_a_header_that_is_not_one_plain_object_is_refused(header: bytes) -> None:
    assert refusal(with_header(header)) == "token_json"


# ── signature ──────────────────────────────────────────────────────────────────────────────────


def test_claims_cannot_be_changed_after_signing() -> None:
    head, _, signature = APP.mint(tier="free").split(".")

    assert refusal(f"{head}.{b64(payload(tier='enterprise'))}.{signature}") == "token_signature"


@pytest.mark.parametrize("size", [1, 32, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(size: int) -> None:
    assert refusal(f"{APP.mint().rpartition('.')[0]}.{b64(bytes(size))}") == "token_signature"


@pytest.mark.parametrize("size", [1, 64])
def test_a_signature_of_zeros_is_refused(size: int) -> None:
    # CVE-2022-21449: r = s = 0 once passed for any message.
    app = App.with_es256()
    verifier = TokenVerifier(app.issuers(), audience=AUDIENCE)

    assert (
        refusal(f"{app.mint().rpartition('.')[0]}.{b64(bytes(size))}", verifier)
        == "token_signature"
    )


# ── claims, well signed ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "claims",
    [
        b'{"tier":"free",' + payload()[1:],
        b"\xef\xbb\xbf" + payload(),
        payload().decode().encode("utf-16"),
        payload(exp=str(NOW + 600)),
        payload(exp=NOW + 600.5),
        payload(exp=True),
        payload(exp=-1),
        payload(exp=2**70),
        payload(exp=2**63),
        payload(iat=-(2**63)),
        payload(nbf=10**400),
        payload(exp=None),
        payload(exp=[NOW + 600]),
        payload(iat=float(NOW)),
        payload(nbf=NOW + 0.0),
        payload().replace(b'"exp": ', b'"exp": 1e308, "x": '),
        payload(extra=float("nan")),
        payload(extra=float("inf")),
        payload(extra=json.loads("[" * 100 + "]" * 100)),
        payload(iat=None),
        payload(aud=[AUDIENCE]),
        payload(aud=[AUDIENCE, "other"]),
        payload(sub=""),
        payload(sub="alice\n"),
        payload(sub="al ice"),
        payload(sub="alice\x00"),
        payload(sub="\ud800"),
        payload(sub=7),
        payload(jti="short"),
        payload(jti=""),
        payload(tier="pro\n"),
        payload(tier=["pro"]),
        payload(budget={"account": "a b"}),
        payload(budget={"account": "acme", "limits": [{"window": "day", "limit_nusd": -1}]}),
        payload(budget={"account": "acme", "limits": [{"window": "eon", "limit_nusd": 1}]}),
        payload(data_classes="phi"),
        payload(models="small"),
        b"[]",
        b'"x"',
        b"{",
        b"\xff",
        b"0",
    ],
)
def test_claims_that_are_not_exactly_ours_are_refused(claims: bytes) -> None:
    assert refusal(signed(claims)) == "token_claims"


def test_a_token_inside_a_token_is_no_claims() -> None:
    token = APP.mint()

    assert refusal(signed(token.encode())) == "token_claims"
    assert refusal(signed(json.dumps(token).encode())) == "token_claims"
    assert refusal(signed(token.encode(), cty="JWT")) == "token_header"


def test_a_bond_cannot_be_taken_off_a_signed_token() -> None:
    token = APP.mint(jkt="0" * 43)
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    del claims["cnf"]

    assert refusal(f"{head}.{b64(json.dumps(claims).encode())}.{signature}") == "token_signature"
    assert refusal(token) == "token_cnf"


def test_a_token_for_one_audience_is_none_for_another_whatever_the_spelling() -> None:
    names = (AUDIENCE + "/", AUDIENCE + "\x00", f"{AUDIENCE},other", "*", "https://" + AUDIENCE)
    for name in names:
        assert refusal(signed(payload(aud=name))) == "token_audience"


@pytest.mark.parametrize(
    "missing", ["iss", "aud", "sub", "exp", "iat", "jti", "client_id", "tier", "budget"]
)
def test_no_required_claim_may_be_missing(missing: str) -> None:
    claims = json.loads(payload())
    del claims[missing]

    assert refusal(signed(json.dumps(claims).encode())) == "token_claims"


@pytest.mark.parametrize(
    "cnf",
    [
        None,
        {},
        {"jkt": "short"},
        {"jkt": "0" * 43, "x5t#S256": "0" * 43},
        {"jwk": {"kty": "OKP"}},
        {"JKT": "0" * 43},
        "0" * 43,
        [],
    ],
)
def test_a_bond_that_cannot_be_checked_is_not_overlooked(cnf: object) -> None:
    assert refusal(signed(payload(cnf=cnf))) == "token_claims"


def test_claims_we_do_not_know_change_nothing() -> None:
    token = signed(payload(email="a@b.example", roles=["x"]))

    assert VERIFIER.verify(f"Bearer {token}", now=NOW).tier == "pro"


# ── whatever else ──────────────────────────────────────────────────────────────────────────────


@given(
    st.one_of(
        st.text(max_size=300),
        st.tuples(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=70)).map(
            lambda parts: "Bearer " + ".".join(map(b64, parts))
        ),
    )
)
@example("Bearer " + "." * 8_000)
def test_nothing_but_a_token_error_comes_of_garbage(authorization: str) -> None:
    with pytest.raises(TokenError):
        VERIFIER.verify(authorization, now=NOW)


@given(st.binary(max_size=200))
def test_nothing_but_a_token_error_comes_of_signed_garbage(claims: bytes) -> None:
    with pytest.raises(TokenError):
        VERIFIER.verify(f"Bearer {APP.sign(claims)}", now=NOW)


def test_no_refusal_quotes_the_token() -> None:
    token = APP.mint(exp=NOW - 100)
    with pytest.raises(TokenError) as caught:
        VERIFIER.verify(f"Bearer {token}", now=NOW)

    assert token[:20] not in repr(caught.value)
    assert "user-1" not in repr(caught.value)


def test_a_flood_of_malformed_tokens_costs_less_than_checking_signatures() -> None:
    junk = f"Bearer {'a' * 8_000}"
    good = [APP.bearer() for _ in range(50)]

    def cost(tokens: list[str]) -> float:
        started = time.process_time()
        for token in tokens:
            try:
                VERIFIER.verify(token, now=NOW)
            except TokenError:
                continue
        return time.process_time() - started

    assert min(cost([junk] * 50) for _ in range(5)) < cost(good)
