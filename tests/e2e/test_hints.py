"""What the fleet saw of its models, from records to clients: by a pipe and the edge's own keys."""

import asyncio
import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec import structs

from support.command import Command
from support.projects import a_project, hide_model, publish_project
from support.recorded import a_record, fill
from support.worlds import a_policy, some_facts
from waypost.shared.contracts import Hint, Hints
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.money import Usage
from waypost.shared.records import Attempt, AttemptOutcome, DecisionRecord
from waypost.validator.records import SqliteRecordStore
from waypost.validator.records.observed import hints_of


def attempt(outcome: AttemptOutcome = "ok", model: str = "small", **changes: Any) -> Attempt:  # noqa: ANN401
    return Attempt(model=model, provider="acme", outcome=outcome, **changes)


def records(*attempts: Attempt, count: int = 5, first: int = 0) -> list[DecisionRecord]:
    now_ms = int(time.time() * 1_000)
    return [
        a_record(first + number, at_ms=now_ms, attempts=attempts, usage=Usage(output_tokens=100))
        for number in range(count)
    ]


# ── what is seen in records ────────────────────────────────────────────────────────────────────


def test_health_is_the_share_of_requests_that_were_answered() -> None:
    seen = [
        *records(attempt("timeout"), count=3),
        *records(attempt(ttft_ms=90.0, duration_ms=590.0), count=7),
    ]

    assert hints_of(seen) == (Hint(model="small", ttft_ms=90, tokens_per_s=200, health=70),)


@pytest.mark.parametrize(
    "outcome", ["client_error", "content_filter", "context_too_long", "rate_limited", "cancelled"]
)
def test_what_is_not_the_providers_doing_says_nothing_of_its_health(
    outcome: AttemptOutcome,
) -> None:
    seen = [*records(attempt(outcome), count=50), *records(attempt())]

    assert [hint.health for hint in hints_of(seen)] == [100]


def test_what_fails_for_one_account_makes_no_model_unhealthy_for_the_others() -> None:
    theirs = records(attempt("timeout"), count=50)
    others = records(attempt(), count=10)
    seen = [
        *(structs.replace(one, account="mallory") for one in theirs),
        *(structs.replace(one, account=f"{place}") for place, one in enumerate(others)),
    ]
    alone = [structs.replace(one, account="mallory") for one in theirs]

    assert [hint.health for hint in hints_of(seen)] == [100]
    assert [hint.health for hint in hints_of(alone)] == [0]


def test_of_a_model_that_was_hardly_asked_nothing_is_said() -> None:
    assert hints_of(records(attempt("timeout"), count=4)) == ()


def test_the_pace_of_one_answer_is_not_read_from_the_tokens_of_another() -> None:
    unsure = attempt(ttft_ms=10.0, duration_ms=11.0)
    sure = attempt(model="large", ttft_ms=10.0, duration_ms=1_010.0)

    assert [hint.tokens_per_s for hint in hints_of(records(unsure, sure))] == [None, None]


# ── what they do ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("health", "first"), [(49, "large"), (50, "small")])
def test_a_model_that_mostly_fails_is_tried_last_and_still_may_be(health: int, first: str) -> None:
    hints = Hints(
        channel="prod", version=2, issued_at=0, models=(Hint(model="small", health=health),)
    )

    decision = decide(compile_policy(a_policy(), hints), some_facts())

    assert decision.model == first
    assert "small" in decision.chain


def test_what_the_fleet_saw_is_published_through_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = a_project(tmp_path / "edge")
    hide_model(project, "large")
    publish_project(project)
    path = tmp_path / "records.sqlite"

    async def keep() -> None:
        store = SqliteRecordStore.open(path)
        await fill(
            store,
            *records(attempt("timeout"), attempt(model="large")),
            # Long ago all was well.
            *[msgspec.structs.replace(one, at_ms=0) for one in records(attempt(), first=100)],
        )
        await store.close()

    asyncio.run(keep())
    waypost = Command(project.directory, monkeypatch, capsys)
    seen = waypost.good("decisions", "hints", "--db", str(path))
    assert msgspec.json.decode(seen, type=list[Hint]) == [
        Hint(model="large"),
        Hint(model="small", health=0),
    ]

    def piped() -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(seen.encode())))

    # What clients must not know of is left out where that is wanted, else it is an error.
    piped()
    assert "large" in waypost.refusal("hints", "publish", "-")
    piped()
    told = waypost.good("hints", "publish", "-", "--known-only")
    assert told == "Published hints v2 of prod on 1 models.\n"
    published = "".join(
        path.read_text() for path in project.public.rglob("*.json") if "hints" in path.parts
    )
    assert '"health":0' in published
    assert "large" not in published
