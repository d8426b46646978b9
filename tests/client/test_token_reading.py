"""Reading one's own token: to guess what the validator will find, never to trust it."""

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tokens import NOW, App
from waypost.client._token import Tokens
from waypost.client.testing import unsigned_token
from waypost.shared.tokens.unverified import unverified_claims


def test_a_real_token_says_tier_duties_and_lifetime() -> None:
    claims = unverified_claims(
        App().mint(tier="pro", tenant="acme", region="eu", data_classes=("phi",), models=("a",))
    )
    assert claims is not None
    assert (claims.iat, claims.exp) == (NOW, NOW + 600)
    signed = claims.signed
    assert (signed.tier, signed.tenant, signed.region) == ("pro", "acme", "eu")
    assert (signed.data_classes, signed.models) == (("phi",), ("a",))


def _token(payload: bytes) -> str:
    return f"e30.{urlsafe_b64encode(payload).decode()}.x"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "opaque",
        "a.b",
        "e30.é.x",
        _token(b"[]"),
        _token(b"{}"),
        _token(b'{"tier":1}'),
        _token(b'{"tier":"\xff"}'),
        _token(b'{"tier":"free","exp":1e308}'),
        _token(b"[" * 100_000),
    ],
)
def test_what_is_no_token_of_ours_says_nothing(token: str) -> None:
    assert unverified_claims(token) is None


@given(st.text())
def test_no_text_breaks_the_reading(token: str) -> None:
    unverified_claims(token)
    unverified_claims(f"e30.{token}.x")


def test_a_token_is_read_once() -> None:
    tokens = Tokens(unsigned_token(), lambda: 0.0)
    token = tokens.get() or ""
    assert tokens.claims(token) is tokens.claims(token)


def test_tokens_of_many_users_do_not_pile_up() -> None:
    tokens = Tokens(None, lambda: 0.0)
    for user in range(2_000):
        tokens.claims(f"token-{user}")
    assert len(tokens._claims) <= 256


def test_many_threads_share_one_renewal() -> None:
    import threading
    import time

    asked: list[int] = []

    def source() -> str:
        asked.append(1)
        time.sleep(0.02)
        return unsigned_token()

    tokens = Tokens(source, time.time)
    users = [threading.Thread(target=tokens.get) for _ in range(20)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(asked) == 1
