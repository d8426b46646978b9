"""``waypost report``: the same story as text, HTML and PDF, in plain English."""

import asyncio
import json
import re
import time
import zlib
from contextlib import suppress
from html import unescape
from pathlib import Path

import pytest
import typer
from msgspec import structs
from typer.testing import CliRunner, Result

from support.recorded import DIGEST, POLICY, a_record, fill
from support.worlds import a_policy
from waypost.shared.money import Usage
from waypost.shared.records import DecisionRecord
from waypost.validator.commands import report_cli
from waypost.validator.records import SqliteRecordStore, StatsRow
from waypost.validator.records.savings import Alone, best_in_use

NOW_MS = int(time.time() * 1_000)
DAY_MS = 86_400_000
EVIL = "<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


def keep(path: Path, *records: DecisionRecord, dropped: int = 0) -> None:
    async def write() -> None:
        store = SqliteRecordStore.open(path)
        await store.put_policy(DIGEST, POLICY)
        await fill(store, *records, dropped=dropped)
        await store.close()

    asyncio.run(write())


def run(path: Path, *arguments: str) -> Result:
    app = typer.Typer()
    report_cli.register(app)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["report", *arguments, "--db", str(path)])


SMALL_NUSD, LARGE_NUSD = 66_150_000, 1_102_500_000  # of USAGE, by the policy
USAGE = Usage(input_tokens=41_000, output_tokens=100_000)


def a_week(path: Path) -> None:
    at = [NOW_MS - day * DAY_MS for day in (0, 1, 2, 8)]
    small = {"usage": USAGE, "cost_nusd": SMALL_NUSD, "baseline_cost_nusd": LARGE_NUSD}
    keep(
        path,
        a_record(1, at_ms=at[0], **small),
        a_record(2, at_ms=at[1], **small | {"cost_nusd": LARGE_NUSD, "model": "large"}),
        # Its data might not have gone to the large model.
        a_record(3, at_ms=at[1], verdict="overridden", reason="tier_not_allowed",
                 **small | {"baseline_cost_nusd": SMALL_NUSD}),
        a_record(4, at_ms=at[2], verdict="refused", reason="budget_exhausted", model=None,
                 attempts=(), usage=None, cost_nusd=0, baseline_cost_nusd=None, route=None),
        a_record(5, at_ms=at[3], **small),
    )  # fmt: skip


def test_it_says_what_was_spent_saved_overridden_and_refused(path: Path) -> None:
    a_week(path)
    told = json.loads(run(path, "--week", "--json").stdout)

    assert told["headline"] == (
        "4 requests cost $1.23. All of them on large, the best-rated model in regular use,"
        " would have cost $3.31: routing saved $2.07, 63 %."
    )
    sentences = " ".join(told["sentences"])
    assert "the $0.0661 of the same time before (1 request then)" in sentences
    assert "stricter measure, the best-rated model that each request was allowed" in sentences
    assert "routing saved $1.04" in sentences
    assert "the app asked for a model that the customer's plan does not include" in sentences
    assert "the account's budget was used up" in sentences
    assert len(told["days"]) == 7
    assert sum(spent for _, spent, _ in told["days"]) == 2 * SMALL_NUSD + LARGE_NUSD
    assert sum(saved for _, _, saved in told["days"]) == 2 * (LARGE_NUSD - SMALL_NUSD)


def test_savings_are_told_against_the_model_that_is_named(path: Path) -> None:
    a_week(path)

    told = json.loads(run(path, "--against", "small", "--json").stdout)
    unknown = run(path, "--against", "huge")

    assert told["against"] == "small"
    assert told["headline"].endswith(
        "All of them on small would have cost $0.20: routing cost $1.04 more."
    )
    assert unknown.exit_code == 2


def test_without_a_manifest_it_compares_with_what_each_request_was_allowed(path: Path) -> None:
    keep(path, a_record(1, at_ms=NOW_MS, manifest_digest=None, cost_nusd=10**9,
                        baseline_cost_nusd=4 * 10**9))  # fmt: skip

    told = json.loads(run(path, "--json").stdout)

    assert told["headline"] == (
        "1 request cost $1.00. Each on the best model it was allowed would have come to $4.00:"
        " routing saved $3.00, 75 %."
    )
    assert run(path, "--against", "small").exit_code == 1


def test_a_model_that_answers_now_and_then_is_no_yardstick() -> None:
    rows = [
        StatsRow(model=name, requests=requests, output_tokens=1)
        for name, requests in (("small", 960), ("large", 40))
    ]

    found = [best_in_use(a_policy(), rows[:shown]) for shown in (0, 1, 2)]
    regular = best_in_use(a_policy(), [rows[0], structs.replace(rows[1], requests=120)])

    assert [model and model.id for model in (*found, regular)] == [None, "small", "small", "large"]


@pytest.mark.parametrize(
    ("paid_nusd", "alone_nusd"),
    [
        (SMALL_NUSD // 2, LARGE_NUSD // 2),  # half its input came from a cache, say
        (SMALL_NUSD * 9, LARGE_NUSD),  # tried nine times: no reason to call the other dearer
        (0, 0),
    ],
)
def test_another_model_is_given_the_discount_that_was_had(paid_nusd: int, alone_nusd: int) -> None:
    policy = a_policy()
    large = next(model for model in policy.models if model.id == "large")
    row = StatsRow(
        model="small",
        requests=1,
        cost_nusd=paid_nusd,
        input_tokens=USAGE.input_tokens,
        output_tokens=USAGE.output_tokens,
    )

    assert Alone(policy, large).cost_nusd([row]) == alone_nusd


def test_text_html_and_pdf_tell_the_same(path: Path, tmp_path: Path) -> None:
    a_week(path)
    html, pdf = tmp_path / "r.html", tmp_path / "r.pdf"

    text = run(path).stdout
    result = run(path, "--html", str(html), "--pdf", str(pdf))

    assert result.exit_code == 0
    told = json.loads(run(path, "--json").stdout)
    said = [told["headline"], *told["sentences"], told["footnote"]]
    # A long cell is broken in its table, with other cells between its parts.
    words = [
        word for one in told["tables"] for row in one["rows"] for word in " ".join(row).split()
    ]
    said += [one["title"] for one in told["tables"]] + words
    on_page = unescape(re.sub(r"<[^>]*>", " ", html.read_text()))
    for shown in (text, on_page, in_pdf(pdf.read_bytes())):
        kept = letters(shown)
        assert [part for part in said if letters(part) not in kept] == []


def letters(text: str) -> str:
    """Return what is left of a text wherever its lines are broken, and its tables drawn."""
    return re.sub(r"[\s│·]+", "", text.replace("\u2212", "-").replace("\u2019", "'"))


def in_pdf(pdf: bytes) -> str:
    """Return the texts of a PDF, in the order of its pages."""
    found: list[str] = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        with suppress(zlib.error):
            parts = re.findall(rb"\((.*?)(?<!\\)\) Tj", zlib.decompress(stream))
            found += [re.sub(rb"\\(.)", rb"\1", part).decode("cp1252") for part in parts]
    return " ".join(found)


def test_the_html_runs_nothing_and_fetches_nothing(path: Path, tmp_path: Path) -> None:
    a_week(path)
    html = tmp_path / "r.html"
    run(path, "--html", str(html))
    page = html.read_text()

    assert "default-src 'none'" in page
    assert not re.search(r"<script|https?://|src=|@import", page)


def test_a_poisoned_record_harms_no_report(path: Path, tmp_path: Path) -> None:
    keep(path, a_record(1, at_ms=NOW_MS, model=EVIL * 100, route=EVIL, reason=EVIL,
                        verdict="overridden", cost_nusd=10**9))  # fmt: skip
    html, pdf = tmp_path / "r.html", tmp_path / "r.pdf"

    result = run(path, "--html", str(html), "--pdf", str(pdf))
    text = run(path).stdout

    assert result.exit_code == 0, result.output
    for raw in ("<script>alert", "\x1b", "\u202e"):
        assert raw not in html.read_text()
        assert raw == "<script>alert" or raw not in text


def test_a_week_without_requests_is_reported_too(path: Path, tmp_path: Path) -> None:
    keep(path)
    pdf = tmp_path / "r.pdf"

    assert "Nothing was asked" in run(path).stdout
    assert run(path, "--month", "--pdf", str(pdf)).exit_code == 0
    assert run(path, "--week", "--until", "2020-02-29").exit_code == 0


def test_lost_records_are_owned_up_to(path: Path) -> None:
    keep(path, a_record(1, at_ms=NOW_MS), dropped=7)

    assert "7 decisions could not be recorded" in run(path).stdout.replace("\n", " ")


@pytest.mark.parametrize("wrong", [("--week", "--month"), ("--until", "yesterday")])
def test_a_wrong_option_is_a_usage_error(path: Path, wrong: tuple[str, ...]) -> None:
    keep(path)

    assert run(path, *wrong).exit_code == 2


def test_a_file_that_cannot_be_written_is_said(path: Path, tmp_path: Path) -> None:
    keep(path)
    result = run(path, "--html", str(tmp_path / "no" / "r.html"))

    assert result.exit_code == 1
