"""Which of two routes is surely better, against intervals that others have published."""

import asyncio
import json
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from support.recorded import a_record, fill
from waypost.shared.records import Attempt, DecisionRecord, Feedback
from waypost.validator import decisions_cli
from waypost.validator.records import SqliteRecordStore
from waypost.validator.records.compare import Arm, compare, share_difference, wilson


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
