"""When a provider gets a rest, and how it comes back."""

from waypost.validator.resilience.breaker import (
    FAILURES,
    FIRST_COOL_OFF_S,
    JITTER,
    LAST_COOL_OFF_S,
    Breaker,
)

NOW = 1_000.0


def tripped() -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.admit(NOW)
        breaker.failed(NOW, luck=0)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = tripped()

    assert breaker.refuses(NOW)
    assert not breaker.admit(NOW + FIRST_COOL_OFF_S - 0.001)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(NOW, luck=0)
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed(NOW, luck=0)

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
    breaker.succeeded()

    assert breaker.is_closed


def test_a_probe_that_fails_doubles_the_rest_up_to_a_limit() -> None:
    breaker = tripped()
    at, rest = NOW, FIRST_COOL_OFF_S
    for _ in range(10):
        at += rest
        assert breaker.admit(at)
        breaker.failed(at, luck=0)
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
    breaker.failed(NOW + FIRST_COOL_OFF_S - 1, luck=0)

    assert breaker.admit(NOW + FIRST_COOL_OFF_S)


def test_rests_differ_so_that_validators_do_not_probe_in_step() -> None:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(NOW, luck=1)

    assert breaker.refuses(NOW + FIRST_COOL_OFF_S * (1 + JITTER) - 0.001)
    assert not breaker.refuses(NOW + FIRST_COOL_OFF_S * (1 + JITTER))
