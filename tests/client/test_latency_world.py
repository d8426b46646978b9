"""The bench's world at a small scale: the bounds that a change of the chooser must not break.

``make bench`` runs it whole; these bounds are wider, as fewer requests scatter more.
"""

from collections.abc import Mapping

import pytest

from bench.latency_world import POLICIES, Outcome, Scale, faults_of, herd, run

SCALE = Scale(clients=700, seconds=400, size=1 / 3, seed=3)
OUTAGE = faults_of(SCALE.seconds)[0]


@pytest.fixture(scope="module")
def outcomes() -> Mapping[str, Outcome]:
    return {name: run(POLICIES[name], SCALE) for name in ("least latency", "ours", "oracle")}


def test_waits_are_near_those_of_one_who_knows_everything(outcomes: Mapping[str, Outcome]) -> None:
    ours, oracle = outcomes["ours"], outcomes["oracle"]
    assert ours.percentile(0.5) < 1.2 * oracle.percentile(0.5)
    assert ours.percentile(0.99) < 1.5 * oracle.percentile(0.99)


def test_an_outage_is_half_as_bad_as_with_what_only_looks_at_latency(
    outcomes: Mapping[str, Outcome],
) -> None:
    least, ours = (
        outcomes[name].percentile(0.99, OUTAGE.start_s, OUTAGE.end_s)
        for name in ("least latency", "ours")
    )
    assert least > 1.5 * ours


def test_no_request_is_lost_to_an_outage(outcomes: Mapping[str, Outcome]) -> None:
    assert outcomes["ours"].failed == 0


def test_nobody_herds_to_what_has_recovered(outcomes: Mapping[str, Outcome]) -> None:
    assert herd(outcomes["ours"], OUTAGE) < 1.5


def test_the_same_seed_is_the_same_world() -> None:
    short = Scale(clients=50, seconds=20, size=0.2)
    assert run(POLICIES["ours"], short).waits_ms == run(POLICIES["ours"], short).waits_ms
