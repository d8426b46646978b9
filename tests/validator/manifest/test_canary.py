"""A policy on trial: decided along in the shadow, served to a few, and rolled back by itself."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs
from pydantic import ValidationError

from support.upstream import Exchange, Upstream, answering, failing
from support.validator import HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Issuers, Policy, Route, SpendLimit
from waypost.shared.decision.rules import cohort, place
from waypost.shared.records import Shadow
from waypost.shared.trust import ManifestKeeper
from waypost.shared.wire.headers import parse_decision
from waypost.validator.config.manifests import CanaryConfig, SendConfig
from waypost.validator.ledger import scope_of
from waypost.validator.manifest.canary import CANARY, Tally, shadow_of, worse
from waypost.validator.records import RecordFilter, SqliteRecordStore
from waypost.validator.telemetry.counts import encode
from waypost.validator.telemetry.workers import Workers

pytestmark = pytest.mark.anyio

# The same, but that everything goes to large.
NEXT = a_policy(
    channel="next", routes=(Route(name="all-large", models=("large",)),), last_resort=("large",)
)


@asynccontextmanager
async def _on_trial(
    folder: Path,
    acme: Upstream,
    policy: Policy = NEXT,
    version: int | None = None,
    **how: Any,  # noqa: ANN401
) -> AsyncGenerator[Running]:
    candidate = {"channel": "next", **how}
    async with running_validator(
        folder, {"acme": acme, "medcloud": acme}, candidate=candidate
    ) as validator:
        publisher = validator.publisher
        publisher.channel = "next"
        bundle = publisher.publish(
            policy=policy,
            version=version,
            issuers=Issuers(channel="next", version=1, issued_at=int(time.time())),
        )
        settings = validator.services.config.candidate
        assert settings is not None
        ManifestKeeper(url=None, channel="next", root=publisher.root, cache=settings.cache).accept(
            bundle, etag=None
        )
        await validator.services.manifests.refresh()
        yield validator


def _canary(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"canary": {"share": 0.5, "min_requests": 20, **changes}}


def _callers(validator: Running) -> tuple[str, str]:
    """Return a caller whom a half share of canaries serves, and one whom it does not."""
    inside = [
        place(CANARY, cohort(validator.app.iss, f"user-{number}")) < 5_000 for number in range(40)
    ]
    return f"user-{inside.index(True)}", f"user-{inside.index(False)}"


# ── in the shadow ──────────────────────────────────────────────────────────────────────────────


async def test_a_shadow_is_in_the_record_and_nowhere_else(tmp_path: Path, acme: Upstream) -> None:
    async with _on_trial(tmp_path, acme, shadow_share=1) as validator:
        answer = await validator.chat()
        record = await validator.record(answer)
    assert record.shadow is not None
    assert (record.model, record.shadow.model, record.shadow.route) == (
        "small",
        "large",
        "all-large",
    )
    assert record.shadow.cost_nusd == 20 * 2_500 + 7 * 10_000
    assert record.cost_nusd == 20 * 150 + 7 * 600
    assert record.manifest_digest != record.shadow.manifest_digest
    assert [seen.json["model"] for seen in acme.seen] == ["acme-small"]
    assert answer.headers["waypost-manifest"] == "1"


async def test_a_shadow_that_takes_long_to_measure_does_so_off_the_loop(
    tmp_path: Path, acme: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def watched(*told: Any) -> Shadow:  # noqa: ANN401
        threads.append(threading.get_ident())
        return shadow_of(*told)

    monkeypatch.setattr("waypost.validator.manifest.canary.shadow_of", watched)
    async with _on_trial(tmp_path, acme, shadow_share=1) as validator:
        await validator.record(await validator.chat())
        # As one is that reads meaning: that is an extra, which not everybody installs.
        assert validator.services.manifests.candidate is not None
        trial = validator.services.manifests.candidate.active
        assert trial is not None
        monkeypatch.setattr(trial.compiled.reader, "is_slow", True)
        record = await validator.record(await validator.chat())

    assert record.shadow is not None
    assert [one == threading.get_ident() for one in threads] == [True, False]


async def test_a_candidate_of_another_root_is_no_candidate(tmp_path: Path, acme: Upstream) -> None:
    async with running_validator(
        tmp_path, {"acme": acme}, candidate={"channel": "next", "shadow_share": 1}
    ) as validator:
        settings = validator.services.config.candidate
        assert settings is not None
        settings.cache.write_bytes(b'{"format":"tuf-bundle/1","files":{}}')
        await validator.services.manifests.refresh()
        record = await validator.record(await validator.chat())
    assert record.shadow is None


async def test_a_candidate_without_any_provider_here_is_not_on_trial(
    tmp_path: Path, acme: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = a_policy(
        channel="next",
        models=(a_model("far", provider="elsewhere"),),
        routes=(Route(name="default", models=("far",)),),
        last_resort=(),
    )
    async with _on_trial(tmp_path, acme, elsewhere, **_canary(share=1.0)) as validator:
        answer = await validator.chat()
        await validator.services.manifests.refresh()
        candidate = validator.services.manifests.candidate
    assert answer.status_code == 200
    assert candidate is not None
    assert candidate.active is None
    told = [r.message for r in caplog.records if "candidate v2 refused" in r.message]
    assert len(told) == 1
    assert "far (of elsewhere)" in told[0]


# ── sent in the shadow ─────────────────────────────────────────────────────────────────────────


def _sending(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    budget = [{"window": "day", "limit_usd": 1}]
    return {"shadow_share": 1, "send": {"share": 1, "budget": budget, **changes}}


async def _shadow(validator: Running, response: httpx.Response) -> Shadow:
    """Return the shadow of the request that got ``response``, once it is over."""
    for _ in range(500):
        record = await validator.services.store.get(response.headers["x-request-id"])
        if record is not None and record.shadow is not None:
            return record.shadow
        await asyncio.sleep(0.01)
    raise AssertionError("no record was written")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_shadow_may_be_sent_at_the_operators_cost_and_the_caller_learns_nothing(
    tmp_path: Path, acme: Upstream, stream: bool
) -> None:
    async with _on_trial(tmp_path, acme, **_sending()) as validator:
        answer = await validator.chat({**HELLO, "stream": stream})
        shadow = await _shadow(validator, answer)
        spent, reserved = await validator.spent()
        trial = scope_of("trial:next", (SpendLimit(window="total", limit_nusd=10**15),))
        (paid,) = await validator.services.ledger.balances((trial,), now=int(time.time()))
        text = (await validator.client.get("/metrics")).text
    assert [seen.json["model"] for seen in acme.seen] == ["acme-small", "acme-large"]
    assert "traceparent" not in acme.seen[1].headers
    assert shadow.attempt is not None
    assert (shadow.attempt.model, shadow.attempt.outcome) == ("large", "ok")
    cost = 20 * 2_500 + 7 * 10_000
    assert (shadow.cost_nusd, paid.spent_nusd, paid.reserved_nusd) == (cost, cost, 0)
    assert (spent, reserved) == (20 * 150 + 7 * 600, 0)
    assert parse_decision(answer.headers["waypost-decision"])["model"] == "small"
    assert 'waypost_shadow_sent_total{model="large",outcome="ok"} 1.0' in text
    assert b"Four." not in b"".join(await validator.services.store.bodies(RecordFilter(), limit=9))


async def test_a_shadow_goes_nowhere_that_the_policy_in_force_forbids(
    tmp_path: Path, acme: Upstream
) -> None:
    # The candidate thinks little of patients: nobody has promised anything, and nobody need.
    careless = structs.replace(NEXT, data_classes={"phi": ()})
    async with _on_trial(tmp_path, acme, careless, **_sending()) as validator:
        answer = await validator.chat(data_classes=("phi",))
        shadow = await _shadow(validator, answer)
    assert (shadow.model, shadow.attempt, shadow.not_sent) == ("large", None, "not_admissible")
    assert [seen.json["model"] for seen in acme.seen] == ["acme-clinical"]


async def test_a_model_that_the_candidate_moves_elsewhere_is_another(
    tmp_path: Path, acme: Upstream
) -> None:
    moved = tuple(
        structs.replace(m, provider="medcloud") if m.id == "large" else m for m in NEXT.models
    )
    async with _on_trial(
        tmp_path, acme, structs.replace(NEXT, models=moved), **_sending()
    ) as validator:
        shadow = await _shadow(validator, await validator.chat())
    assert shadow.not_sent == "not_admissible"
    assert len(acme.seen) == 1


async def test_what_acts_on_the_world_is_not_sent_twice(tmp_path: Path, acme: Upstream) -> None:
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "pay"}}]
    all_frontier = structs.replace(
        NEXT, routes=(Route(name="all", models=("frontier",)),), last_resort=("frontier",)
    )
    async with _on_trial(tmp_path, acme, all_frontier, **_sending()) as validator:
        answer = await validator.chat({**HELLO, "tools": tools}, tier="enterprise")
        shadow = await _shadow(validator, answer)
    assert (shadow.model, shadow.not_sent) == ("frontier", "acts")
    assert len(acme.seen) == 1


async def test_a_trial_without_money_sends_nothing_and_turns_nobody_away(
    tmp_path: Path, acme: Upstream
) -> None:
    poor = _sending(budget=[{"window": "day", "limit_usd": "0.000001"}])
    async with _on_trial(tmp_path, acme, **poor) as validator:
        answer = await validator.chat()
        shadow = await _shadow(validator, answer)
    assert answer.status_code == 200
    assert shadow.not_sent == "over_budget"
    assert shadow.cost_nusd == 20 * 2_500 + 7 * 10_000  # what the same tokens would cost
    assert len(acme.seen) == 1


async def test_few_are_under_way_at_once_and_none_outlives_the_validator(
    tmp_path: Path, acme: Upstream
) -> None:
    is_asked = asyncio.Event()

    async def behave(exchange: Exchange) -> None:
        if exchange.seen.json["model"] == "acme-large":
            is_asked.set()
            await asyncio.sleep(60)
        await answering()(exchange)

    acme.behave = behave
    async with _on_trial(tmp_path, acme, **_sending(at_once=1)) as validator:
        first = await validator.chat()
        await is_asked.wait()
        second = await _shadow(validator, await validator.chat())
        # The caller need not wait for it to look the decision up, or to rate it.
        looked_up = await validator.client.get(
            f"/v1/decisions/{first.headers['x-request-id']}", headers=validator.headers()
        )
        config = validator.services.config.records
    assert second.not_sent == "busy"
    assert looked_up.status_code == 200
    store = SqliteRecordStore.open(config.path)
    record = await store.get(first.headers["x-request-id"])
    await store.close()
    assert record is not None
    assert record.shadow is not None
    assert record.shadow.attempt is not None
    assert record.shadow.attempt.outcome == "cancelled"
    # What the provider may have been at work on is charged.
    assert (record.shadow.cost_nusd or 0) > 0


def test_nothing_is_sent_without_a_budget_of_the_trials_own() -> None:
    for budget in (
        [],
        [{"window": "day", "warn_usd": 1}],
        [{"window": "day", "limit_usd": 1, "limit_requests": 9}],  # which nothing would count
    ):
        with pytest.raises(ValidationError):
            SendConfig.model_validate({"share": 0.1, "budget": budget})


# ── a canary ───────────────────────────────────────────────────────────────────────────────────


async def test_a_canary_serves_always_the_same_callers(tmp_path: Path, acme: Upstream) -> None:
    async with _on_trial(tmp_path, acme, **_canary()) as validator:
        inside, outside = _callers(validator)
        for _ in range(2):
            served = await validator.record(await validator.chat(sub=inside))
            other = await validator.record(await validator.chat(sub=outside))
            assert (served.is_canary, served.model) == (True, "large")
            assert (other.is_canary, other.model) == (False, "small")
        policy = await validator.services.manifests.explained(served)
    assert policy is not None
    assert policy.policy.channel == "next"


async def test_proposals_are_not_stale_to_a_candidate_whose_versions_are_counted_apart(
    tmp_path: Path, acme: Upstream
) -> None:
    small = {"Waypost-Proposal": 'model="small", route="short-chat", manifest=1'}
    async with _on_trial(tmp_path, acme, version=90, **_canary()) as validator:
        inside, _ = _callers(validator)
        served = await validator.record(await validator.chat(sub=inside, headers=small))

    assert served.is_canary
    assert (served.verdict, served.model) == ("accepted", "small")


async def test_a_canary_that_costs_too_much_is_rolled_back_for_good(
    tmp_path: Path, acme: Upstream
) -> None:
    async with _on_trial(tmp_path, acme, **_canary()) as validator:
        inside, outside = _callers(validator)
        for _ in range(20):
            for caller in (inside, outside):
                await validator.record(await validator.chat(sub=caller))
        candidate = validator.services.manifests.candidate
        assert candidate is not None
        candidate.judge(await validator.services.counts.total())
        assert candidate.rolled_back is not None
        assert candidate.rolled_back.startswith("cost: +1")
        back = await validator.chat(sub=inside)
        assert parse_decision(back.headers["waypost-decision"])["model"] == "small"
        # Another process, or this one after a restart, need not find out for itself.
        await validator.services.manifests.refresh()
        candidate.rolled_back = None
        candidate.judge({})
        assert candidate.rolled_back is not None
        scraped = (await validator.client.get("/metrics")).text
    assert "waypost_canary_rolled_back 1.0" in scraped


async def test_workers_judge_by_what_all_of_them_have_seen(tmp_path: Path, acme: Upstream) -> None:
    async with _on_trial(tmp_path, acme, **_canary()) as validator:
        inside, outside = _callers(validator)
        for _ in range(12):
            for caller in (inside, outside):
                last = await validator.record(await validator.chat(sub=caller))
        candidate, services = validator.services.manifests.candidate, validator.services
        assert candidate is not None
        candidate.judge(await services.counts.total())
        assert candidate.rolled_back is None  # twelve of each are too few

        # Another worker has seen as many.
        Workers(services.config.metrics.path).publish(encode(services.counts.counts.families))
        candidate.judge(await services.counts.total())
        assert candidate.rolled_back is not None
        # A request that began with the candidate of before counts in no trial of this one's.
        services.counts.counts.families.clear()
        candidate.note(structs.replace(last, is_canary=True, manifest_digest="before"))
        assert set(services.counts.counts.families["trial"]) == {("before", "canary")}


async def test_a_canary_whose_requests_fail_is_rolled_back(tmp_path: Path, acme: Upstream) -> None:
    policy = structs.replace(
        NEXT,
        models=(*NEXT.models, a_model("broken", provider="medcloud")),
        routes=(Route(name="broken", models=("broken",), enforce=True),),
    )

    async def behave(exchange: Any) -> None:  # noqa: ANN401
        is_broken = exchange.seen.json["model"] == "acme-broken"
        await (failing(500) if is_broken else answering())(exchange)

    acme.behave = behave
    async with _on_trial(tmp_path, acme, policy, **_canary()) as validator:
        inside, outside = _callers(validator)
        for _ in range(20):
            broken, sound = [await validator.chat(sub=caller) for caller in (inside, outside)]
            assert broken.status_code != 200 == sound.status_code
            for answer in (broken, sound):
                await validator.record(answer)
        candidate = validator.services.manifests.candidate
        assert candidate is not None
        candidate.judge(await validator.services.counts.total())
        # Once its breaker is open, requests are refused instead.
        assert (candidate.rolled_back or "").startswith(("failures: ", "refusals: "))
        assert (await validator.chat({**HELLO}, sub=inside)).status_code == 200


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        (Tally(requests=300), None),
        (Tally(requests=300, failed=6), None),  # two points, and by chance perhaps
        (Tally(requests=300, failed=30), "failures"),
        (Tally(requests=300, refused=60), "refusals"),
        (Tally(requests=300, rated=100, bad=60), "bad ratings"),
        (Tally(requests=30, failed=30), None),  # too few to judge
        (Tally(requests=300, paid=300, cost_nusd=300 * 130, cost_squares=300 * 130**2), "cost"),
        (Tally(requests=300, paid=300, cost_nusd=300 * 110, cost_squares=300 * 110**2), None),
    ],
)
def test_only_what_is_surely_worse_than_the_bounds_ends_a_canary(
    canary: Tally, why: str | None
) -> None:
    main = Tally(
        requests=1_000, failed=5, refused=10, rated=200, bad=40, paid=900, cost_nusd=90_000,
        cost_squares=9_000_000,
    )  # fmt: skip
    found = worse(main, canary, CanaryConfig(share=0.1))
    assert (found is None) == (why is None)
    assert found is None or found.startswith(why or "")
