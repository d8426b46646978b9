"""Tokens that their holder made weaker for another process: what they mean, and what bends them."""

import re
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tokens import AUDIENCE, NOW, App
from waypost.client.dpop import DPoPKey
from waypost.shared.contracts import Claims, Issuers, SpendLimit
from waypost.shared.errors import TokenError
from waypost.shared.tokens.issuer_keys import jwk_of
from waypost.shared.tokens.narrowing import MAX_NARROWINGS
from waypost.shared.tokens.unverified import unverified_claims
from waypost.validator.access.tokens import TokenVerifier

APP = App()
HOLDER, CHILD, OTHER = (DPoPKey.generate() for _ in range(3))
PARENT = APP.mint(jkt=HOLDER.thumbprint)


def narrow(parent: str = PARENT, *, by: DPoPKey = HOLDER, **changes: Any) -> str:  # noqa: ANN401
    return by.narrow(parent, **{"to": CHILD.thumbprint, "lifetime_s": 60, "now": NOW, **changes})


def verify(token: str, *, issuers: Issuers | None = None, now: int = NOW) -> Claims:
    verifier = TokenVerifier(issuers or APP.issuers(), audience=AUDIENCE)
    return verifier.verify(f"DPoP {token}", now=now)


def refusal(token: str, *, issuers: Issuers | None = None, now: int = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        verify(token, issuers=issuers, now=now)
    return caught.value.code


def resigned(key: DPoPKey, token: str, changes: Mapping[str, object], **header: object) -> str:
    """Return a narrowed token with its payload changed, signed by ``key``."""
    said = msgspec.json.decode(jwt.utils.base64url_decode(token.split(".")[1]))
    said = {name: value for name, value in {**said, **changes}.items() if value is not ...}
    private = key._private
    jwk = jwk_of(private.public_key())
    return jwt.PyJWS().encode(
        msgspec.json.encode(said),
        private,
        "ES256",
        headers={"typ": "narrow+jwt", "jwk": jwk, **header},
    )


# ── what it means ──────────────────────────────────────────────────────────────────────────────


def test_a_narrowed_token_says_what_its_parent_does_and_is_for_another_key() -> None:
    parent, child = verify(PARENT), verify(narrow())

    assert child == msgspec.structs.replace(parent, exp=NOW + 60, cnf=child.cnf)
    assert child.cnf.jkt == CHILD.thumbprint  # type: ignore[union-attr]


def test_fewer_models_more_duties_a_shorter_life_and_a_budget_of_its_own() -> None:
    child = verify(narrow(models=["small"], data_classes=["phi"], lifetime_s=30, budget_nusd=1_000))

    assert (child.models, child.data_classes, child.exp) == (("small",), ("phi",), NOW + 30)
    (allowance,) = child.allowances
    assert allowance.limits == (SpendLimit(window="total", limit_nusd=1_000),)
    assert child.budget == verify(PARENT).budget


def test_a_child_s_child_is_narrower_still_and_pays_from_both_budgets() -> None:
    first = narrow(models=["small", "large"], budget_nusd=1_000)
    second = narrow(
        first, by=CHILD, to=OTHER.thumbprint, models=["large", "frontier"], budget_nusd=5_000
    )

    child = verify(second)

    assert child.models == ("large",)
    assert [limits.limits[0].limit_nusd for limits in child.allowances] == [1_000, 5_000]
    assert len({limits.account for limits in child.allowances}) == 2


def test_two_children_have_a_budget_each_and_a_spelling_more_has_none() -> None:
    one, two = narrow(budget_nusd=1), narrow(budget_nusd=1)

    accounts = {verify(token).allowances[0].account for token in (one, two, one)}

    assert len(accounts) == 2


def test_nobody_can_spend_from_the_budget_of_somebody_else_s_child() -> None:
    # The id is the holder's to choose; the account it leads to is not.
    stranger = APP.mint(sub="mallory", jkt=OTHER.thumbprint)
    theirs = narrow(budget_nusd=1)
    jti = msgspec.json.decode(jwt.utils.base64url_decode(theirs.split(".")[1]))["jti"]
    mine = resigned(OTHER, narrow(stranger, by=OTHER, budget_nusd=1), {"jti": jti})

    assert verify(mine).allowances[0].account != verify(theirs).allowances[0].account


names = st.lists(st.sampled_from(["small", "large", "frontier", "clinical"]), unique=True)


@given(parent=st.none() | names, child=st.none() | names, life=st.integers(1, 10_000))
def test_narrowing_never_widens(
    parent: list[str] | None, child: list[str] | None, life: int
) -> None:
    wishes: Any = {} if parent is None else {"models": tuple(parent)}
    wide = APP.mint(jkt=HOLDER.thumbprint, data_classes=("pii",), **wishes)

    before = verify(wide)
    after = verify(narrow(wide, models=child, data_classes=["phi"], lifetime_s=life))

    everything = {"small", "large", "frontier", "clinical", "some other"}
    allowed = everything if before.models is None else set(before.models)
    assert (everything if after.models is None else set(after.models)) <= allowed
    assert set(before.data_classes) <= set(after.data_classes)
    assert after.exp <= before.exp
    # The client guesses what the validator will find.
    guess = unverified_claims(narrow(wide, models=child, data_classes=["phi"], lifetime_s=life))
    assert guess is not None
    assert (guess.signed.models, guess.signed.data_classes) == (after.models, after.data_classes)
    assert guess.exp == after.exp


# ── what bends it ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "claim",
    [{"tier": "enterprise"}, {"sub": "root"}, {"budget": {"account": "x"}}, {"not_yet": 1}],
)
def test_a_field_that_is_no_restriction_we_know_refuses_the_token(claim: dict[str, object]) -> None:
    # A restriction that a reader overlooks widens the token; a grant has no place in it.
    assert refusal(resigned(HOLDER, narrow(), claim)) == "token_claims"


@pytest.mark.parametrize("missing", ["parent", "jti", "iat", "exp", "cnf"])
def test_no_field_of_a_narrowing_may_be_missing(missing: str) -> None:
    assert refusal(resigned(HOLDER, narrow(), {missing: ...})) == "token_claims"


def test_a_child_cannot_outlive_or_outspend_its_parent_by_asking() -> None:
    child = verify(narrow(lifetime_s=80_000, budget_nusd=10**15))

    assert child.exp == verify(PARENT).exp
    assert child.budget == verify(PARENT).budget


def test_the_child_cannot_widen_itself() -> None:
    token = narrow(models=["small"])

    assert refusal(resigned(CHILD, token, {"models": ["frontier"]})) == "token_narrow_key"
    head, _, signature = token.rpartition(".")
    wider = resigned(HOLDER, token, {"models": ["frontier"]}).split(".")[1]
    assert refusal(f"{head.split('.')[0]}.{wider}.{signature}") == "token_signature"


def test_the_parent_taken_out_of_a_child_is_of_no_use_to_it() -> None:
    # Its proof would have to be signed by the parent's holder: see test_bound_tokens.
    said = msgspec.json.decode(jwt.utils.base64url_decode(narrow().split(".")[1]))

    assert said["parent"] == PARENT
    assert verify(PARENT).cnf.jkt != CHILD.thumbprint  # type: ignore[union-attr]


def test_a_narrowing_cannot_be_spliced_onto_another_parent() -> None:
    richer = APP.mint(tier="enterprise", jkt=HOLDER.thumbprint)
    token = narrow()
    head, _, signature = token.rpartition(".")
    spliced = narrow(richer).split(".")[1]

    assert refusal(f"{head.split('.')[0]}.{spliced}.{signature}") == "token_signature"


def test_somebody_else_s_token_cannot_be_narrowed_to_oneself() -> None:
    assert refusal(narrow(by=OTHER, to=OTHER.thumbprint)) == "token_narrow_key"


def test_a_token_that_is_bound_to_no_key_cannot_be_narrowed() -> None:
    assert refusal(narrow(APP.mint())) == "token_narrow_key"


def test_a_child_cannot_shed_its_bond() -> None:
    assert refusal(resigned(HOLDER, narrow(), {"cnf": None})) == "token_claims"
    assert refusal(resigned(HOLDER, narrow(), {"cnf": {}})) == "token_claims"
    with pytest.raises(TokenError, match="does not hold") as caught:
        TokenVerifier(APP.issuers(), audience=AUDIENCE).verify(f"Bearer {narrow()}", now=NOW)
    assert caught.value.code == "token_cnf"


def test_narrowing_ends_after_three() -> None:
    token, holder = PARENT, HOLDER
    for _ in range(MAX_NARROWINGS):
        token = narrow(token, by=holder)
        holder = CHILD
        assert verify(token)

    assert refusal(narrow(token, by=CHILD)) == "token_narrow_depth"


def test_a_proof_is_no_narrowing_and_a_narrowing_no_proof() -> None:
    token = narrow()

    assert refusal(resigned(HOLDER, token, {}, typ="dpop+jwt")) in {"token_header", "token_typ"}
    assert refusal(
        HOLDER.proof("POST", "https://x.example", token=PARENT, now=NOW, jti="j" * 16)
    ) in {
        "token_header",
        "token_typ",
    }


@pytest.mark.parametrize("parent", ["", "x", PARENT + "=", PARENT + "." + PARENT, 7, None])
def test_what_a_child_holds_is_a_token(parent: object) -> None:
    assert refusal(resigned(HOLDER, narrow(), {"parent": parent})) in {
        "token_format",
        "token_claims",
    }


@pytest.mark.parametrize(
    ("times", "code"),
    [
        ({"iat": NOW - 1}, "token_lifetime"),
        ({"exp": NOW}, "token_lifetime"),
        ({"iat": NOW + 31, "exp": NOW + 60}, "token_not_yet_valid"),
        ({"exp": NOW + 0.5}, "token_claims"),
        ({"exp": 1e308}, "token_claims"),
    ],
)
def test_a_child_s_times_lie_in_its_parent_s(times: dict[str, object], code: str) -> None:
    assert refusal(resigned(HOLDER, narrow(), times)) == code


def test_a_child_ends_with_its_time_and_with_all_that_ends_its_parent() -> None:
    token = narrow(lifetime_s=60)
    jti = verify(PARENT).jti
    own = msgspec.json.decode(jwt.utils.base64url_decode(token.split(".")[1]))["jti"]

    assert refusal(token, now=NOW + 90) == "token_expired"
    for revoked in (jti, own):
        issuers = APP.issuers(revoked_jtis=(f"{APP.iss} {revoked}",))
        assert refusal(token, issuers=issuers) == "token_revoked"
    issuers = APP.issuers(min_iat_by_subject={f"{APP.iss} user-1": NOW + 1})
    assert refusal(token, issuers=issuers) == "token_superseded"


def test_what_refuses_a_token_refuses_all_that_are_narrowed_from_it() -> None:
    stranger = App(iss="https://other.example", kid="other-1")
    head, body, _ = PARENT.split(".")
    elsewhere = APP.mint(aud="another-validator", jkt=HOLDER.thumbprint)
    old = APP.mint(now=NOW - 700, jkt=HOLDER.thumbprint)
    for parent, code in (
        (elsewhere, "token_audience"),
        (stranger.mint(jkt=HOLDER.thumbprint), "token_unknown_kid"),
        (f"{head}.{body}.{'A' * 86}", "token_signature"),
        (old, "token_expired"),
    ):
        child = narrow(parent)
        grandchild = narrow(child, by=CHILD, to=OTHER.thumbprint)
        assert [refusal(token) for token in (parent, child, grandchild)] == [code] * 3

    revoked = APP.issuer(keys=(APP.public_key(status="revoked"),))
    assert refusal(narrow(), issuers=APP.issuers(issuers=(revoked,))) == "token_key_revoked"


def test_the_end_of_a_token_in_the_middle_is_that_of_all_below_it() -> None:
    middle = narrow(lifetime_s=60)
    last = narrow(middle, by=CHILD, to=OTHER.thumbprint, lifetime_s=600)
    (jti,) = re.findall(
        r'"jti":"([^"]+)"', jwt.utils.base64url_decode(middle.split(".")[1]).decode()
    )

    assert verify(last).exp == NOW + 60
    assert refusal(last, now=NOW + 90) == "token_expired"
    assert refusal(last, issuers=APP.issuers(revoked_jtis=(f"{APP.iss} {jti}",))) == "token_revoked"


def test_a_child_of_a_one_time_token_is_the_same_one_time() -> None:
    parent = APP.mint(jkt=HOLDER.thumbprint, one_time=True)
    child = verify(narrow(parent))

    assert child.one_time
    assert child.jti == verify(parent).jti
