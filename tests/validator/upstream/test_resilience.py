"""The mechanisms one by one: budgets of extra requests, key pools, limits, and causes."""

import heapq
import random
from collections import deque
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.validator.upstream.causes import cause_of_rejection
from waypost.validator.upstream.key_pool import (
    LIMITED_S,
    LONGEST_REST_S,
    REFUSED_S,
    KeyPool,
    retry_after_s,
)
from waypost.validator.upstream.limiter import DROPPED, LOWEST, Limiter
from waypost.validator.upstream.retry_budget import RESERVE, ExtraBudget, full_jitter_s

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
    assert [full_jitter_s(tries, rng=1) for tries in (1, 2, 3, 20)] == [0.05, 0.1, 0.2, 2.0]
    assert full_jitter_s(3, rng=0) == 0


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


def test_a_limit_begins_as_wide_as_the_operator_allows() -> None:
    limiter = Limiter(4_096)
    assert sum(limiter.enter() for _ in range(5_000)) == 4_096


def test_a_slow_model_is_compared_with_itself_and_not_with_a_quick_one() -> None:
    limiter = Limiter(10_000)
    full(limiter)
    for number in range(1_000):
        limiter.answered("quick", 0.1, beside=10_000, now=number)
        limiter.answered("slow", 10.0, beside=10_000, now=number)

    assert limiter.limit == 10_000


def test_a_few_slow_answers_among_many_say_nothing() -> None:
    limiter = Limiter(1_000)
    full(limiter)
    for number in range(2_000):
        limiter.answered("m", 60.0 if number % 3 == 0 else 1.0, beside=1_000, now=number)

    assert limiter.limit == 1_000


def test_a_provider_that_had_too_much_gets_less_but_never_nothing() -> None:
    limiter = Limiter(10_000)
    limiter.dropped()
    assert limiter.limit == int(10_000 * DROPPED)

    for _ in range(1_000):
        limiter.dropped()
    assert limiter.limit == LOWEST
    assert Limiter(2).limit == 2


class Provider:
    """A provider that begins ``slots`` answers at once, each after ``begins_s``; others queue.

    Time is a number that goes on from event to event.
    """

    def __init__(self, limiter: Limiter, *, begins_s: float, lasts_s: float, slots: int) -> None:
        self.limiter, self.begins_s, self.lasts_s, self.slots = limiter, begins_s, lasts_s, slots
        self.draw = random.Random(7)
        self.now = 0.0
        self.waits: list[float] = []  # for those that began lately
        self.refused = self.asked = 0
        self._queue: deque[tuple[float, int]] = deque()
        self._busy = 0
        self._events: list[tuple[float, int, str, tuple[float, int]]] = []
        self._number = 0

    def _at(self, when: float, what: str, sent: tuple[float, int] = (0.0, 0)) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what, sent))

    def run(self, *, rps: float, seconds: float) -> float:
        """Return the share that was refused of what came in this time, at random moments."""
        self.asked = self.refused = 0
        self.waits.clear()
        end, at = self.now + seconds, self.now
        while (at := at + self.draw.expovariate(rps)) < end:
            self._at(at, "comes")
        self._at(end, "over")
        while True:
            self.now, _, what, (sent_at, beside) = heapq.heappop(self._events)
            match what:
                case "over":
                    return self.refused / max(1, self.asked)
                case "comes":
                    self.asked += 1
                    if self.limiter.enter():
                        self._queue.append((self.now, self.limiter.in_flight))
                    else:
                        self.refused += 1
                case "begins":
                    # Streams tell of their first byte now, and go on.
                    self.limiter.answered("m", self.now - sent_at, beside=beside, now=self.now)
                    self.waits.append(self.now - sent_at)
                    self._busy -= 1
                    self._at(self.now + self.lasts_s, "ends")
                case _:
                    self.limiter.leave()
            while self._queue and self._busy < self.slots:
                self._busy += 1
                took_s = self.begins_s * self.draw.lognormvariate(0, 0.5)
                self._at(self.now + took_s, "begins", self._queue.popleft())

    def wait_s(self) -> float:
        """Return the median wait of the last hundred."""
        return sorted(self.waits[-100:])[len(self.waits[-100:]) // 2]


def test_two_thousand_streams_at_once_to_a_quick_provider_all_begin() -> None:
    provider = Provider(Limiter(4_096), begins_s=0.06, lasts_s=5.0, slots=4_096)
    assert provider.run(rps=20_000, seconds=0.1) == 0


def test_a_new_worker_takes_streams_of_half_a_minute() -> None:
    provider = Provider(Limiter(1_024), begins_s=0.3, lasts_s=30.0, slots=4_096)
    assert provider.run(rps=25, seconds=60) == 0


def test_a_provider_that_is_asked_twice_what_it_can_do_is_spared() -> None:
    limiter = Limiter(4_096)
    provider = Provider(limiter, begins_s=0.5, lasts_s=0.0, slots=50)  # a hundred a second
    assert provider.run(rps=60, seconds=60) == 0
    at_ease_s = provider.wait_s()

    assert 0.35 < provider.run(rps=200, seconds=120) < 0.65  # what it can do is still done
    assert provider.wait_s() < 5 * at_ease_s  # without a limit it were two minutes by now
    assert limiter.limit < 500

    assert provider.run(rps=60, seconds=60) < 0.05
    assert provider.run(rps=60, seconds=60) == 0
    assert limiter.limit > 1_000


def test_a_provider_that_lost_most_of_its_machines_is_spared_until_it_has_them_back() -> None:
    limiter = Limiter(2_000)
    provider = Provider(limiter, begins_s=0.5, lasts_s=0.0, slots=400)
    assert provider.run(rps=400, seconds=30) == 0
    at_ease_s = provider.wait_s()
    provider.slots = 50
    assert provider.run(rps=400, seconds=60) > 0.5
    assert provider.wait_s() < 6 * at_ease_s
    provider.slots = 400
    provider.run(rps=400, seconds=20)
    assert provider.run(rps=400, seconds=30) == 0


@pytest.mark.parametrize("times", [1.8, 3.0, 10.0])
@pytest.mark.parametrize("rps", [2, 40, 200])
def test_one_that_becomes_slower_by_itself_is_soon_asked_as_before(times: float, rps: int) -> None:
    provider = Provider(Limiter(4_096), begins_s=0.3, lasts_s=2.0, slots=10**6)
    assert provider.run(rps=rps, seconds=40) == 0
    provider.begins_s *= times
    assert provider.run(rps=rps, seconds=80) < 0.12
    assert provider.run(rps=rps, seconds=40) == 0


def test_a_quiet_hour_after_trouble_is_no_reason_to_refuse_the_next_crowd() -> None:
    limiter = Limiter(1_024)
    provider = Provider(limiter, begins_s=0.3, lasts_s=1.0, slots=10**6)
    for _ in range(100):
        limiter.dropped()
    assert limiter.limit == LOWEST
    provider.run(rps=3, seconds=600)
    assert provider.run(rps=300, seconds=10) == 0


@given(st.lists(st.tuples(st.sampled_from("abed"), st.floats(0, 1e6)), max_size=300))
def test_whatever_happens_some_may_be_sent_and_never_too_many(
    steps: list[tuple[str, float]],
) -> None:
    limiter = Limiter(100)
    for now, (what, took_s) in enumerate(steps):
        match what:
            case "e":
                limiter.enter()
            case "d":
                limiter.dropped()
            case _:
                limiter.answered(what, took_s, beside=limiter.in_flight, now=now)
                if limiter.in_flight:
                    limiter.leave()
        assert LOWEST <= limiter.limit <= 100
        assert limiter.in_flight <= 100


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
