"""The mechanisms one by one: budgets of extra requests, key pools, limits, and causes."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.validator.resilience.budget import RESERVE, ExtraBudget, full_jitter_s
from waypost.validator.resilience.causes import cause_of_rejection
from waypost.validator.resilience.keys import (
    LIMITED_S,
    LONGEST_REST_S,
    REFUSED_S,
    KeyPool,
    retry_after_s,
)
from waypost.validator.resilience.limiter import DROPPED, INITIAL, LOWEST, Limiter

NOW = 1_000.0


# ── extra requests ─────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers(0, 3), min_size=1, max_size=400), st.integers(0, 20))
def test_extra_requests_never_exceed_their_share_and_the_reserve(
    wanted: list[int], percent: int
) -> None:
    budget, extra = ExtraBudget(percent), 0
    for ordinary, wishes in enumerate(wanted, start=1):
        budget.deposit()
        extra += sum(budget.withdraw() for _ in range(wishes))
        assert extra <= RESERVE + ordinary * percent / 100 + 1e-6


def test_one_request_in_five_may_be_retried_for_ever() -> None:
    budget = ExtraBudget(20)
    while budget.withdraw():
        pass
    retried = 0
    for _ in range(1_000):
        budget.deposit()
        retried += budget.withdraw()

    assert retried == 200


def test_no_share_means_not_even_the_reserve() -> None:
    assert not ExtraBudget(0).withdraw()


def test_pauses_are_drawn_from_nothing_up_to_a_bound_that_doubles() -> None:
    assert [full_jitter_s(tries, luck=1) for tries in (1, 2, 3, 20)] == [0.05, 0.1, 0.2, 2.0]
    assert full_jitter_s(3, luck=0) == 0


# ── keys ───────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_used_in_turn() -> None:
    keys = KeyPool(3)

    assert [keys.take("m", NOW) for _ in range(4)] == [0, 1, 2, 0]


def test_a_key_that_hit_a_limit_rests_as_long_as_it_was_told_and_for_that_model_alone() -> None:
    keys = KeyPool(2)
    keys.limited(0, "m", NOW, retry_after_s=20)

    assert {keys.take("m", NOW + 19.9) for _ in range(4)} == {1}
    assert {keys.take("other", NOW) for _ in range(2)} == {0, 1}
    assert {keys.take("m", NOW + 20) for _ in range(2)} == {0, 1}


def test_when_all_keys_hit_a_limit_the_first_to_be_ready_is_known() -> None:
    keys = KeyPool(2)
    keys.limited(0, "m", NOW, retry_after_s=20)
    keys.limited(1, "m", NOW, retry_after_s=7)

    assert keys.take("m", NOW) is None
    assert keys.rests_until("m", NOW) == NOW + 7
    assert keys.rests_until("other", NOW) is None


def test_a_rest_is_bounded_whatever_the_provider_says() -> None:
    keys = KeyPool(1)
    keys.limited(0, "m", NOW, retry_after_s=10**9)

    assert keys.rests_until("m", NOW) == NOW + LONGEST_REST_S


def test_a_later_word_never_makes_a_rest_shorter() -> None:
    keys = KeyPool(1)
    keys.limited(0, "m", NOW, retry_after_s=30)
    keys.limited(0, "m", NOW + 1, retry_after_s=1)

    assert keys.rests_until("m", NOW) == NOW + 30


def test_without_a_word_rests_double() -> None:
    keys = KeyPool(1)
    at = NOW
    for times in range(3):
        keys.limited(0, "m", at, retry_after_s=None)
        until = keys.rests_until("m", at)
        assert until == at + LIMITED_S * 2**times
        at = until or at


def test_a_key_that_was_refused_is_used_only_when_there_is_no_other() -> None:
    keys = KeyPool(2)
    keys.refused(0, "m", NOW)
    assert {keys.take("m", NOW) for _ in range(4)} == {1}

    keys.limited(1, "m", NOW, retry_after_s=5)
    assert keys.take("m", NOW) == 0
    assert keys.rests_until("m", NOW) is None


def test_a_key_that_is_taken_again_rests_no_more() -> None:
    keys = KeyPool(1)
    keys.refused(0, "m", NOW)
    assert keys.is_any_resting
    keys.answered(0, "m")

    assert not keys.is_any_resting
    assert REFUSED_S > 0


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("٣", None),
        ("9" * 40, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nothing_else(
    header: str, wait_s: float | None
) -> None:
    now = datetime(2015, 10, 21, 7, 28, tzinfo=UTC).timestamp()

    assert retry_after_s(header, now=now) == wait_s


# ── limits ─────────────────────────────────────────────────────────────────────────────────────


def full(limiter: Limiter) -> None:
    while limiter.enter():
        pass


def test_no_more_are_under_way_than_the_limit() -> None:
    limiter = Limiter(3)
    assert [limiter.enter() for _ in range(4)] == [True, True, True, False]

    limiter.leave()
    assert limiter.enter()


def test_answers_that_begin_later_than_usual_shrink_the_limit() -> None:
    limiter = Limiter(10_000)
    full(limiter)
    for _ in range(20):
        limiter.answered("m", 1.0)
    at_ease = limiter.limit
    for _ in range(10):
        limiter.answered("m", 4.0)

    assert at_ease > INITIAL
    assert limiter.limit < at_ease / 2


def test_a_slow_model_is_compared_with_itself_and_not_with_a_quick_one() -> None:
    limiter = Limiter(10_000)
    full(limiter)
    for _ in range(200):
        limiter.answered("quick", 0.1)
        limiter.answered("slow", 10.0)

    assert limiter.limit > INITIAL


def test_what_does_not_bind_is_not_learnt_about() -> None:
    limiter = Limiter(10_000)
    for _ in range(100):
        limiter.answered("m", 1.0)
    limiter.answered("m", 100.0)

    assert limiter.limit == INITIAL


def test_a_provider_that_had_too_much_gets_less_but_never_nothing() -> None:
    limiter = Limiter(10_000)
    limiter.dropped()
    assert limiter.limit == int(INITIAL * DROPPED)

    for _ in range(1_000):
        limiter.dropped()
    assert limiter.limit == LOWEST
    assert Limiter(2).limit == 2


# ── causes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b'{"error":{"code":"context_length_exceeded","message":"x"}}', "context_too_long"),
        (b'{"error":{"message":"This model\'s maximum context length is 8"}}', "context_too_long"),
        (b'{"type":"error","error":{"message":"prompt is too long: 2 > 1"}}', "context_too_long"),
        (b'{"error":{"message":"The input token count (9) exceeds the maximum number of tokens"}}',
         "context_too_long"),
        (b'{"error":{"code":"content_filter","message":"x"}}', "content_filter"),
        (b'{"error":{"code":"content_policy_violation"}}', "content_filter"),
        (b'{"error":{"code":"bad_tool"}}', "client_error"),
        (b"", "client_error"),
        (b"x" * 5_000 + b"content_filter", "client_error"),
    ],
)  # fmt: skip
def test_what_another_model_could_serve_is_told_apart_from_a_wrong_request(
    body: bytes, cause: str
) -> None:
    assert cause_of_rejection(body) == cause
