"""``GET /metrics``: what is counted, under which labels, over several processes."""

import json
import re
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from support.debian import program
from support.recorded import a_record
from support.upstream import Upstream, failing
from support.validator import HELLO, Running, running_validator
from support.worlds import a_policy
from waypost.shared.records import Attempt
from waypost.validator.telemetry.counts import MOST_LABELS, Counts, added, decode, encode
from waypost.validator.telemetry.exposition import expose
from waypost.validator.telemetry.workers import Workers

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _sum(samples: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(
        value for (found, has), value in samples.items() if found == name and wanted <= set(has)
    )


def _counted(*records: object) -> Counts:
    counts = Counts()
    counts.know([a_policy()])
    for record in records:
        counts.record(record)  # type: ignore[arg-type]
    return counts


# ── a validator ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.anyio
async def test_a_scrape_tells_requests_money_times_and_state(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    await validator.chat()
    await validator.chat({**HELLO, "model": "frontier"})
    await validator.chat(tier="gold")
    acme.behave = medcloud.behave = failing(500)
    await validator.record(await validator.chat())
    scraped = await validator.client.get("/metrics")

    assert scraped.headers["content-type"].startswith("text/plain; version=")
    samples = _samples(scraped.text)
    assert _sum(samples, "waypost_requests_total") == 4
    assert _sum(samples, "waypost_requests_answered_total", model="small", provider="acme") == 2
    assert _sum(samples, "waypost_requests_refused_total", tier="other") == 1
    assert _sum(samples, "waypost_requests_failed_total") == 1
    assert _sum(samples, "waypost_decisions_total", reason="tier_not_allowed") == 1
    assert _sum(samples, "waypost_attempts_total", outcome="server_error") >= 2
    cost = 2 * (20 * 150 + 7 * 600) / 1e9
    assert _sum(samples, "waypost_cost_usd_total") == pytest.approx(cost)
    assert _sum(samples, "waypost_baseline_cost_usd_total") > cost
    assert _sum(samples, "waypost_request_seconds_count", route="short-chat") >= 2
    assert _sum(samples, "waypost_added_seconds_sum") > 0
    assert _sum(samples, "waypost_step_seconds_count", step="decide") >= 2
    assert _sum(samples, "waypost_manifest_version") == 1
    assert _sum(samples, "waypost_manifest_age_seconds") > 0
    assert _sum(samples, "waypost_breaker_open", model="small") in (0, 1)
    assert "waypost_budget_left_usd" not in scraped.text


@pytest.mark.anyio
async def test_who_has_how_much_left_is_told_with_the_token_alone(
    tmp_path: Path, acme: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = {"accounts": {"acme": [{"window": "day", "limit_usd": 2}]}}
    async with running_validator(
        tmp_path, {"acme": acme}, budgets=budgets, metrics={"token": "ACME_KEY"}
    ) as validator:
        refused = await validator.client.get("/metrics")
        told = await validator.client.get(
            "/metrics", headers={"Authorization": "Bearer sk-acme-secret"}
        )
    assert refused.status_code == 401
    assert _sum(_samples(told.text), "waypost_budget_left_usd", account="acme", window="day") == 2


@pytest.mark.anyio
async def test_metrics_can_be_switched_off(tmp_path: Path, acme: Upstream) -> None:
    off = {"enabled": False}
    async with running_validator(tmp_path, {"acme": acme}, metrics=off) as validator:
        assert (await validator.client.get("/metrics")).status_code == 404


# ── labels ─────────────────────────────────────────────────────────────────────────────────────


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_what_a_caller_can_write_is_never_a_label(tier: str, model: str, route: str) -> None:
    attempt = Attempt(model=model, provider=tier, outcome="ok")
    counts = _counted(a_record(tier=tier, model=model, route=route, attempts=(attempt,)))
    policy = a_policy()
    names = {model.id for model in policy.models} | {route.name for route in policy.routes}
    told = {label for labels in counts.families["requests"] for label in labels}
    assert told <= names | {*policy.tiers, "acme", "medcloud", "other", "accepted"}
    text = expose(counts.families, counts, (), accept="")[0].decode()
    assert _sum(_samples(text), "waypost_requests_total") == 1


def test_no_family_grows_without_bound() -> None:
    counts = Counts()
    for number in range(3):
        policies = [a_policy(tiers=(*a_policy().tiers, *(f"t{number}-{n}" for n in range(1_000))))]
        counts.know(policies)
        for n in range(1_000):
            counts.record(a_record(tier=f"t{number}-{n}"))
    assert len(counts.families["requests"]) <= MOST_LABELS + 1
    assert sum(numbers[0] for numbers in counts.families["requests"].values()) == 3_000


# ── several processes ──────────────────────────────────────────────────────────────────────────


def test_a_scrape_of_one_worker_tells_the_counts_of_all(tmp_path: Path) -> None:
    mine, theirs = _counted(a_record(0)), _counted(a_record(1), a_record(2, model="large"))
    one, other = Workers(tmp_path), Workers(tmp_path)
    other.publish(encode(theirs.families))
    one.publish(encode(mine.families))
    (tmp_path / "half.msgpack").write_bytes(b"\xc1")
    total = one.total(mine.families)
    assert sum(numbers[0] for numbers in total["requests"].values()) == 3
    assert total == other.total(theirs.families)
    assert total == added([decode(encode(mine.families)), theirs.families])


def test_records_that_any_worker_lost_are_told_as_one_number(tmp_path: Path) -> None:
    mine, theirs = _counted(), _counted()
    mine.lost({"queue_full": 2})
    theirs.lost({"queue_full": 3})
    theirs.lost({"queue_full": 3, "damaged": 1})  # of which one is new
    Workers(tmp_path).publish(encode(theirs.families))
    total = Workers(tmp_path).total(mine.families)
    text = expose(total, mine, (), accept="")[0].decode()
    told = _samples(text)
    assert told["waypost_records_lost_total", (("reason", "queue_full"),)] == 5
    assert told["waypost_records_lost_total", (("reason", "damaged"),)] == 1


def test_exemplars_lead_from_a_slow_bucket_to_its_trace() -> None:
    counts = _counted(a_record(trace_id="ab" * 16, duration_ms=700.0))
    body, media_type = expose(counts.families, counts, (), accept="application/openmetrics-text")
    assert media_type.startswith("application/openmetrics-text")
    found = {
        sample.labels["le"]: sample.exemplar
        for family in read_openmetrics(body.decode())  # type: ignore[no-untyped-call] # prometheus-client has types in part
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert found["1.0"].labels == {"trace_id": "ab" * 16}
    assert found["1.0"].value == 0.7


@pytest.mark.anyio
async def test_a_callers_word_on_an_answer_is_kept_and_counted(validator: Running) -> None:
    async def say(response: httpx.Response, rating: str, **more: object) -> httpx.Response:
        body = {"decision": response.headers["x-request-id"], "rating": rating, **more}
        return await validator.client.post("/v1/feedback", json=body, headers=validator.headers())

    answer = await validator.chat()
    await validator.record(answer)
    assert (await say(answer, "bad", cause="incomplete")).status_code == 200
    assert (await say(answer, "good")).json()["rating"] == "good"
    for _ in range(200):
        kept = await validator.services.store.get(answer.headers["x-request-id"])
        if kept is not None:
            break
    assert kept is not None
    assert kept.feedback is not None
    assert kept.feedback.rating == "good"
    samples = _samples((await validator.client.get("/metrics")).text)
    assert _sum(samples, "waypost_feedback_total", rating="bad", model="small") == 1


@pytest.mark.anyio
async def test_feedback_is_taken_on_ones_own_answers_alone(validator: Running) -> None:
    answer = await validator.chat(tenant="north")
    refused = await validator.chat(tier="gold")
    for response in (answer, refused):
        await validator.record(response)

    async def code(body: object, **wishes: object) -> tuple[int, str]:
        headers = validator.headers(**wishes)  # type: ignore[arg-type]
        told = await validator.client.post("/v1/feedback", json=body, headers=headers)
        return told.status_code, told.json()["error"]["code"]

    own = {"decision": answer.headers["x-request-id"], "rating": "bad"}
    assert await code(own, sub="somebody-else", tenant="north") == (404, "decision_not_found")
    assert await code({**own, "decision": "ghost"}) == (404, "decision_not_found")
    no_answer = {**own, "decision": refused.headers["x-request-id"]}
    assert await code(no_answer, tier="gold") == (409, "nothing_to_judge")
    for wrong in ({**own, "rating": "meh"}, {**own, "cause": "It was <b>bad</b>"}, {**own, "x": 1}):
        assert await code(wrong) == (400, "invalid_body")


# ── dashboard and alerts ───────────────────────────────────────────────────────────────────────

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"


@pytest.mark.anyio
async def test_dashboard_and_alerts_name_metrics_that_exist(validator: Running) -> None:
    await validator.record(await validator.chat())
    text = (await validator.client.get("/metrics")).text
    told = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | {"waypost_budget_left_usd"}
    for name in ("dashboard.json", "alerts.yml"):
        used = set(re.findall(r"waypost_\w+", (MONITORING / name).read_text()))
        used = {one.removesuffix("_bucket") for one in used}
        assert used
        assert used <= told, name


def _promtool(*arguments: str | Path) -> str:
    promtool = program("promtool")
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_alerts_fire_on_what_they_are_for() -> None:
    assert "SUCCESS: 20 rules found" in _promtool("check", "rules", MONITORING / "alerts.yml")
    assert "SUCCESS" in _promtool("test", "rules", MONITORING / "alerts.test.yml")


def test_promtool_finds_nothing_wrong_with_the_dashboards_queries(tmp_path: Path) -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(queries)} rules found" in _promtool("check", "rules", path)


@pytest.mark.anyio
async def test_promtool_finds_nothing_wrong_with_the_metrics(validator: Running) -> None:
    promtool = program("promtool")
    await validator.record(await validator.chat())
    text = (await validator.client.get("/metrics")).text
    check = partial(subprocess.run, [promtool, "check", "metrics"], capture_output=True, text=True)
    done = await to_thread.run_sync(partial(check, input=text))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
