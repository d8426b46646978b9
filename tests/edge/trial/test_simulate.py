"""A policy tried on requests before it is signed: those there were."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from anyio import to_thread

from support.command import Command
from support.projects import a_project
from support.recorded import DIGEST, a_record, fill
from support.upstream import running_upstream
from support.validator import HELLO, running_validator
from support.worlds import a_model, a_policy, some_facts
from waypost.edge.trial.simulate import Flow, Simulation, simulate
from waypost.edge.trial.traffic import Traffic
from waypost.shared.contracts import NumberBetween, Policy, Proposal, Route, Share, TextHas
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.errors import StoreError
from waypost.shared.money import Usage, bill
from waypost.shared.records import DecisionRecord, encode_record
from waypost.validator.records.sqlite import SqliteRecordStore

OLD = a_policy()
TO_LARGE = a_policy(routes=(Route(name="default", models=("large",)),))


def simulated(policy: Policy, *records: DecisionRecord, known: bool = True) -> Simulation:
    before = {DIGEST: OLD} if known else {}
    return simulate(compile_policy(policy), map(encode_record, records), before=before)


def flow(before: str, after: str, *, requests: int = 1, cost: int, then: int) -> Flow:
    return Flow(
        before=before,
        after=after,
        requests=requests,
        cost_before_nusd=cost,
        cost_after_nusd=then,
    )


def with_route(*when: object) -> Policy:
    return a_policy(
        routes=(
            Route(name="new", when=when, models=("large",)),  # type: ignore[arg-type]
            *OLD.routes,
        )
    )


# ── what would have become of a request ────────────────────────────────────────────────────────


def test_the_policy_of_then_changes_nothing() -> None:
    made = simulated(OLD, *(a_record(i, cost_nusd=66_150) for i in range(3)))

    assert made.flows == (flow("small", "small", requests=3, cost=198_450, then=198_450),)
    assert (made.models, made.routes["short-chat"]) == ({"small": (3, 3)}, 3)
    assert made.remarks == ()


def test_a_cost_is_the_recorded_usage_at_the_new_models_price() -> None:
    usage = Usage(input_tokens=41, output_tokens=100)
    (large,) = (model for model in TO_LARGE.models if model.id == "large")

    made = simulated(TO_LARGE, a_record(usage=usage, proposal=None))

    assert made.flows == (flow("small", "large", cost=66_150, then=bill(large.price, usage)),)


def test_a_clients_own_proposal_is_made_anew_and_a_model_that_was_named_is_kept() -> None:
    by_sdk = a_record(proposal=Proposal(model="small", route="short", manifest=42))
    assert simulated(TO_LARGE, by_sdk).models == {"large": (0, 1), "small": (1, 0)}

    # The SDK says its manifest of a named model as well.
    for named in (Proposal(model="small"), Proposal(model="small", manifest=42)):
        assert simulated(TO_LARGE, a_record(1, proposal=named)).models == {"small": (1, 1)}


def test_refusals_come_and_go_with_the_policy() -> None:
    closed = a_policy(models=tuple(msgspec.structs.replace(m, tiers=()) for m in OLD.models))
    refused = a_record(verdict="refused", reason="tier_not_allowed", model=None, usage=None)

    assert simulated(closed, a_record()).refusals == {"tier_not_allowed": (0, 1)}
    opened = simulated(OLD, refused)
    assert opened.refusals == {"tier_not_allowed": (1, 0)}
    assert opened.total.cost_after_nusd > 0  # an estimate: nobody knows how long the answer is


def test_what_was_refused_for_another_reason_than_the_policy_stays_refused() -> None:
    empty = a_record(verdict="refused", reason="budget_exhausted", model=None, usage=None)

    made = simulated(TO_LARGE, empty)

    assert made.refusals == {"budget_exhausted": (1, 1)}
    assert (made.total.refused_after, made.total.cost_after_nusd) == (1, 0)


def test_times_to_the_first_token_are_those_of_this_traffic_or_else_expected() -> None:
    slow = a_model("slow", ttft_prior_ms=2_000)
    policy = a_policy(
        models=(*OLD.models, slow),
        routes=(
            Route(name="a", when=(NumberBetween("input_tokens", below=50),), models=("large",)),
            Route(name="default", models=("slow",)),
        ),
    )
    there = a_record(0, chosen="large", model="large", ttft_ms=300.0, proposal=None)
    short = a_record(1, ttft_ms=90.0, proposal=None)
    long = a_record(2, ttft_ms=90.0, proposal=None, facts=some_facts(input_tokens=60))

    tier = simulated(policy, there, short, long).tiers["free"]

    assert tier.ttft_before_ms == (300 + 90 + 90) / 3
    assert tier.ttft_after_ms == (300 + 300 + 2_000) / 3


# ── what cannot be known ───────────────────────────────────────────────────────────────────────


def test_a_record_that_lacks_what_the_new_rules_look_at_is_in_no_figure() -> None:
    measured = a_record(1, facts=some_facts(complexity=900))

    made = simulated(with_route(NumberBetween("complexity", at_least=700)), a_record(), measured)

    assert (made.requests, made.incomplete) == (1, {"complexity": 1})
    assert made.routes["new"] == 1


def test_a_record_without_facts_is_counted_aside() -> None:
    made = simulated(OLD, a_record(facts=None, verdict="refused", reason="token_expired"))

    assert (made.requests, made.skipped) == (0, 1)


@pytest.mark.parametrize(
    ("known", "remark"),
    [
        (True, "'refund' was not looked for in 1 records: rules on it did not match them"),
        (False, "found in no record, and perhaps never looked for: 'analyse', 'prove', 'refund'"),
    ],
)
def test_a_keyword_that_nobody_looked_for_is_remarked(known: bool, remark: str) -> None:
    policy = with_route(TextHas("keywords", any_of=("refund",)))

    assert simulated(policy, a_record(), known=known).remarks == (remark,)


def test_callers_whose_place_is_unknown_keep_to_one_share_and_it_is_remarked() -> None:
    policy = with_route(Share("new", 0, 5_000))
    records = [a_record(i, subject=f"{i % 40:024x}"[::-1]) for i in range(400)]
    bodies: list[bytes] = []
    for record in records:
        body = json.loads(encode_record(record))
        del body["facts"]["signed"]["cohort"]
        bodies.append(json.dumps(body).encode())

    made = simulate(compile_policy(policy), bodies, before={DIGEST: OLD})

    assert 0 < made.routes["new"] < 400
    assert made.routes["new"] % 10 == 0  # ten requests of each of 40 subjects
    assert made.remarks[0].startswith("400 records do not say where their caller stands")


# ── where records lie ──────────────────────────────────────────────────────────────────────────


def written(folder: Path, content: bytes) -> Path:
    path = folder / "traffic"
    path.write_bytes(content)
    return path


def lines(records: Sequence[DecisionRecord]) -> bytes:
    return b"".join(encode_record(record) + b"\n" for record in records)


def test_json_lines_and_a_json_list_are_read_alike(tmp_path: Path) -> None:
    records = [a_record(i) for i in range(3)]
    for content in (lines(records), msgspec.json.encode(records)):
        traffic = Traffic(written(tmp_path, content))

        made = simulate(compile_policy(OLD), traffic.bodies())
        assert (traffic.total, made.requests) == (3, 3)


@pytest.mark.parametrize("content", [b"[1, 2", b"SQLite format 3\0 and then nothing"])
def test_a_file_of_something_else_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*traffic: ") as caught:
        Traffic(written(tmp_path, content))
    assert caught.value.code == "records_unavailable"


def test_a_file_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        Traffic(tmp_path / "nothing")


@pytest.mark.anyio
async def test_deflated_records_are_read_as_well(tmp_path: Path) -> None:
    store = SqliteRecordStore.open(tmp_path / "records.sqlite")
    await fill(store, *(a_record(i) for i in range(30)))
    await store.close()

    with closing(sqlite3.connect(tmp_path / "records.sqlite")) as db:
        assert {body[:1] for (body,) in db.execute("SELECT body FROM bodies")} != {b"{"}
    traffic = Traffic(tmp_path / "records.sqlite")
    assert simulate(compile_policy(OLD), traffic.bodies()).requests == 30


# ── the command, on what a validator recorded ──────────────────────────────────────────────────


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The ``waypost`` command in a new project."""
    a_project(tmp_path / "project")
    return Command(tmp_path / "project", monkeypatch, capsys)


@pytest.mark.anyio
async def test_a_validators_own_records_are_simulated(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "validator"
    folder.mkdir()
    async with (
        running_upstream() as upstream,
        running_validator(folder, {"acme": upstream, "medcloud": upstream}) as validator,
    ):
        answers = [
            await validator.chat(HELLO, tier="free"),
            await validator.chat({**HELLO, "model": "large"}, tier="pro"),
            await validator.chat(HELLO, headers={"Waypost-Facts": 'data="phi"'}, tier="pro"),
            await validator.chat(HELLO, headers={"Waypost-Facts": 'data="unheard"'}, tier="pro"),
            await validator.chat(HELLO, headers={"Authorization": "Bearer nonsense"}),
        ]
        for answer in answers:
            await validator.record(answer)
        (path,) = folder.rglob("records*.sqlite")
        # While the validator has it open. What waits for its batch is told of, and not there yet.
        for _ in range(500):
            if Traffic(path).total == len(answers):
                break
            await asyncio.sleep(0.01)
        said = await to_thread.run_sync(
            lambda: command.good("policy", "simulate", str(path), "--html", "out/page.html")
        )
        as_json = await to_thread.run_sync(
            lambda: json.loads(command.good("policy", "simulate", str(path), "--json"))
        )

    simulation = as_json["simulation"]
    assert (simulation["requests"], simulation["skipped"]) == (4, 1)
    assert simulation["refusals"] == {"unknown_data_class": [1, 1]}
    assert simulation["models"]["clinical"] == [1, 1]
    assert simulation["tiers"]["pro"]["requests"] == 3
    assert "4 requests cost $0.00" in said
    assert "1 records have no facts, and are in no figure" in said
    page = _Text()
    page.feed((command.folder / "out/page.html").read_text())
    assert "medium" in page.text or "small" in page.text
    assert not page.tags & {"script", "link", "img", "iframe"}


def test_a_page_shows_whatever_a_policy_calls_things_as_text(command: Command) -> None:
    path = command.folder / "traffic.jsonl"
    path.write_bytes(lines([a_record(model="<script>alert(1)</script>")]))

    command.good("policy", "simulate", str(path), "--html", "page.html")

    page = (command.folder / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_what_is_no_record_is_refused_in_words(command: Command) -> None:
    path = command.folder / "traffic.jsonl"
    path.write_text('{"verdict": 1}\n')

    said = command.refusal("policy", "simulate", str(path))

    assert "holds what is no decision record" in said


def test_simulating_changes_no_records(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "empty.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bodies (seq INTEGER PRIMARY KEY, body TEXT)")
        db.execute("CREATE TABLE policies (digest TEXT, body BLOB)")
        db.execute("CREATE TABLE packing (dictionary BLOB)")
    db.close()
    before = path.read_bytes()

    assert "0 requests cost" in command.good("policy", "simulate", str(path))
    assert path.read_bytes() == before
