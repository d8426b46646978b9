"""What a client makes of waits and failures."""

import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.client._latency import EJECTED, FAILURE_MS, FLOOR, Book, two_choices

EXPECTED_MS = 400.0


def a_book(**changes: int) -> Book:
    return Book(eject_after=changes.get("eject_after", 5), draw=lambda: 0.5)


def wait_ms(book: Book, at_s: float) -> float:
    return book.track("m").wait_ms(EXPECTED_MS, at_s)


def test_before_any_news_the_manifest_is_believed() -> None:
    assert wait_ms(a_book(), 0.0) == EXPECTED_MS


def test_a_slow_answer_counts_at_once() -> None:
    book = a_book()
    book.observe("m", 400, expected_ms=EXPECTED_MS, now_s=0.0)
    book.observe("m", 3_000, expected_ms=EXPECTED_MS, now_s=0.1)
    assert wait_ms(book, 0.1) == pytest.approx(3_000)


def test_a_fast_answer_counts_by_and_by() -> None:
    book = a_book()
    book.observe("m", 3_000, expected_ms=EXPECTED_MS, now_s=0.0)
    book.observe("m", 400, expected_ms=EXPECTED_MS, now_s=0.1)
    assert 2_500 < wait_ms(book, 0.1) < 3_000


def test_without_news_the_estimate_returns_to_what_the_manifest_expects() -> None:
    book = a_book()
    book.observe("m", 4_000, expected_ms=EXPECTED_MS, now_s=0.0)
    waits = [wait_ms(book, at_s) for at_s in range(0, 120, 10)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == pytest.approx(EXPECTED_MS, rel=0.01)


def test_a_lucky_answer_draws_no_more_than_twice_the_traffic() -> None:
    book = a_book()
    book.observe("m", 1, expected_ms=EXPECTED_MS, now_s=0.0)
    assert wait_ms(book, 0.0) == EXPECTED_MS * FLOOR


def test_failing_fast_is_not_being_fast() -> None:
    book = a_book()
    book.fail("m", elapsed_ms=20, expected_ms=EXPECTED_MS, now_s=0.0)
    assert wait_ms(book, 0.0) == pytest.approx(FAILURE_MS)


@pytest.mark.parametrize(("asked_s", "counted_ms"), [(1, 5_000), (60, 60_000), (10**9, 300_000)])
def test_retry_after_lengthens_a_failure_within_reason(asked_s: int, counted_ms: int) -> None:
    book = a_book()
    book.fail("m", elapsed_ms=20, expected_ms=EXPECTED_MS, now_s=0.0, retry_after_s=asked_s)
    assert wait_ms(book, 0.0) == pytest.approx(counted_ms)


def failed(book: Book, times: int, now_s: float = 0.0) -> None:
    for _ in range(times):
        book.fail("m", elapsed_ms=20, expected_ms=EXPECTED_MS, now_s=now_s)


def test_failures_in_a_row_eject_for_a_while() -> None:
    book = a_book()
    failed(book, 4)
    assert not book.is_ejected("m", 0.0)
    failed(book, 1)
    assert book.is_ejected("m", 29.0)
    assert not book.is_ejected("m", 31.0)


def test_one_success_ends_the_row() -> None:
    book = a_book()
    failed(book, 4)
    book.succeed("m")
    failed(book, 4)
    assert not book.is_ejected("m", 0.0)


def test_one_request_at_a_time_probes_what_was_ejected() -> None:
    book = a_book()
    failed(book, 5)
    book.start("m", object(), 31.0)
    assert book.is_ejected("m", 31.0), "a second request must wait for the probe"
    book.succeed("m")
    assert not book.is_ejected("m", 31.0)


def test_a_failed_probe_ejects_for_longer() -> None:
    book = a_book()
    failed(book, 5)
    book.start("m", object(), 31.0)
    failed(book, 1, now_s=31.0)
    assert book.is_ejected("m", 31.0 + 59)
    assert not book.is_ejected("m", 31.0 + 61)


def test_requests_under_way_lengthen_the_queue() -> None:
    book = a_book()
    flights = [object(), object()]
    for flight in flights:
        book.start("m", flight, 0.0)
    waits = [500.0]
    book.update(waits, {"m": 0}, [EXPECTED_MS], [100.0], 0.0)
    assert waits == [EXPECTED_MS * 3 + 100]
    for flight in flights * 2:
        book.finish("m", flight)
    waits = [500.0]
    book.update(waits, {"m": 0}, [EXPECTED_MS], [100.0], 0.0)
    assert waits == [500.0]


@given(
    samples=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20_000)), min_size=1, max_size=8),
    later_s=st.floats(0, 40),
)
def test_the_fast_way_and_the_readable_way_agree(
    samples: list[tuple[float, float]], later_s: float
) -> None:
    book, now_s = a_book(), 0.0
    for gap_s, ms in samples:
        now_s += gap_s
        book.observe("m", ms, expected_ms=EXPECTED_MS, now_s=now_s)
    waits = [EXPECTED_MS]
    book.update(waits, {"m": 0}, [EXPECTED_MS], [0.0], now_s + later_s)
    assert waits[0] == pytest.approx(wait_ms(book, now_s + later_s))


def test_what_is_ejected_waits_for_ever() -> None:
    book = a_book()
    failed(book, 5)
    waits = [1.0, 1.0]
    assert book.update(waits, {"m": 1}, [1.0, 1.0], [0.0, 0.0], 0.0) == 1
    assert waits == [1.0, EJECTED]


def test_two_choices_spread_and_avoid_the_worst() -> None:
    draw = random.Random(1).random
    picks = [two_choices([0, 1, 2], [1.0, 2.0, 3.0], draw) for _ in range(3_000)]
    assert set(picks) == {0, 1}
    assert 0.6 < picks.count(0) / len(picks) < 0.73, "two thirds of all pairs hold the best"


def test_of_two_equals_the_policy_s_first_is_taken() -> None:
    draw = random.Random(1).random
    assert {two_choices([4, 7], [1.0] * 8, draw) for _ in range(50)} == {4}


def test_a_pair_is_always_two_different_places() -> None:
    numbers = count()
    edge = [0.0, 0.999_999, 0.5]

    def draw() -> float:
        return edge[next(numbers) % 3]

    picked = {two_choices([0, 1], [float(place), 0.0], draw) for place in (1, 2) for _ in range(9)}
    assert picked == {1}
