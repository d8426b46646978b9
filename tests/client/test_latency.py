"""What a client makes of waits and failures."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.client._latency import (
    EJECTED,
    FAILURE_MS,
    FAR_MS,
    FLOOR,
    GROSS,
    LatencyTracker,
    two_choices,
)

EXPECTED_MS = 400.0


def a_tracker(**changes: int) -> LatencyTracker:
    return LatencyTracker(eject_after=changes.get("eject_after", 5), rng=lambda: 0.5)


def wait_ms(tracker: LatencyTracker, at_s: float) -> float:
    return tracker.estimate("m").ttft_ms(EXPECTED_MS, at_s)


def test_before_any_news_the_manifest_is_believed() -> None:
    assert wait_ms(a_tracker(), 0.0) == EXPECTED_MS


def test_slow_answers_count_at_once() -> None:
    tracker = a_tracker()
    tracker.observe("m", 400, expected_ms=EXPECTED_MS, now_s=0.0)
    tracker.observe("m", 1_400, expected_ms=EXPECTED_MS, now_s=0.1)
    assert wait_ms(tracker, 0.1) == pytest.approx(900), "half the way: one may be bad luck"
    for _ in range(3):
        tracker.observe("m", 1_400, expected_ms=EXPECTED_MS, now_s=0.1)
    assert wait_ms(tracker, 0.1) > 1_300


def test_a_wait_beyond_what_chance_does_counts_whole() -> None:
    tracker = a_tracker()
    tracker.observe("m", GROSS * EXPECTED_MS, expected_ms=EXPECTED_MS, now_s=0.0)
    assert wait_ms(tracker, 0.0) == pytest.approx(GROSS * EXPECTED_MS)


def test_a_fast_answer_counts_by_and_by() -> None:
    tracker = a_tracker()
    tracker.fail("m", elapsed_ms=20, expected_ms=EXPECTED_MS, now_s=0.0)
    tracker.observe("m", 400, expected_ms=EXPECTED_MS, now_s=0.1)
    assert 4_900 < wait_ms(tracker, 0.1) < 5_000


def test_without_news_the_estimate_returns_to_what_the_manifest_expects() -> None:
    tracker = a_tracker()
    tracker.observe("m", 4_000, expected_ms=EXPECTED_MS, now_s=0.0)
    waits = [wait_ms(tracker, at_s) for at_s in range(0, 120, 10)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == pytest.approx(EXPECTED_MS, rel=0.01)


def test_a_lucky_answer_draws_no_more_than_twice_the_traffic() -> None:
    tracker = a_tracker()
    tracker.observe("m", 1, expected_ms=EXPECTED_MS, now_s=0.0)
    assert wait_ms(tracker, 0.0) == EXPECTED_MS * FLOOR


def test_failing_fast_is_not_being_fast() -> None:
    tracker = a_tracker()
    tracker.fail("m", elapsed_ms=20, expected_ms=EXPECTED_MS, now_s=0.0)
    assert wait_ms(tracker, 0.0) == pytest.approx(FAILURE_MS)


@pytest.mark.parametrize(("asked_s", "counted_ms"), [(1, 5_000), (60, 60_000), (10**9, 300_000)])
def test_retry_after_lengthens_a_failure_within_reason(asked_s: int, counted_ms: int) -> None:
    tracker = a_tracker()
    tracker.fail("m", elapsed_ms=20, expected_ms=EXPECTED_MS, now_s=0.0, retry_after_s=asked_s)
    assert wait_ms(tracker, 0.0) == pytest.approx(counted_ms)


def failed(tracker: LatencyTracker, times: int, now_s: float = 0.0) -> None:
    for _ in range(times):
        tracker.fail("m", elapsed_ms=20, expected_ms=EXPECTED_MS, now_s=now_s)


def test_failures_in_a_row_eject_for_a_while() -> None:
    tracker = a_tracker()
    failed(tracker, 4)
    assert not tracker.is_ejected("m", 0.0)
    failed(tracker, 1)
    assert tracker.is_ejected("m", 29.0)
    assert not tracker.is_ejected("m", 31.0)


def test_one_success_ends_the_row() -> None:
    tracker = a_tracker()
    failed(tracker, 4)
    tracker.succeed("m")
    failed(tracker, 4)
    assert not tracker.is_ejected("m", 0.0)


def test_one_request_at_a_time_probes_what_was_ejected() -> None:
    tracker = a_tracker()
    failed(tracker, 5)
    tracker.start("m", object(), 31.0)
    assert tracker.is_ejected("m", 31.0), "a second request must wait for the probe"
    tracker.succeed("m")
    assert not tracker.is_ejected("m", 31.0)


def test_a_failed_probe_ejects_for_longer() -> None:
    tracker = a_tracker()
    failed(tracker, 5)
    tracker.start("m", object(), 31.0)
    failed(tracker, 1, now_s=31.0)
    assert tracker.is_ejected("m", 31.0 + 59)
    assert not tracker.is_ejected("m", 31.0 + 61)


def test_requests_under_way_lengthen_the_queue() -> None:
    tracker = a_tracker()
    flights = [object(), object()]
    for flight in flights:
        tracker.start("m", flight, 0.0)
    waits = [500.0]
    tracker.update(waits, {"m": 0}, [EXPECTED_MS], [100.0], 0.0)
    assert waits == [EXPECTED_MS * 3 + 100]
    for flight in flights * 2:
        tracker.finish("m", flight)
    waits = [500.0]
    tracker.update(waits, {"m": 0}, [EXPECTED_MS], [100.0], 0.0)
    assert waits == [500.0]


@given(
    samples=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20_000)), min_size=1, max_size=8),
    later_s=st.floats(0, 40),
)
def test_the_fast_way_and_the_readable_way_agree(
    samples: list[tuple[float, float]], later_s: float
) -> None:
    tracker, now_s = a_tracker(), 0.0
    for gap_s, ms in samples:
        now_s += gap_s
        tracker.observe("m", ms, expected_ms=EXPECTED_MS, now_s=now_s)
    waits = [EXPECTED_MS]
    tracker.update(waits, {"m": 0}, [EXPECTED_MS], [0.0], now_s + later_s)
    assert waits[0] == pytest.approx(wait_ms(tracker, now_s + later_s))


def test_what_is_ejected_waits_for_ever() -> None:
    tracker = a_tracker()
    failed(tracker, 5)
    waits = [1.0, 1.0]
    assert tracker.update(waits, {"m": 1}, [1.0, 1.0], [0.0, 0.0], 0.0) == 1
    assert waits == [1.0, EJECTED]


def test_the_pace_of_a_model_moves_by_and_by_and_returns() -> None:
    tracker = a_tracker()
    for _ in range(20):
        tracker.observe_tpot("m", 3.0, 0.0)
    assert tracker.estimate("m").tpot_ratio_now(0.0) == pytest.approx(3.0, rel=0.01)
    waits = [500.0]
    tracker.update(waits, {"m": 0}, [EXPECTED_MS], [100.0], 0.0)
    assert waits == [pytest.approx(EXPECTED_MS + 300, rel=0.01)]
    assert tracker.estimate("m").tpot_ratio_now(300.0) == pytest.approx(1.0, abs=0.02)


def test_no_clock_makes_a_model_absurdly_slow() -> None:
    tracker = a_tracker()
    for _ in range(50):
        tracker.observe_tpot("m", 1e12, 0.0)
    assert tracker.estimate("m").tpot_ratio_now(0.0) <= 16


# ── the way to a region ────────────────────────────────────────────────────────────────────────


def test_another_region_is_far_until_waits_tell_otherwise() -> None:
    tracker = a_tracker()
    assert (
        tracker.rtt_ms("eu", "eu")
        == tracker.rtt_ms("eu", "global")
        == tracker.rtt_ms(None, "us")
        == 0
    )
    assert tracker.rtt_ms("eu", "us") == FAR_MS
    for _ in range(30):
        tracker.observe_rtt("us", 20)
    assert tracker.rtt_ms("eu", "us") == pytest.approx(30, abs=10)


def test_one_answer_says_little_of_a_way() -> None:
    tracker = a_tracker()
    tracker.observe_rtt("eu", 250)
    assert tracker.rtt_ms("eu", "eu") < 100


def test_a_hung_model_does_not_move_its_region_out_of_reach() -> None:
    tracker = a_tracker()
    for _ in range(30):
        tracker.observe_rtt("us", 600_000)
    assert tracker.rtt_ms("eu", "us") <= 500


# ── two choices ────────────────────────────────────────────────────────────────────────────────


KINDS = ["x", "y", "z"]


def picks(
    waits: list[float], shared: list[float], kinds: list[str] = KINDS
) -> list[tuple[int, int | None]]:
    draw = random.Random(1).random
    places = list(range(len(waits)))
    return [two_choices(places, waits, shared, kinds, draw) for _ in range(3_000)]


def test_the_faster_is_drawn_more_often_and_never_alone() -> None:
    waits = [1_000.0, 1_050.0, 1_200.0]
    counted = Counter(first for first, _ in picks(waits, waits))
    assert counted[0] > counted[1] > counted[2] > 100


def test_what_only_this_client_has_seen_decides_between_two() -> None:
    shared = [1_000.0, 1_000.0]
    assert {first for first, _ in picks([1_000.0, 1_100.0], shared)} == {0}


def test_the_second_choice_is_of_another_provider() -> None:
    waits = [1_000.0] * 3
    assert {second for _, second in picks(waits, waits, ["x", "x", "y"]) if second != 2} == {0, 1}
    for first, second in picks(waits, waits, ["x", "x", "y"]):
        assert {first, second} != {0, 1}


def test_where_all_are_of_one_provider_the_second_choice_is_another_model() -> None:
    waits = [1_000.0] * 3
    for first, second in picks(waits, waits, ["x"] * 3):
        assert first != second


def test_one_alone_has_no_second() -> None:
    assert picks([1_000.0], [1_000.0])[0] == (0, None)


@given(
    waits=st.lists(st.floats(1, 1e7), min_size=2, max_size=8),
    numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
)
def test_any_draw_gives_two_different_places(waits: list[float], numbers: list[float]) -> None:
    rolls = iter(numbers)
    kinds = [str(place % 2) for place in range(len(waits))]
    first, second = two_choices(range(len(waits)), waits, waits, kinds, lambda: next(rolls))
    assert second is not None
    assert first != second
