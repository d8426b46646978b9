"""Which access tokens a validator takes. One test departs from the valid in one place."""

import math
from typing import cast

import msgspec
import pytest
from msgspec import structs

from support.tokens import AUDIENCE, NOW, App
from waypost.shared.contracts import Confirmation, Issuers, Limits, SpendLimit
from waypost.shared.errors import ForbiddenError, PolicyError, TokenError
from waypost.shared.tokens.issuer_keys import b64url
from waypost.validator.access.jose import REFUSAL
from waypost.validator.access.tokens import TokenVerifier

RSA_2048 = App.with_rs256().public_key().n or ""
SPARE = {"A": "B", "Q": "R", "g": "h", "w": "x"}  # differ in bits that say nothing


def roca_modulus() -> str:
    """Return a modulus as Infineon's library made them: a power of 65537 for each small prime."""
    primes = [p for p in range(3, 168) if all(p % d for d in range(2, p))]
    product = math.prod(primes)
    modulus = pow(65_537, 12_345, product) + product * ((1 << 2_047) // product + 1)
    return b64url((modulus if modulus % 2 else modulus + product).to_bytes(256))


def verifier(issuers: Issuers, **options: int) -> TokenVerifier:
    return TokenVerifier(issuers, audience=AUDIENCE, **options)


def refusal(issuers: Issuers, authorization: str | None, *, now: int = NOW) -> str:
    """Return the code with which the token is refused."""
    with pytest.raises(TokenError) as caught:
        verifier(issuers).verify(authorization, now=now)
    assert caught.value.message == REFUSAL
    return caught.value.code


@pytest.fixture
def app() -> App:
    return App()


@pytest.mark.parametrize(
    "app", [App(), App.with_es256(), App.with_rs256()], ids=["EdDSA", "ES256", "RS256"]
)
def test_a_good_token_gives_its_claims(app: App) -> None:
    limits = (SpendLimit(window="day", limit_nusd=5_000_000_000),)
    token = app.bearer(
        sub="alice", tier="free", account="acme", limits=limits, data_classes=("phi",)
    )

    claims = verifier(app.issuers()).verify(token, now=NOW)

    assert (claims.sub, claims.tier, claims.data_classes) == ("alice", "free", ("phi",))
    assert claims.budget == Limits(account="acme", limits=limits)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_the_scheme_may_be_written_in_any_case(app: App, scheme: str) -> None:
    token = app.mint()

    assert verifier(app.issuers()).verify(f"{scheme} {token}", now=NOW).sub == "user-1"


def test_the_full_media_type_is_a_good_typ(app: App) -> None:
    token = app.sign(msgspec.json.encode(app.claims()), typ="application/AT+JWT")

    assert verifier(app.issuers()).verify(f"Bearer {token}", now=NOW).sub == "user-1"


def test_no_header_is_a_missing_token(app: App) -> None:
    assert refusal(app.issuers(), None) == "token_missing"


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "Basic {}",
        "DPoP {0},{0}",
        "Bearer  {}",
        "Bearer {} x",
        "Bearer {0},Bearer {0}",
        "Bearer",
    ],
)
def test_anything_but_one_bearer_token_is_a_bad_header(app: App, form: str) -> None:
    assert refusal(app.issuers(), form.format(app.mint())) == "token_auth_header"


@pytest.mark.parametrize("text", ["Bearer \ud800", "Bearer é", "Bearer \x00é"])
def test_a_header_that_is_not_ascii_is_a_bad_header(app: App, text: str) -> None:
    assert refusal(app.issuers(), text) == "token_auth_header"


def test_a_token_of_9000_characters_is_too_large(app: App) -> None:
    assert refusal(app.issuers(), f"Bearer {'a' * 9_000}") == "token_size"


def test_an_unknown_key_says_so_that_newer_issuers_can_be_looked_for(app: App) -> None:
    newer = App(kid="app-2")

    assert refusal(app.issuers(), newer.bearer()) == "token_unknown_kid"


def test_another_key_under_a_known_id_is_a_bad_signature(app: App) -> None:
    assert refusal(app.issuers(), App(kid=app.kid).bearer()) == "token_signature"


def test_a_revoked_key_signs_nothing(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(keys=(app.public_key(status="revoked"),)),))

    assert refusal(issuers, app.bearer()) == "token_key_revoked"


def test_a_retiring_key_still_signs(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(keys=(app.public_key(status="retiring"),)),))

    assert verifier(issuers).verify(app.bearer(), now=NOW)


@pytest.mark.parametrize("times", [{"not_before": NOW + 60}, {"expires_at": NOW}])
def test_a_key_outside_its_time_signs_nothing(app: App, times: dict[str, int]) -> None:
    issuers = app.issuers(issuers=(app.issuer(keys=(app.public_key(**times),)),))

    assert refusal(issuers, app.bearer()) == "token_key_inactive"


def test_a_token_older_than_its_key_is_refused(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(keys=(app.public_key(not_before=NOW),)),))

    assert refusal(issuers, app.bearer(iat=NOW - 1)) == "token_key_inactive"


def test_an_issuer_cannot_speak_for_another(app: App) -> None:
    other = App(iss="https://other.example", kid="other-1")

    assert refusal(app.issuers(other), other.bearer(iss=app.iss)) == "token_issuer"


@pytest.mark.parametrize("aud", ["another-validator", AUDIENCE.upper(), f"{AUDIENCE} "])
def test_a_token_for_another_audience_is_refused(app: App, aud: str) -> None:
    assert refusal(app.issuers(), app.bearer(aud=aud)) == "token_audience"


def test_a_token_holds_through_its_leeway_and_no_longer(app: App) -> None:
    token = app.bearer(exp=NOW + 10)

    assert verifier(app.issuers(), leeway_s=30).verify(token, now=NOW + 39)
    assert refusal(app.issuers(), token, now=NOW + 40) == "token_expired"


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_from_the_future_is_refused(app: App, claim: str) -> None:
    token = app.mint(iat=NOW + 31) if claim == "iat" else app.mint(nbf=NOW + 31)

    assert refusal(app.issuers(), f"Bearer {token}") == "token_not_yet_valid"


def test_a_token_may_not_outlive_its_issuers_limit(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(max_lifetime_s=600),))

    assert verifier(issuers).verify(app.bearer(lifetime_s=600), now=NOW)
    assert refusal(issuers, app.bearer(lifetime_s=601)) == "token_lifetime"


def test_a_token_that_expires_before_it_was_issued_is_refused(app: App) -> None:
    assert refusal(app.issuers(), app.bearer(exp=NOW, iat=NOW + 1)) == "token_lifetime"


def test_resetting_an_issuer_ends_its_older_tokens(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(min_iat=NOW),))

    assert refusal(issuers, app.bearer(iat=NOW - 1)) == "token_superseded"
    assert verifier(issuers).verify(app.bearer(iat=NOW), now=NOW)


def test_resetting_a_subject_ends_its_older_tokens_and_nobody_elses(app: App) -> None:
    issuers = app.issuers(min_iat_by_subject={f"{app.iss} alice": NOW + 1})

    assert refusal(issuers, app.bearer(sub="alice")) == "token_superseded"
    assert verifier(issuers).verify(app.bearer(sub="bob"), now=NOW)


def test_a_revoked_token_is_refused_and_its_sibling_is_not(app: App) -> None:
    issuers = app.issuers(revoked_jtis=(f"{app.iss} 0123456789abcdef",))

    assert refusal(issuers, app.bearer(jti="0123456789abcdef")) == "token_revoked"
    assert verifier(issuers).verify(app.bearer(), now=NOW)


def test_resetting_a_tenant_ends_its_older_tokens_and_nobody_elses(app: App) -> None:
    issuers = app.issuers(min_iat_by_tenant={f"{app.iss} clinic": NOW + 1})

    assert refusal(issuers, app.bearer(tenant="clinic")) == "token_superseded"
    assert verifier(issuers).verify(app.bearer(tenant="school"), now=NOW)
    assert verifier(issuers).verify(app.bearer(), now=NOW)


def test_a_new_epoch_of_a_subject_ends_its_tokens_of_earlier_ones(app: App) -> None:
    issuers = app.issuers(min_epoch_by_subject={f"{app.iss} alice": 3})

    assert refusal(issuers, app.bearer(sub="alice", auth_epoch=2)) == "token_epoch"
    assert refusal(issuers, app.bearer(sub="alice")) == "token_epoch"
    assert verifier(issuers).verify(app.bearer(sub="alice", auth_epoch=3), now=NOW)
    assert verifier(issuers).verify(app.bearer(sub="bob"), now=NOW)


def test_an_issuer_speaks_for_its_own_tenants_alone(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(tenants=("clinic",)),))

    assert refusal(issuers, app.bearer(tenant="school")) == "token_tenant"
    assert refusal(issuers, app.bearer()) == "token_tenant"
    assert verifier(issuers).verify(app.bearer(tenant="clinic"), now=NOW)


def test_an_issuer_spends_from_its_own_accounts_alone(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(accounts=("acme", "clinic-*")),))

    for other in ("acme2", "Acme", "clinic", "school", "xacme", "acme/1"):
        assert refusal(issuers, app.bearer(account=other)) == "token_account"
        more = (Limits(account=other),)
        assert refusal(issuers, app.bearer(allowances=more)) == "token_account"
    for own in ("acme", "clinic-", "clinic-7"):
        assert verifier(issuers).verify(app.bearer(account=own), now=NOW)
    assert verifier(issuers).verify(app.bearer(allowances=(Limits(account="clinic-7"),)), now=NOW)


def test_of_several_issuers_one_that_lists_nothing_has_nothing(app: App) -> None:
    other = App(iss="https://other.example", kid="other-1")
    both = app.issuers(issuers=(app.issuer(accounts=("acme",)), other.issuer()))

    assert refusal(both, other.bearer()) == "token_account"
    assert refusal(both, other.bearer(account="new")) == "token_account"
    assert refusal(both, app.bearer(tenant="clinic")) == "token_tenant"
    assert verifier(both).verify(app.bearer(), now=NOW)
    alone = app.issuers(issuers=(other.issuer(),))
    assert verifier(alone).verify(other.bearer(tenant="clinic"), now=NOW)


@pytest.mark.parametrize("scope", ["", "inference", "INFER", "profile,infer"])
def test_a_token_without_the_issuers_scope_is_good_for_something_else(app: App, scope: str) -> None:
    issuers = app.issuers(issuers=(app.issuer(scope="infer"),))

    with pytest.raises(ForbiddenError) as caught:
        verifier(issuers).verify(app.bearer(scope=scope), now=NOW)
    assert caught.value.code == "scope_missing"
    assert verifier(issuers).verify(app.bearer(scope="profile infer"), now=NOW)


def test_an_issuer_may_make_all_its_tokens_count_once(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(one_time=True),))

    assert verifier(issuers).verify(app.bearer(), now=NOW).one_time


# ── bound to a key ─────────────────────────────────────────────────────────────────────────────

JKT = "0" * 43


def test_a_bound_token_is_no_bearer_token(app: App) -> None:
    # Stolen, it would be worth as much as one that was never bound.
    token = app.mint(jkt=JKT)

    assert refusal(app.issuers(), f"Bearer {token}") == "token_cnf"
    assert verifier(app.issuers()).verify(f"DPoP {token}", now=NOW).cnf == Confirmation(JKT)


def test_an_unbound_token_is_not_sent_as_bound(app: App) -> None:
    assert refusal(app.issuers(), f"DPoP {app.mint()}") == "token_unbound"


def test_an_issuer_may_have_its_tokens_bound_but_for_some_clients(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(dpop="required", bearer_clients=("batch",)),))

    assert refusal(issuers, app.bearer()) == "token_unbound"
    assert verifier(issuers).verify(app.bearer(client_id="batch"), now=NOW)
    assert verifier(issuers).verify(f"DPoP {app.mint(jkt=JKT)}", now=NOW)


# ── remembering ────────────────────────────────────────────────────────────────────────────────


def test_a_verified_token_is_checked_once(app: App) -> None:
    verify = verifier(app.issuers()).verify
    token = app.bearer()

    # The same object, so nothing was decoded again.
    assert verify(token, now=NOW) is verify(token, now=NOW + 1)


def test_a_remembered_token_still_expires(app: App) -> None:
    verify = verifier(app.issuers(), leeway_s=0).verify
    token = app.bearer(exp=NOW + 10)
    verify(token, now=NOW)

    with pytest.raises(TokenError) as caught:
        verify(token, now=NOW + 10)
    assert caught.value.code == "token_expired"


def test_a_remembered_token_ends_with_its_key(app: App) -> None:
    issuers = app.issuers(issuers=(app.issuer(keys=(app.public_key(expires_at=NOW + 5),)),))
    verify = verifier(issuers).verify
    token = app.bearer()
    verify(token, now=NOW)

    with pytest.raises(TokenError) as caught:
        verify(token, now=NOW + 5)
    assert caught.value.code == "token_key_inactive"


def test_memory_is_bounded_and_keeps_what_is_used(app: App) -> None:
    verify = verifier(app.issuers(), cache_size=2).verify
    used, idle, new = app.bearer(), app.bearer(), app.bearer()
    kept = verify(used, now=NOW)
    dropped = verify(idle, now=NOW)

    verify(used, now=NOW)
    verify(new, now=NOW)

    assert verify(used, now=NOW) is kept
    assert verify(idle, now=NOW) is not dropped


def test_new_issuers_start_without_memory(app: App) -> None:
    token = app.bearer()
    verifier(app.issuers()).verify(token, now=NOW)

    assert refusal(App(kid="app-2").issuers(version=2), token) == "token_unknown_kid"


# ── issuers that make no sense ─────────────────────────────────────────────────────────────────


def test_two_keys_of_one_id_make_the_issuers_unusable(app: App) -> None:
    with pytest.raises(PolicyError, match="two keys 'app-1'") as caught:
        verifier(app.issuers(App(iss="https://other.example")))
    assert caught.value.code == "issuers_invalid"


@pytest.mark.parametrize(
    "broken",
    [
        {"x": "A" * 42},
        {"x": None},
        {"alg": "ES256"},
        {"alg": "ES256", "y": "A" * 43},
        {"y": "A" * 43},
        {"alg": "RS256"},
        {"alg": "RS256", "x": None, "n": RSA_2048, "e": "AQ"},
        {"alg": "RS256", "x": None, "n": RSA_2048, "e": "Aw"},
        {"alg": "RS256", "x": None, "n": RSA_2048, "e": "AQAAAAE"},
        {"alg": "RS256", "x": None, "n": RSA_2048, "e": "AQAA"},
        {"alg": "RS256", "x": None, "n": RSA_2048, "e": "AAEAAQ"},
        {"alg": "RS256", "x": None, "n": RSA_2048[:-4], "e": "AQAB"},
        {"alg": "RS256", "x": None, "n": "AA" + RSA_2048, "e": "AQAB"},
        {"alg": "RS256", "x": None, "n": RSA_2048[:-1] + SPARE[RSA_2048[-1]], "e": "AQAB"},
        {"alg": "RS256", "x": None, "n": roca_modulus(), "e": "AQAB"},
        {"alg": "RS256", "x": None, "n": RSA_2048 * 3, "e": "AQAB"},
        {"alg": "RS256", "n": RSA_2048, "e": "AQAB"},
    ],
    ids=[
        "short",
        "no x",
        "no y",
        "not on the curve",
        "y too many",
        "no n",
        "e is 1",
        "e is 3",
        "e has more than 32 bits",
        "e is even",
        "e has a zero in front",
        "1024 bits and some",
        "n has a zero in front",
        "n in another spelling",
        "n that can be factored (CVE-2017-15361)",
        "6144 bits",
        "x too many",
    ],
)
def test_a_key_that_is_none_makes_the_issuers_unusable(app: App, broken: dict[str, str]) -> None:
    key = structs.replace(app.public_key(), **cast("dict[str, object]", broken))

    with pytest.raises(PolicyError, match=r"is no .* public key"):
        verifier(app.issuers(issuers=(app.issuer(keys=(key,)),)))


def test_a_key_of_an_algorithm_that_its_issuer_does_not_use_makes_the_issuers_unusable(
    app: App,
) -> None:
    with pytest.raises(PolicyError, match="is for EdDSA, which its issuer does not use"):
        verifier(app.issuers(issuers=(app.issuer(algorithms=("ES256", "RS256")),)))


def test_issuers_that_need_a_newer_version_are_not_used(app: App) -> None:
    with pytest.raises(PolicyError, match="needs a newer version, for: audience-lists"):
        verifier(app.issuers(must_understand=("audience-lists",)))
