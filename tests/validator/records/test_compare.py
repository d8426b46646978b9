"""Which of two routes is surely better, against intervals that others have published."""

import asyncio
import json
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from typer.testing import CliRunner

from support.recorded import a_record, fill
from support.worlds import NOW
from waypost.shared.records import Attempt, DecisionRecord, Feedback, Shadow
from waypost.validator.commands import decisions_cli
from waypost.validator.records import RecordFilter, SqliteRecordStore
from waypost.validator.records.compare import (
    Arm,
    compare,
    shadowed,
    share_difference,
    wilson,
)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_shares_have_wilson_s_interval(count: int, total: int, low: float, high: float) -> None:
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
    assert wilson(count, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("b", "a", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0)],
)  # fmt: skip
def test_differences_have_newcombe_s_interval(
    b: tuple[int, int], a: tuple[int, int], low: float, high: float
) -> None:
    # Newcombe 1998, Interval estimation for the difference …, table II, method 10.
    assert share_difference(a, b) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 50), st.integers(1, 50))
def test_swapping_the_sides_swaps_the_interval(x: int, n: int, y: int, m: int) -> None:
    a, b = (min(x, n), n), (min(y, m), m)
    low, high = share_difference(a, b)
    assert -1.0001 <= low <= b[0] / m - a[0] / n + 1e-9 <= high + 2e-9 <= 1.0002
    assert share_difference(b, a) == pytest.approx((-high, -low))


def test_nothing_is_claimed_of_too_few_or_of_equals() -> None:
    few = Arm(requests=5, costs_nusd=[1.0] * 5)
    assert all(one.better is None for one in compare(few, few))
    assert compare(few, Arm())[4].b is None
    same = Arm(requests=100, good=50, bad=50, costs_nusd=[float(n) for n in range(100)])
    assert all(one.better is None for one in compare(same, same))


def _arm(route: str, first: int, *, cost_nusd: int, bad_every: int) -> list[DecisionRecord]:
    failed = (Attempt(model="small", provider="acme", outcome="server_error"),)
    return [
        a_record(
            number,
            route=route,
            cost_nusd=cost_nusd + number % 7,
            **({"attempts": failed} if number % bad_every == 0 else {}),
        )
        for number in range(first, first + 200)
    ]


def test_the_command_says_which_route_is_surely_better(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"

    async def keep() -> None:
        store = SqliteRecordStore.open(path)
        dear, cheap = (
            _arm("dear", 0, cost_nusd=900, bad_every=40),
            _arm("cheap", 500, cost_nusd=100, bad_every=4),
        )
        await fill(store, *dear, *cheap)
        for number, record in enumerate([*dear[:60], *cheap[:60]]):
            rating = "bad" if number >= 60 and number % 2 else "good"
            await store.put_feedback(record, Feedback(rating=rating))  # type: ignore[arg-type]
        await store.close()

    asyncio.run(keep())
    app = typer.Typer()
    decisions_cli.register(app)
    command = ["decisions", "compare", "dear", "cheap", "--db", str(path)]
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    found = {one["measure"]: one for one in told["differences"]}
    assert (told["a"], told["b"]) == (200, 200)
    assert found["rated bad"]["better"] == "a"
    assert found["rated bad"]["b"] == 0.5
    assert found["failed"]["better"] == "a"
    assert found["cost_nusd"]["better"] == "b"
    assert found["asked again"]["better"] is None
    shown = CliRunner().invoke(app, command).stdout
    assert "rated bad" in shown
    assert "not shown" in shown
    unknown = CliRunner().invoke(app, ["decisions", "compare", "dear", "x", "--db", str(path)])
    assert unknown.exit_code == 1


def _shadowed(number: int, *, outcome: str = "ok", sent: bool = True) -> DecisionRecord:
    """A request that took small 400 ms and $0.00006615, and large 300 ms and ten times that."""
    attempt = Attempt(
        model="large",
        provider="acme",
        outcome=outcome,  # type: ignore[arg-type]
        duration_ms=300.0 + number % 3,
    )
    return a_record(
        number,
        shadow=Shadow(
            manifest_version=43,
            manifest_digest="next",
            verdict="decided",
            reason="no_proposal",
            model="large",
            cost_nusd=661_500 if outcome == "ok" else 0,
            attempt=attempt if sent else None,
        ),
    )


def test_both_sides_of_a_shadow_are_compared_on_the_same_requests(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"

    async def keep() -> None:
        store = SqliteRecordStore.open(path)
        sent = [_shadowed(n, outcome="ok" if n % 4 else "server_error") for n in range(200)]
        unsent = [_shadowed(n, sent=False) for n in range(200, 300)]
        newer = a_record(400, shadow=structs.replace(sent[0].shadow, manifest_digest="newer"))  # type: ignore[type-var]
        await fill(store, a_record(500), *sent, *unsent)
        await fill(store, newer)
        await store.close()

    asyncio.run(keep())
    app = typer.Typer()
    decisions_cli.register(app)
    command = ["decisions", "compare", "--shadow", "--db", str(path)]
    assert CliRunner().invoke(app, [*command, "--model", "ghost"]).exit_code == 1
    command += ["--since", "2020-01-01"]
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (told["requests"], told["differing"], told["sent"]) == (1, 1, 1)
    store = SqliteRecordStore.open(path)
    records = asyncio.run(store.list(RecordFilter(until_ms=(NOW + 400) * 1_000), limit=999))
    sums = shadowed(records)
    assert (sums.requests, sums.sent.requests, sums.refused) == (300, 200, 0)
    assert sums.candidate_cost_nusd == 250 * 661_500
    found = {one.measure: one for one in sums.differences}
    assert set(found) == {"failed", "cost_nusd", "ttft_ms", "duration_ms"}
    assert (found["failed"].a, found["failed"].b, found["failed"].better) == (0, 0.25, "a")
    assert (found["cost_nusd"].better, found["duration_ms"].better) == ("a", "b")
    shown = CliRunner().invoke(app, command).stdout
    assert "would have sent 1 elsewhere" in shown
    for wrong in (["decisions", "compare", "dear"], [*command, "dear", "cheap"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
