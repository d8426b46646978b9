"""When a provider gets a rest, and how it comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.worlds import a_model
from waypost.validator.config.providers import ProviderConfig
from waypost.validator.upstream.breaker import JITTER, Breaker, BreakerRules, Witness
from waypost.validator.upstream.provider import Upstream
from waypost.validator.upstream.witnesses import fingerprint

NOW = 1_000.0
RULES = BreakerRules()
FAILURES, FIRST_COOL_OFF_S, LAST_COOL_OFF_S = (
    RULES.failures,
    RULES.first_rest_s,
    RULES.last_rest_s,
)


def tripped() -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.admit(NOW)
        breaker.failed(NOW, rng=0)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = tripped()

    assert breaker.refuses(NOW)
    assert not breaker.admit(NOW + FIRST_COOL_OFF_S - 0.001)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(NOW, rng=0)
    breaker.succeeded(NOW, after_s=0.1)
    for _ in range(FAILURES - 1):
        breaker.failed(NOW, rng=0)

    assert breaker.is_closed
    assert breaker.admit(NOW)


def test_after_its_rest_it_is_probed_once_at_a_time() -> None:
    breaker = tripped()
    later = NOW + FIRST_COOL_OFF_S

    assert breaker.admit(later)
    assert not breaker.admit(later)
    assert breaker.refuses(later)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = tripped()
    breaker.admit(NOW + FIRST_COOL_OFF_S)
    breaker.succeeded(NOW, after_s=0.1)

    assert breaker.is_closed


def test_a_probe_that_fails_doubles_the_rest_up_to_a_limit() -> None:
    breaker = tripped()
    at, rest = NOW, FIRST_COOL_OFF_S
    for _ in range(10):
        at += rest
        assert breaker.admit(at)
        breaker.failed(at, rng=0)
        rest = min(rest * 2, LAST_COOL_OFF_S)
        assert breaker.refuses(at + rest - 0.001)
        assert not breaker.refuses(at + rest)


def test_a_probe_that_tells_nothing_makes_room_for_another() -> None:
    breaker = tripped()
    later = NOW + FIRST_COOL_OFF_S
    breaker.admit(later)
    breaker.abandoned()

    assert breaker.admit(later)


def test_failures_of_requests_sent_before_it_opened_do_not_lengthen_the_rest() -> None:
    breaker = tripped()
    breaker.failed(NOW + FIRST_COOL_OFF_S - 1, rng=0)

    assert breaker.admit(NOW + FIRST_COOL_OFF_S)


def test_models_and_regions_rest_apart_and_a_new_manifest_wakes_none_of_them() -> None:
    acme = Upstream("acme", ProviderConfig(base_url="http://127.0.0.1:1/v1"), api_keys=[])
    here, there = a_model("small", region="eu"), a_model("small", region="us")
    for _ in range(FAILURES):
        acme.breaker(here).failed(NOW, rng=0)

    assert acme.breaker(a_model("small", region="eu", quality=99)).refuses(NOW)
    assert acme.breaker(there).is_closed
    assert acme.breaker(a_model("large", region="eu")).is_closed


def test_a_probe_that_has_begun_to_answer_lets_the_others_in() -> None:
    breaker = tripped()
    later = NOW + FIRST_COOL_OFF_S
    breaker.admit(later)
    breaker.began(after_s=0.1)

    assert breaker.is_closed
    # What becomes of it in the end counts as of any other.
    breaker.failed(later, rng=0)
    assert breaker.is_closed


def test_a_probe_that_crawls_lets_nobody_in_when_it_begins() -> None:
    breaker = tripped()
    later = NOW + FIRST_COOL_OFF_S
    breaker.admit(later)
    breaker.began(after_s=RULES.slow_after_s + 1)

    assert breaker.refuses(later)


def test_what_begins_while_nobody_probes_says_nothing() -> None:
    breaker = tripped()
    breaker.began(after_s=0.1)

    assert breaker.refuses(NOW)


def test_what_nothing_can_stand_in_for_is_probed_as_often_as_at_first() -> None:
    breaker = tripped()
    at = NOW
    for _ in range(4):
        at += LAST_COOL_OFF_S
        assert breaker.admit(at)
        breaker.failed(at, rng=0)

    assert not breaker.wake(at + FIRST_COOL_OFF_S - 0.001)
    assert breaker.wake(at + FIRST_COOL_OFF_S)
    assert breaker.admit(at + FIRST_COOL_OFF_S)
    # One at a time, as ever, and a failure makes the rest no shorter.
    assert not breaker.wake(at + FIRST_COOL_OFF_S)
    breaker.failed(at + FIRST_COOL_OFF_S, rng=0)
    assert breaker.refuses(at + 2 * FIRST_COOL_OFF_S)


# ── what another validator says ────────────────────────────────────────────────────────────────


def test_a_doubted_target_is_tested_by_one_request_and_refuses_nobody() -> None:
    breaker = Breaker()
    breaker.doubt(NOW)

    assert not breaker.is_being_tested(NOW)
    assert breaker.admit(NOW)
    assert breaker.is_being_tested(NOW)
    assert not breaker.refuses(NOW)
    assert breaker.admit(NOW)


def test_one_failure_confirms_a_doubt_and_opens() -> None:
    told: list[frozenset[str]] = []
    breaker = Breaker(tell=told.append)
    breaker.doubt(NOW)
    assert breaker.admit(NOW)
    breaker.failed(NOW, rng=0)

    assert breaker.refuses(NOW + FIRST_COOL_OFF_S - 0.001)
    assert breaker.admit(NOW + FIRST_COOL_OFF_S)
    assert told == [frozenset()]


@pytest.mark.parametrize("sent_before", [True, False])
def test_any_answer_clears_a_doubt(sent_before: bool) -> None:
    breaker = Breaker()
    breaker.admit(NOW)
    breaker.doubt(NOW)
    if not sent_before:
        breaker.admit(NOW)
    breaker.succeeded(NOW, after_s=0.1)
    breaker.failed(NOW, rng=0)

    assert not breaker.is_being_tested(NOW)
    assert breaker.is_closed


def test_a_doubt_that_nobody_looked_into_is_forgotten() -> None:
    breaker = Breaker()
    breaker.doubt(NOW)
    later = NOW + RULES.window_s
    breaker.admit(later)
    breaker.failed(later, rng=0)

    assert breaker.is_closed


def test_a_probe_is_not_hurried_by_what_others_say() -> None:
    breaker = tripped()
    breaker.doubt(NOW)

    assert breaker.refuses(NOW + FIRST_COOL_OFF_S - 0.001)


def test_rests_differ_so_that_validators_do_not_probe_in_step() -> None:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(NOW, rng=1)

    assert breaker.refuses(NOW + FIRST_COOL_OFF_S * (1 + JITTER) - 0.001)
    assert not breaker.refuses(NOW + FIRST_COOL_OFF_S * (1 + JITTER))


# ── by rates ───────────────────────────────────────────────────────────────────────────────────


def after(breaker: Breaker, outcomes: str, *, at: float = NOW, apart_s: float = 0.0) -> float:
    """Let these happen, a letter each: ``.`` an answer, ``s`` a slow one, ``x`` a failure."""
    for place, outcome in enumerate(outcomes):
        now = at + place * apart_s
        if not breaker.admit(now):
            break
        if outcome == "x":
            breaker.failed(now, rng=0)
        else:
            breaker.succeeded(now, after_s=RULES.slow_after_s + (outcome == "s"))
    return at + len(outcomes) * apart_s


def test_half_of_the_calls_failing_opens_it_though_never_many_in_a_row() -> None:
    breaker = Breaker()
    after(breaker, ".x" * (RULES.min_calls // 2))

    assert breaker.refuses(NOW)


def test_too_few_calls_say_nothing_about_rates() -> None:
    breaker = Breaker()
    after(breaker, ".x" * (RULES.min_calls // 2 - 1))

    assert breaker.is_closed


def test_failures_of_long_ago_do_not_count() -> None:
    breaker = Breaker()
    late = after(breaker, ".x." * (RULES.min_calls // 3)) + RULES.window_s
    after(breaker, ".x", at=late)

    assert breaker.is_closed


def test_a_window_that_moves_on_forgets_a_part_at_a_time() -> None:
    breaker = Breaker()
    later = after(breaker, ".." * RULES.min_calls, apart_s=RULES.window_s / 100)
    after(breaker, ".x" * 12, at=later)

    assert breaker.is_closed  # 12 of 64
    much_later = later + RULES.window_s * 0.9
    after(breaker, ".xxx" * 6, at=much_later)
    assert breaker.refuses(much_later)  # 30 of the 58 of the last 30 seconds


def test_answers_that_are_nearly_all_slow_open_it() -> None:
    breaker = Breaker()
    after(breaker, "ssss." * (RULES.min_calls // 5 - 1) + ".ssss")

    assert breaker.refuses(NOW)


def test_a_probe_that_crawls_is_no_recovery() -> None:
    breaker = tripped()
    later = NOW + FIRST_COOL_OFF_S
    assert breaker.admit(later)
    breaker.succeeded(later, after_s=RULES.slow_after_s + 1)

    assert breaker.refuses(later + 2 * FIRST_COOL_OFF_S - 0.001)


def test_whoever_asks_for_all_breakers_that_are_not_closed_gets_them() -> None:
    opened: set[Breaker] = set()
    breaker = Breaker(opened=opened)
    for _ in range(FAILURES):
        breaker.failed(NOW, rng=0)
    assert opened == {breaker}

    breaker.admit(NOW + FIRST_COOL_OFF_S)
    breaker.succeeded(NOW + FIRST_COOL_OFF_S, after_s=0.1)
    assert not opened


# ── for whom ───────────────────────────────────────────────────────────────────────────────────

ALICE, BOB = Witness("alice", 1), Witness("bob", 2)
OTHER_OF_ALICE = Witness("alice", 3)

# An account, a body, and whether it failed.
_CALLS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.booleans()), max_size=60)


def failing_for(breaker: Breaker, *who: Witness, times: int = FAILURES) -> None:
    for place in range(times):
        one = who[place % len(who)]
        if breaker.admit(NOW, one):
            breaker.failed(NOW, rng=0, who=one)


@given(_CALLS)
def test_one_accounts_failures_never_turn_another_away(calls: list[tuple[str, int, bool]]) -> None:
    breaker = Breaker()
    for account, body, fails in calls:
        who = Witness(account, body)
        if not breaker.admit(NOW, who):
            continue
        if fails and account == "a":
            breaker.failed(NOW, rng=0, who=who)
        else:
            breaker.succeeded(NOW, after_s=0.1, who=who)

    assert breaker.is_closed
    assert not any(breaker.refuses(NOW, Witness(other, 9)) for other in "bcd")


@given(_CALLS)
def test_one_bodys_failures_never_turn_another_body_away(
    calls: list[tuple[str, int, bool]],
) -> None:
    breaker = Breaker()
    for account, body, fails in calls:
        who = Witness(account, body)
        if not breaker.admit(NOW, who):
            continue
        if fails and body == 0:
            breaker.failed(NOW, rng=0, who=who)
        else:
            breaker.succeeded(NOW, after_s=0.1, who=who)

    assert breaker.is_closed
    assert not any(breaker.refuses(NOW, Witness(account, 9)) for account in "abcd")


def test_several_bodies_of_one_account_rest_for_all_of_that_account() -> None:
    breaker = Breaker()
    failing_for(breaker, ALICE, OTHER_OF_ALICE)

    assert breaker.refuses(NOW, Witness("alice", 99))
    assert not breaker.refuses(NOW, BOB)
    assert breaker.is_closed
    assert breaker.narrow_rests == 1


def test_two_accounts_rest_for_all_and_others_are_told_whose_they_were() -> None:
    told: list[frozenset[str]] = []
    breaker = Breaker(tell=told.append)
    failing_for(breaker, ALICE, BOB)

    assert breaker.refuses(NOW, Witness("carol", 99))
    assert told == [frozenset({fingerprint("alice"), fingerprint("bob")})]


def test_a_rate_opens_for_all_only_if_it_holds_without_the_loudest_account() -> None:
    loud, shared = Breaker(), Breaker()
    for place in range(RULES.min_calls * 2):
        for breaker, bad in ((loud, (ALICE,)), (shared, (ALICE, BOB))):
            who = Witness(bad[place % len(bad)].account, place)
            if place % 2 and breaker.admit(NOW, who):
                breaker.succeeded(NOW, after_s=0.1, who=Witness("carol", place))
            elif breaker.admit(NOW, who):
                breaker.failed(NOW, rng=0, who=who)

    assert loud.is_closed
    assert not loud.refuses(NOW, BOB)


def test_slow_answers_of_one_account_slow_nobody_else_down() -> None:
    breaker = Breaker()
    for place in range(RULES.min_calls * 2):
        who = Witness("alice", place)
        breaker.succeeded(NOW, after_s=RULES.slow_after_s + 1, who=who)

    assert not breaker.refuses(NOW, BOB)


def test_whoever_failed_as_a_probe_lets_another_find_out() -> None:
    breaker = Breaker()
    failing_for(breaker, ALICE, BOB)
    at = NOW + FIRST_COOL_OFF_S
    assert breaker.admit(at, ALICE)
    breaker.failed(at, rng=0, who=ALICE)
    again = at + 2 * FIRST_COOL_OFF_S

    assert breaker.refuses(again, ALICE)
    assert breaker.admit(again, BOB)
    breaker.succeeded(again, after_s=0.1, who=BOB)
    assert not breaker.refuses(again, Witness("carol", 5))


def test_an_account_that_is_alone_finds_out_in_the_end() -> None:
    breaker = Breaker()
    failing_for(breaker, ALICE, BOB)
    at = NOW
    for _ in range(8):
        at += 2 * LAST_COOL_OFF_S
        assert breaker.admit(at, ALICE)
        breaker.failed(at, rng=0, who=ALICE)
    at += 2 * LAST_COOL_OFF_S
    assert breaker.admit(at, ALICE)
    breaker.succeeded(at, after_s=0.1, who=ALICE)

    assert breaker.is_closed


def test_a_rest_of_one_account_ends_as_any_other_and_is_forgotten() -> None:
    opened: set[Breaker] = set()
    breaker = Breaker(opened=opened)
    failing_for(breaker, ALICE, OTHER_OF_ALICE)
    assert opened == {breaker}
    later = NOW + FIRST_COOL_OFF_S
    assert breaker.admit(later, ALICE)
    assert breaker.refuses(later, OTHER_OF_ALICE)
    breaker.began(after_s=0.1, who=ALICE)
    assert not breaker.refuses(later, OTHER_OF_ALICE)
    breaker.succeeded(later, after_s=0.1, who=ALICE)
    assert not opened

    failing_for(breaker, ALICE, OTHER_OF_ALICE)
    breaker.tidy(NOW + FIRST_COOL_OFF_S + LAST_COOL_OFF_S + 1)
    assert not opened


def test_a_doubt_of_one_account_is_not_confirmed_by_that_account() -> None:
    breaker = Breaker()
    breaker.doubt(NOW, frozenset({fingerprint("alice")}))
    breaker.failed(NOW, rng=0, who=ALICE)
    assert not breaker.refuses(NOW, BOB)

    breaker.failed(NOW, rng=0, who=BOB)
    assert breaker.refuses(NOW, Witness("carol", 7))
