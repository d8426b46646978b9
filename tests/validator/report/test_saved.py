"""Report and console say one thing: what was saved, who was charged, what was refused and why."""

import asyncio
import html
import json
import re
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from typer.testing import CliRunner

from support.recorded import DIGEST, POLICY, a_record, fill
from support.upstream import Exchange, answering, running_upstream
from support.validator import OPERATOR_TOKEN, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, Proposal, Route
from waypost.shared.decision.engine import REFUSAL_CODES, ExclusionCode
from waypost.shared.money import Usage
from waypost.shared.records import Attempt, AttemptOutcome, DecisionRecord
from waypost.validator.commands import report_cli
from waypost.validator.console.reasons import (
    CODES,
    because,
    in_short,
    outcome_in_words,
    step_in_words,
)
from waypost.validator.records import RecordFilter, RecordStats, StatsRow
from waypost.validator.records.savings import Alone, alone_of, best_in_use, by_model
from waypost.validator.report.facts import Gathered, report_of

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
USAGE = Usage(input_tokens=41_000, output_tokens=100_000)
SMALL_NUSD, LARGE_NUSD = 66_150_000, 1_102_500_000  # of USAGE, by the policy


def _app() -> typer.Typer:
    app = typer.Typer()
    report_cli.register(app)
    app.callback()(lambda: None)
    return app


async def reported(validator: Running, *arguments: str) -> dict[str, Any]:
    path = validator.services.config.records.path
    told = ["report", "--db", str(path), "--json", *arguments]
    result = await asyncio.to_thread(lambda: CliRunner().invoke(_app(), told))
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


async def on_page(validator: Running, path: str) -> str:
    """Return a console's page as an operator sees it."""
    client = validator.client
    if "waypost_console" not in client.cookies:
        client.headers["origin"] = validator.url
        await client.post("/console/login", data={"token": OPERATOR_TOKEN})
    answer = await client.get(f"/console/{path}", headers={"accept": "text/html"})
    assert answer.status_code == 200, answer.text
    return html.unescape(answer.text)


def tile(page: str, name: str) -> tuple[str, str, str]:
    """Return value, note and second line of a tile."""
    found = re.search(
        rf"<dt>{name}</dt><dd><strong>(.*?)</strong>(?:<span>(.*?)</span>)?"
        r'(?:<span class="more">(.*?)</span>)?',
        page,
    )
    assert found is not None, name
    return found[1], found[2] or "", found[3] or ""


def a_mix() -> list[DecisionRecord]:
    """A cascade's step and a hedge's loser on the large model, refusals and failures."""
    at_ms = int(time.time() * 1_000) - 1_000
    lost = Attempt(model="large", provider="acme", outcome="cancelled", cost_nusd=LARGE_NUSD)
    told = Attempt(model="small", provider="acme", outcome="ok", cost_nusd=SMALL_NUSD)
    answered = {"at_ms": at_ms, "usage": USAGE, "baseline_cost_nusd": 2 * LARGE_NUSD}
    refused = {"at_ms": at_ms, "verdict": "refused", "model": None, "attempts": (), "usage": None,
               "cost_nusd": 0, "baseline_cost_nusd": None}  # fmt: skip
    failed = Attempt(model="small", provider="acme", outcome="server_error")
    cut = Attempt(model="small", provider="acme", outcome="cut_short")
    return [
        a_record(1, attempts=(told,), cost_nusd=SMALL_NUSD, **answered),
        a_record(2, attempts=(lost, told), cost_nusd=SMALL_NUSD + LARGE_NUSD, **answered),
        a_record(3, model="large", cost_nusd=LARGE_NUSD, **answered),
        a_record(4, reason="budget_exhausted", **refused),
        a_record(5, reason="budget_exhausted", **refused),
        a_record(6, reason="token_signature", **refused),
        a_record(7, reason="token_expired", **refused),
        a_record(8, reason="token_claims", **refused),
        a_record(9, reason="upstream_unavailable", **refused | {"attempts": (failed,)}),
        a_record(10, at_ms=at_ms, reason="no_proposal", attempts=(cut,), cost_nusd=0,
                 baseline_cost_nusd=None, usage=None),
    ]  # fmt: skip


@pytest.mark.parametrize("against", [None, "small", "large"])
async def test_the_console_says_what_the_report_says(tmp_path: Path, against: str | None) -> None:
    named = () if against is None else ("--against", against)
    async with (
        running_upstream() as upstream,
        running_validator(
            tmp_path,
            {model.provider: upstream for model in a_policy().models},
            console={"token": "CONSOLE_TOKEN"},
            report={"against": against},
        ) as validator,
    ):
        store = validator.services.store
        await store.put_policy(DIGEST, POLICY)
        await fill(store, *a_mix())
        told = await reported(validator, *named)
        page = await on_page(validator, "decisions?window=7d")
        routes = await on_page(validator, "routes?window=7d")
        # A part of it is told against the same model.
        part = await on_page(validator, "decisions?window=7d&model=large")

    figures = dict(told["figures"])
    saved, note, stricter = tile(page, "Saved")
    assert saved == figures["Saved"]
    assert note == f"against {told['against']}"
    stricter = stricter.removesuffix(" against the best allowed")
    (measure,) = [one for one in told["sentences"] if "stricter measure" in one]
    assert stricter.removeprefix("−") in measure
    assert ("cost" in measure.rpartition("routing")[2]) == stricter.startswith("−")
    for name in ("Spent", "Refused", "Failed"):
        assert tile(page, name)[0] == figures[name]
    assert f"Saved: against {told['against']}." in routes
    assert tile(part, "Saved")[1] == note


async def test_refusals_and_failures_are_counted_once_and_by_their_words(tmp_path: Path) -> None:
    async with (
        running_upstream() as upstream,
        running_validator(
            tmp_path, {model.provider: upstream for model in a_policy().models}
        ) as validator,
    ):
        store = validator.services.store
        await store.put_policy(DIGEST, POLICY)
        await fill(store, *a_mix())
        told = await reported(validator)

    tables = {one["title"]: one["rows"] for one in told["tables"]}
    # Three codes of one meaning are more than the two of another.
    assert tables["Why requests were refused"] == [
        ["The access token did not hold", "3"],
        ["The account's budget was used up", "2"],
    ]
    assert tables["Why requests failed"] == [
        ["An answer that had begun broke off", "1"],
        ["No provider could answer", "1"],
    ]
    figures = dict(told["figures"])
    assert (figures["Refused"], figures["Failed"]) == ("50 %", "20 %")
    assert "5 times a request was refused" in " ".join(told["sentences"])
    assert "mostly (3) because the access token did not hold" in " ".join(told["sentences"])
    models = {row[0]: row[1:3] for row in tables["Models"]}
    assert models["large"] == ["1", "$2.21"], "its own answer, and the one that was lost"
    assert models["small"] == ["3", "$0.13"]


# ── what is compared ───────────────────────────────────────────────────────────────────────────

EMBED = a_model("embed", endpoints=("embeddings",), quality=99)
MIXED = a_policy(models=(*a_policy().models, EMBED))


def test_embeddings_are_compared_with_no_model_that_writes() -> None:
    chat = StatsRow(
        model="small", requests=1, cost_nusd=SMALL_NUSD,
        input_tokens=USAGE.input_tokens, output_tokens=USAGE.output_tokens,
    )  # fmt: skip
    embedded = StatsRow(model="embed", requests=9, cost_nusd=777, input_tokens=10**9)
    large = alone_of(MIXED, [chat], "large")

    assert large.cost_nusd([chat, embedded]) == large.cost_nusd([chat]) + 777
    assert large.saved_nusd([embedded]) == 0
    assert large.saved_nusd([structs.replace(embedded, input_tokens=0)]) == 0, "nobody told any"
    both = a_model("both", endpoints=ENDPOINTS)
    able = alone_of(structs.replace(MIXED, models=(*MIXED.models, both)), [chat], "large")
    assert able.saved_nusd([structs.replace(embedded, model="both")]) == 0
    # Nor is one of them what others are told against, whoever names it.
    best = alone_of(MIXED, [chat, structs.replace(embedded, output_tokens=1)], "embed")
    assert (best.model and best.model.id, best.is_chosen) == ("small", False)
    assert best_in_use(MIXED, [embedded]) is None


def test_no_table_offers_embeddings_in_the_place_of_chats() -> None:
    row = StatsRow(model="small", requests=1, cost_nusd=5, input_tokens=1, output_tokens=1)
    stats = RecordStats(rows=(row,))
    gathered = Gathered(
        alone=alone_of(MIXED, [row], None), before=RecordStats(rows=()), models=stats,
        routes=stats, reasons=RecordStats(rows=()), days=RecordStats(rows=()), starts_ms=(),
    )  # fmt: skip
    report = report_of(gathered, title="t", period="p", is_simulated=False)

    (singles,) = [one for one in report.tables if one.title.startswith("If one model")]
    assert "embed" not in {cells[0] for cells in singles.rows}
    assert "large" in {cells[0] for cells in singles.rows}


_rows = st.builds(
    StatsRow,
    model=st.sampled_from([None, "small", "large", "embed", "gone"]),
    requests=st.integers(0, 9),
    cost_nusd=st.integers(0, 10**10),
    saved_nusd=st.integers(-(10**10), 10**10),
    input_tokens=st.integers(0, 10**6),
    output_tokens=st.integers(0, 10**6),
)


@given(st.lists(_rows, max_size=8))
def test_what_is_saved_does_not_depend_on_how_it_was_added_up(rows: list[StatsRow]) -> None:
    """The console has rows by verdict, route and step; the report one for each model."""
    for against in (None, "small", "large"):
        alone = alone_of(MIXED, rows, against)
        assert alone == alone_of(MIXED, by_model(rows), against)
        assert alone.saved_nusd(rows) == alone.saved_nusd(by_model(rows))
    assert Alone().saved_nusd(rows) == sum(row.saved_nusd for row in rows)


# ── books ──────────────────────────────────────────────────────────────────────────────────────


async def by_model_of(validator: Running, requests: int) -> tuple[StatsRow, ...]:
    """Return the totals, once so many requests are in them."""
    for _ in range(500):
        stats = await validator.services.store.stats(RecordFilter(), by=("model",), times=())
        if sum(row.requests for row in stats.rows) == requests:
            return stats.rows
        await asyncio.sleep(0.01)
    raise AssertionError("records are missing")


async def test_models_records_and_ledger_come_to_the_same(tmp_path: Path) -> None:
    """A model that breaks off is charged; another answers, and is charged for that alone."""

    async def breaking(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"
        )
        exchange.close()

    policy = a_policy(
        models=tuple(a_model(name, provider=name, endpoints=ENDPOINTS) for name in ("one", "two")),
        routes=(Route(name="default", models=("one",), fallback=("two",)),),
        last_resort=(),
        data_classes={},
    )
    async with (
        running_upstream(breaking) as one,
        running_upstream(answering()) as two,
        running_validator(tmp_path, {"one": one, "two": two}, policy=policy) as validator,
    ):
        records = [await validator.record(await validator.chat()) for _ in range(3)]
        spent, _ = await validator.settled()
        rows = await by_model_of(validator, 3)

    booked = {row.model: row.cost_nusd for row in rows}
    told = [attempt for record in records for attempt in record.attempts]
    assert booked == {
        name: sum(one.cost_nusd for one in told if one.model == name) for name in ("one", "two")
    }
    assert min(booked.values()) > 0
    assert sum(booked.values()) == sum(record.cost_nusd for record in records) == spent
    assert {row.model: row.requests for row in rows} == {"one": 0, "two": 3}


# ── words ──────────────────────────────────────────────────────────────────────────────────────


def documented() -> set[str]:
    """Return the codes of docs/api.md: of the table of errors, and those of overrides."""
    page = (ROOT / "docs" / "api.md").read_text()
    table = re.findall(r"^\| [\d, ]+ \| (.*?) \|", page, re.MULTILINE)
    overrides = page.partition("Reasons of an override:")[2].partition("## ")[0]
    found = set(re.findall(r"`([a-z_]+…?)`", " ".join([*table, overrides])))
    return {code.replace("_…", "_signature") for code in found}


def raised() -> set[str]:
    """Return the codes that the pipeline can put into a record, or the console on a page."""
    found: set[str] = set()
    for folder in ("pipeline", "access", "http", "console", "routes", "upstream"):
        for path in (ROOT / "validator/waypost/validator" / folder).rglob("*.py"):
            found |= set(re.findall(r'\bcode="([a-z_]+)"', path.read_text()))
    return found


def test_each_code_has_words() -> None:
    codes = documented() | raised() | REFUSAL_CODES | set(get_args(ExclusionCode))
    assert len(codes) > 80
    assert "_" not in "".join(map(in_short, codes))
    assert {code for code in codes if because(code).startswith("the reason was")} == set()
    for words in [text for both in CODES.values() for text in both]:
        assert "_" not in words
        assert words[0] != words[0].upper() or words.startswith(("HTTP", "JSON"))


def test_each_outcome_has_words() -> None:
    for outcome in get_args(AttemptOutcome):
        assert outcome_in_words(outcome) not in (outcome, outcome.replace("_", " ")), outcome


def test_a_step_of_a_decision_tells_its_code_in_words() -> None:
    steps = {
        "large: out, it is not open to tier free [tier_not_allowed]": (
            "large: out, it is not open to tier free"
        ),
        "verdict: overridden [tier_not_allowed]": "verdict: overridden, not open to the tier",
        "token says: tenant [mine]": "token says: tenant [mine]",
        "cost: $1": "cost: $1",
    }
    assert {line: step_in_words(line) for line in steps} == steps


async def test_no_page_shows_a_code_as_text(tmp_path: Path) -> None:
    """Of a refusal, an override and a failure, in the list and each on its own page."""
    codes = {code for code in CODES if "_" in code} | {"token_signature", "token_expired"}
    overridden = a_record(
        11, at_ms=int(time.time() * 1_000), verdict="overridden", reason="tier_not_allowed",
        proposal=Proposal(model="large"),
    )  # fmt: skip
    async with (
        running_upstream() as upstream,
        running_validator(
            tmp_path,
            {model.provider: upstream for model in a_policy().models},
            console={"token": "CONSOLE_TOKEN"},
        ) as validator,
    ):
        await validator.services.store.put_policy(DIGEST, POLICY)
        await fill(validator.services.store, *a_mix(), overridden)
        ids = [record.id for record in (*a_mix(), overridden)]
        paths = ["decisions", "routes", "providers", *(f"decisions/{one}" for one in ids)]
        pages = {path: await on_page(validator, path) for path in paths}

    shown = 0
    for path, page in pages.items():
        text = re.sub(r"<details.*?</details>|<[^>]*>", " ", page, flags=re.DOTALL)
        assert {code for code in codes if re.search(rf"\b{code}\b", text)} == set(), path
        shown += "the access token does not hold" in text or "not open to the tier" in text
    assert shown
