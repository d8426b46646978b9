"""What the pages show: filters, paging, one decision, live rows, states, and poisoned records."""

import csv
import io
import re
import time
from collections.abc import Generator
from itertools import combinations
from pathlib import Path
from threading import Event

import httpx
import pytest
from msgspec import structs

from support.console import RECORDS, Console, start_console
from support.recorded import a_record, fill
from waypost.shared.contracts import Proposal
from waypost.shared.errors import StoreError
from waypost.shared.records import Attempt, DecisionRecord, Feedback
from waypost.validator.console import decisions, live
from waypost.validator.console.charts import lines, nice_top, stacked_bars
from waypost.validator.console.flow import MAX_ATTEMPTS, flow_of, steps_of
from waypost.validator.console.words import csv_cell, duration, money, percent, pretty_json, shown
from waypost.validator.pipeline.exchange import decision_id

ID = re.compile(r'href="/console/decisions/([0-9a-f-]{36})"')
EVIL = "<script>alert(1)</script>\x1b[31m\u202egnp.exe\u0000\n=cmd|' /C calc'!A0"


@pytest.fixture(scope="module")
def operator(console: Console) -> Generator[httpx.Client]:
    with console.operator() as client:
        client.headers["accept"] = "text/html"
        yield client


def _write(console: Console, *records: DecisionRecord) -> None:
    console.run(fill(console.running.services.store, *records))


def _now_ms() -> int:
    return int(time.time() * 1_000)


# ── the list ───────────────────────────────────────────────────────────────────────────────────


def test_pages_of_a_list_follow_each_other_without_gap_or_repeat(operator: httpx.Client) -> None:
    seen: list[str] = []
    address = "/console/decisions?window=7d&verdict=accepted"
    while True:
        page = operator.get(address).text
        seen += ID.findall(page)
        further = re.search(r'href="([^"]+)" rel="next"', page)
        if further is None:
            break
        address = f"/console/decisions{further[1].replace('&amp;', '&')}"

    total = re.search(r"(\d,\d{3}|\d+) requests in the last 7 days", page)
    assert total is not None
    assert len(seen) == len(set(seen)) == int(total[1].replace(",", ""))
    assert len(seen) > 300


@pytest.mark.parametrize(
    ("query", "passes"),
    [
        ("verdict=overridden", lambda text: "t-accepted" not in text and "t-overridden" in text),
        ("tier=enterprise", lambda text: "free" not in text and "enterprise" in text),
        ("account=alice", lambda text: "acme" not in text and "alice" in text),
        ("model=clinical&tenant=north", lambda text: "clinical" in text and "south" not in text),
        ("route=hard", lambda text: "short-chat" not in text and "hard" in text),
    ],
)
def test_a_filter_lets_only_its_own_pass(
    operator: httpx.Client, query: str, passes: object
) -> None:
    page = operator.get(f"/console/decisions?window=7d&{query}").text

    assert passes(page.partition("<tbody")[2].partition("</tbody>")[0])  # type: ignore[operator]


@pytest.mark.parametrize(
    "query", ["window=2h", "verdict=lucky", "before=1&at=2", f"account={'x' * 200}"]
)
def test_a_query_that_makes_no_sense_is_told_so(operator: httpx.Client, query: str) -> None:
    answer = operator.get(f"/console/decisions?{query}")

    assert answer.status_code == 400
    assert "invalid_query" in answer.text


def test_a_request_id_leads_to_its_decision(operator: httpx.Client) -> None:
    wanted = ID.findall(operator.get("/console/decisions").text)[3]

    answer = operator.get(f"/console/decisions?id=%20{wanted.upper()}%20", follow_redirects=True)

    assert answer.url.path == f"/console/decisions/{wanted}"
    assert "The client" in answer.text


def test_by_account_a_day_is_added_up_and_a_month_is_listed(operator: httpx.Client) -> None:
    day = operator.get("/console/decisions?account=alice").text
    month = operator.get("/console/decisions?account=alice&window=30d").text

    assert "<dt>Requests</dt>" in day
    assert "a day at most is added up" in month
    assert len(ID.findall(month)) == 50


def test_a_decision_shows_how_it_was_rated_and_what_it_repeats(
    operator: httpx.Client, console: Console
) -> None:
    first = a_record(9_301, at_ms=_now_ms())
    again = a_record(9_302, at_ms=_now_ms(), repeats=first.id, trace_id="4bf92f35" * 4)
    _write(console, first, again)
    rating = Feedback(rating="bad", cause="incomplete", at_ms=_now_ms())
    console.run(console.running.services.store.put_feedback(again, rating))

    page = operator.get(f"/console/decisions/{again.id}").text

    assert "rated bad: incomplete" in page
    assert f'href="/console/decisions/{first.id}"' in page
    assert "4bf92f35" * 4 in page


def test_a_request_that_nobody_answered_is_not_shown_as_answered(
    operator: httpx.Client, console: Console
) -> None:
    failed = Attempt(model="small", provider="acme", outcome="server_error", http_status=503)
    record = a_record(9_401, at_ms=_now_ms(), attempts=(failed,), tenant="failing", http_status=502)
    _write(console, record)

    row = operator.get("/console/decisions?tenant=failing").text.partition("<tbody")[2]
    page = operator.get(f"/console/decisions/{record.id}").text

    for told in (row, page):
        assert ">failed</span>" in told
        assert ">nobody<" in told
    assert "Nobody answered." in page


def test_an_answer_by_another_than_was_chosen_is_said_to_be_one(
    operator: httpx.Client, console: Console
) -> None:
    attempts = (
        Attempt(model="small", provider="acme", outcome="timeout"),
        Attempt(model="large", provider="acme", outcome="ok", kind="fallback"),
    )
    record = a_record(9_402, at_ms=_now_ms(), attempts=attempts, model="large", tenant="fallen")
    _write(console, record)

    row = operator.get("/console/decisions?tenant=fallen").text.partition("<tbody")[2]

    assert ">in place of small; 2 tries<" in row


def test_what_passes_no_filter_is_said_to_be_none(operator: httpx.Client) -> None:
    page = operator.get("/console/decisions?tenant=nobody").text

    assert "No decision in the last 24 hours passes these filters." in page


def test_routes_beside_each_other_add_up(operator: httpx.Client) -> None:
    page = operator.get("/console/routes?window=7d").text
    shares = re.findall(r'<td class="num">([\d,]+)<span class="sub">[\d.]+ %', page)

    assert sum(int(share.replace(",", "")) for share in shares) >= RECORDS


def test_every_page_answers(operator: httpx.Client) -> None:
    for name in ("routes", "budgets", "budgets?account=acme", "providers", "manifest"):
        assert operator.get(f"/console/{name}").status_code == 200


def test_providers_say_first_what_is_wrong(operator: httpx.Client, console: Console) -> None:
    failed = Attempt(model="clinical", provider="medcloud", outcome="timeout")
    _write(console, *(a_record(9_600 + n, at_ms=_now_ms(), attempts=(failed,)) for n in range(9)))

    page = operator.get("/console/providers").text

    assert re.search(r'<p class="banner t-overridden">clinical at medcloud failed \d+ of', page)


def test_an_outage_is_seen_though_nothing_is_sent_to_who_is_down_any_more(
    operator: httpx.Client, console: Console
) -> None:
    """Another worker's breaker is open: this one knows it from the records alone."""
    records: list[DecisionRecord] = []
    for place in range(700):  # of the newest ones all are well
        record = a_record(20_000 + place, at_ms=_now_ms() - place // 350 * 60_000)
        facts = record.facts
        assert facts is not None
        out = ("large",) if place >= 650 else ()
        measured = structs.replace(facts.measured, out_of_service=out)
        records.append(structs.replace(record, facts=structs.replace(facts, measured=measured)))
    _write(console, *records)

    page = operator.get("/console/providers").text

    assert re.search(
        r'<p class="banner t-refused">large at acme was out of service at \d+ of \d+ decisions of'
        r" the last 5 minutes\.",
        page,
    )
    assert "the last 5 minutes" in page
    assert "No provider was failing" not in page


def test_a_store_that_is_down_takes_one_page_and_not_the_others(
    operator: httpx.Client, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise StoreError("/secret/records.sqlite cannot be read", code="records_unavailable")

    monkeypatch.setattr(console.running.services.store, "stats", broken)

    answer = operator.get("/console/decisions")

    assert (answer.status_code, "records_unavailable" in answer.text) == (503, True)
    assert "/secret" not in answer.text
    assert operator.get("/console/manifest").status_code == 200


def test_no_page_shows_a_token_or_a_provider_s_key(operator: httpx.Client) -> None:
    names = ("decisions", "routes", "budgets", "providers", "manifest", "playground")
    told = "".join(operator.get(f"/console/{name}").text for name in names)

    assert "sk-acme-secret" not in told
    assert "operator-0123456789abcdef" not in told


# ── those that come ────────────────────────────────────────────────────────────────────────────


def test_decisions_come_to_an_open_page_once_each(operator: httpx.Client, console: Console) -> None:
    known = ID.findall(operator.get("/console/decisions").text)
    records = [a_record(n, at_ms=_now_ms() - 500 + n, tenant="live") for n in (9_001, 9_002)]
    with operator.stream("GET", f"/console/decisions/live?tenant=live&after={known[0]}") as stream:
        lines = stream.iter_lines()
        next(lines)
        _write(console, records[0])
        first = _event(lines)
        _write(console, records[1])
        second = _event(lines)

    assert [ID.findall(event) for event in (first, second)] == [[r.id] for r in records]


@pytest.mark.parametrize("shown_s_ago", [1, 600])
def test_a_page_that_was_cut_off_gets_what_it_missed(
    operator: httpx.Client, console: Console, shown_s_ago: int
) -> None:
    tenant = f"gap{shown_s_ago}"
    times = [_now_ms() - shown_s_ago * 1_000, _now_ms() - 500, _now_ms() - 499]
    records = [
        a_record(id=decision_id(at_ms, number), at_ms=at_ms, tenant=tenant)
        for number, at_ms in enumerate(times)
    ]
    _write(console, *records)
    with operator.stream(
        "GET",
        f"/console/decisions/live?tenant={tenant}",
        headers={"last-event-id": records[0].id},
    ) as stream:
        event = _event(stream.iter_lines())

    assert ID.findall(event) == [records[2].id, records[1].id]


def test_a_page_that_showed_nothing_gets_what_came_before_it_followed(
    operator: httpx.Client, console: Console
) -> None:
    record = a_record(9_150, at_ms=_now_ms() - 500, tenant="first")
    _write(console, record)
    with operator.stream("GET", "/console/decisions/live?tenant=first&after=") as stream:
        event = _event(stream.iter_lines())

    assert ID.findall(event) == [record.id]


def test_no_decision_comes_twice_when_the_store_was_away(
    operator: httpx.Client, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, polls = console.running.services.store, Event()

    async def broken(*_: object, **__: object) -> None:
        polls.set()
        raise StoreError("it is away", code="records_unavailable")

    monkeypatch.setattr(live, "POLL_S", 0.02)
    first, second = (a_record(n, at_ms=_now_ms(), tenant="away") for n in (9_160, 9_161))
    with operator.stream("GET", "/console/decisions/live?tenant=away&after=") as stream:
        lines = stream.iter_lines()
        _write(console, first)
        assert ID.findall(_event(lines)) == [first.id]
        with monkeypatch.context() as away:
            away.setattr(store, "list", broken)
            assert polls.wait(5)
        _write(console, second)

        assert ID.findall(_event(lines)) == [second.id]


def test_a_page_that_follows_does_not_hold_up_the_end_of_the_server(tmp_path: Path) -> None:
    own = start_console(tmp_path, records=1)
    console = next(own)
    with console.operator() as operator, operator.stream("GET", "/console/decisions/live") as live:
        lines = live.iter_lines()
        next(lines)
        own.close()

        assert not [line for line in lines if line.startswith("data:")]


def test_there_are_only_so_many_who_follow(
    operator: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_VIEWERS", 0)

    answer = operator.get("/console/decisions/live")

    assert (answer.status_code, "console_busy" in answer.text) == (503, True)


def _event(lines: object) -> str:
    found: list[str] = []
    for line in lines:  # type: ignore[attr-defined]
        if line.startswith("data:"):
            found.append(line)
        elif not line and found:
            return "\n".join(found)
    raise AssertionError("the stream ended")


# ── poison ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def poisoned(console: Console) -> DecisionRecord:
    record = a_record(
        9_500,
        at_ms=_now_ms(),
        verdict="overridden",
        reason=EVIL,
        tenant="poison",
        account=EVIL,
        tier=EVIL,
        route=EVIL,
        model=EVIL,
        chosen=EVIL,
        proposal=Proposal(model=EVIL),
        detail=EVIL * 400,
        manifest_digest=None,
    )
    _write(console, record)
    return record


def test_a_poisoned_record_is_text_on_every_page(
    operator: httpx.Client, poisoned: DecisionRecord
) -> None:
    pages = [
        operator.get("/console/decisions?tenant=poison").text,
        operator.get(f"/console/decisions/{poisoned.id}").text,
        operator.get("/console/routes").text,
        operator.get("/console/budgets").text,
    ]

    for page in pages:
        assert "&lt;script&gt;" in page
        for hostile in ("<script>alert", "\x1b", "\u202e", "\x00"):
            assert hostile not in page
        assert len(page) < 400_000


def test_a_spreadsheet_takes_nothing_of_a_poisoned_record_for_a_formula(
    operator: httpx.Client, poisoned: DecisionRecord
) -> None:
    answer = operator.get("/console/decisions.csv?tenant=poison")
    (row,) = csv.DictReader(io.StringIO(answer.text))

    assert answer.headers["content-disposition"].startswith("attachment;")
    assert row["id"] == poisoned.id
    assert "\x1b" not in answer.text
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"])
def test_text_that_begins_like_a_formula_is_quoted(start: str) -> None:
    assert csv_cell(start)[0] in ("'", "�")
    assert csv_cell(-1) == "-1"  # a number of ours is one


# ── the playground ─────────────────────────────────────────────────────────────────────────────


def test_the_playground_decides_as_v1_decide_does(operator: httpx.Client, console: Console) -> None:
    text = "Prove that the square root of 2 is irrational."
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    told = console.run(
        console.running.client.post(
            "/v1/decide", json=body, headers=console.running.headers(tier="pro")
        )
    ).json()

    page = operator.post("/console/playground", data={"text": text, "tier": "pro"}).text

    assert told["explanation"]["sentence"].replace("'", "&#39;") in page
    assert f'<h2 id="answer">{told["model"]}</h2>' in page


def test_the_playground_spends_and_records_nothing(
    operator: httpx.Client, console: Console
) -> None:
    before = console.run(console.running.spent("acme"))
    newest = ID.findall(operator.get("/console/decisions").text)[0]

    operator.post("/console/playground", data={"text": "Hello!", "tier": "free"})

    assert console.run(console.running.spent("acme")) == before
    assert ID.findall(operator.get("/console/decisions").text)[0] == newest


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"facts": "{"}, "These are not facts"),
        ({"facts": '{"now": "soon"}'}, "These are not facts"),
        ({"text": "x", "tier": "free", "max_tokens": "many"}, "a number of tokens"),
        ({"text": "x", "tier": "nobody"}, "Refused"),
        ({"text": "x" * 100_001, "tier": "free"}, "100,000 characters"),
    ],
)
def test_what_the_playground_cannot_use_is_told(
    operator: httpx.Client, form: dict[str, str], said: str
) -> None:
    answer = operator.post("/console/playground", data=form)

    assert answer.status_code in (200, 400)
    assert said in answer.text


def test_a_record_s_facts_are_decided_again_in_the_playground(operator: httpx.Client) -> None:
    wanted = ID.findall(operator.get("/console/decisions?verdict=decided").text)[0]

    page = operator.get(f"/console/playground?decision={wanted}").text

    assert "&#34;signed&#34;" in page


# ── pure parts ─────────────────────────────────────────────────────────────────────────────────


def test_an_axis_ends_at_a_round_number_not_below_its_values() -> None:
    tops = [nice_top(value) for value in (0, 0.3, 1, 107, 1_050, 7_999)]

    assert tops == pytest.approx([1, 0.3, 1, 120, 1_200, 8_000])


def test_bars_stack_to_their_sum_and_few_among_many_are_seen() -> None:
    chart = stacked_bars(["a"], {"many": [100_000.0], "few": [1.0]}, say=str, titles=["a"])
    many, few = chart.bars

    assert few.height >= 1
    assert many.y == pytest.approx(few.y + few.height)


@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize(("tries", "boxes"), [(0, 3), (1, 4), (3, 6), (9, 10)])
def test_the_picture_has_a_box_for_each_attempt_and_none_overlaps_or_is_cut(
    tries: int, boxes: int, is_tall: bool
) -> None:
    one = a_record().attempts[0]
    picture = flow_of(a_record(attempts=(one,) * tries), is_tall=is_tall)

    assert len(picture.boxes) == boxes
    for box in picture.boxes:
        assert 0 <= box.x <= picture.width - box.width
        assert 0 <= box.y <= picture.height - box.height
    for one_box, other in combinations(picture.boxes, 2):
        assert (
            one_box.x + one_box.width <= other.x
            or other.x + other.width <= one_box.x
            or one_box.y + one_box.height <= other.y
            or other.y + other.height <= one_box.y
        )
    if tries > MAX_ATTEMPTS:
        assert picture.boxes[-1].title == "3 more"


def test_a_cascade_s_picture_says_who_was_asked_why_and_for_how_much() -> None:
    cheap = Attempt(
        model="small", provider="acme", outcome="ok", confidence=0.41, cost_nusd=2_000_000
    )
    dear = Attempt(
        model="large", provider="acme", outcome="ok", kind="escalation", cost_nusd=30_000_000
    )
    record = a_record(attempts=(cheap, dear), steps_ms={"decide": 1.0, "forward": 9.0})

    unsure, sure = flow_of(record, is_tall=False).boxes[-2:]

    assert (unsure.aside, sure.aside) == ("first try", "escalated to")
    assert {"confidence": "0.41", "cost": "$0.0020"}.items() <= dict(unsure.lines).items()
    assert dict(sure.lines)["cost"] == "$0.0300"
    assert [(step.name, step.aside) for step in steps_of(record)] == [
        ("decide", ""),
        ("small", "first try"),
        ("large", "escalated to"),
    ]


def test_every_step_s_bar_lies_within_the_whole() -> None:
    one = a_record().attempts[0]
    record = a_record(
        attempts=(one,) * 3, steps_ms={"decide": 1.0, "forward": 400.0, "settle": 1.0}
    )

    assert [step.name for step in steps_of(record)] == ["decide", *["small"] * 3, "settle"]
    assert all(step.start >= 0 and step.start + step.width <= 100 for step in steps_of(record))


def test_a_line_breaks_where_nothing_is_known_and_a_lone_value_is_seen() -> None:
    chart = lines(list("abcde"), {"p50": [1.0, 2.0, None, 1.0, None]}, say=str)

    assert chart.lines[0].path.count("M") == 2
    assert chart.lines[0].path.count("L") == 2


def test_labels_below_a_chart_are_few_and_half_as_many_on_a_phone() -> None:
    chart = lines([str(n) for n in range(30)], {"p50": [None] * 30}, say=str)
    told = [label for label in chart.x_labels if label.text]

    assert len(chart.x_labels) == 30
    assert len(told) == 8
    assert sum(label.is_extra for label in told) == 4


def test_words_are_as_people_write_them() -> None:
    assert [money(n) for n in (0, 2_383_200_000, 590_000, -50_000_000)] == [
        "$0", "$2.38", "$0.00059", "−$0.05",
    ]  # fmt: skip
    assert [duration(s) for s in (0, 59, 3_600, 90_061)] == ["0 s", "59 s", "1 h 0 min", "1 d 1 h"]
    assert shown("a\u202eb") == "a�b"
    assert len(str(shown("x" * 9_999))) == 2_001
    assert [percent(*n) for n in ((0, 9), (1, 9_999), (1, 30), (9, 9), (0, 0))] == [
        "0 %", "< 0.1 %", "3.3 %", "100 %", "–",
    ]  # fmt: skip


def test_json_is_coloured_and_escaped() -> None:
    told = pretty_json('{"a": "<b>", "n": -1.5, "t": true}')

    assert '<span class="j-key">&#34;a&#34;</span>:' in told
    assert "&lt;b&gt;" in told


def test_the_console_s_files_come_with_the_package() -> None:
    folder = Path(decisions.__file__).parent

    assert {p.name for p in (folder / "static").iterdir()} == {
        "console.css",
        "console.js",
        "icon.svg",
    }
