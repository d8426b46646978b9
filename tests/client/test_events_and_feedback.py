"""What a client tells the app of itself, and the validator of an answer."""

import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import openai
import pytest
from anyio import to_thread
from msgspec import structs

from support.loopback import asgi, dead_origin, serving
from support.upstream import running_upstream
from support.validator import Running, running_validator
from support.worlds import a_policy
from waypost.client import (
    Answered,
    AsyncWaypost,
    Event,
    FailedOver,
    InvalidRequestError,
    Refreshed,
    UpstreamError,
    Waypost,
    decision_id,
)
from waypost.client.testing import FakeValidator, StaticManifest, static_waypost, unsigned_token
from waypost.shared.contracts import Endpoint
from waypost.shared.errors import TrustError

HELLO = {"model": "auto", "messages": [{"role": "user", "content": "A secret question"}]}

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# ── events ─────────────────────────────────────────────────────────────────────────────────────


def test_an_app_hears_of_answers_refreshes_and_failovers() -> None:
    events: list[Event] = []
    with serving(asgi(FakeValidator(a_policy()))) as alive, dead_origin() as dead:
        endpoints = tuple(
            Endpoint(id=url, url=url + "/v1", region=region)
            for url, region in ((dead, "eu"), (alive, "us"))
        )
        manifest = StaticManifest(a_policy(endpoints=endpoints))
        wp = Waypost(
            token=unsigned_token(region="eu"),
            manifest=manifest,
            refresh_interval_s=None,
            on_event=events.append,
        )
        wp._core._raced_s = float("inf")  # no race: the dead one is found out by trying
        wp.refresh()
        manifest.last_error = TrustError("", code="expired")
        wp.refresh()
        with wp.http_client() as http:
            http.post(f"{wp.base_url}/chat/completions", json=HELLO)
    assert [
        structs.replace(event, expires_in_s=None, expires_role=None) for event in events[:2]
    ] == [
        Refreshed(manifest_version=42),
        Refreshed(manifest_version=42, error="expired"),
    ]
    failed, answered = events[2:]
    assert isinstance(failed, FailedOver)
    assert (failed.endpoint, failed.retries) == (dead, True)
    assert isinstance(answered, Answered)
    assert (answered.status, answered.model, answered.verdict) == (200, "small", "accepted")
    assert answered.decision_id == "fake-1"


def test_events_hold_no_prompt_and_no_token() -> None:
    events: list[Event] = []
    validator = FakeValidator(a_policy())
    with static_waypost(a_policy(), on_event=events.append) as wp:
        with wp.http_client(transport=validator.transport()) as http:
            http.post(f"{wp.base_url}/chat/completions", json=HELLO)
        token = wp._tokens.get()
    assert events
    assert "secret" not in repr(events)
    assert token is not None
    assert token not in repr(events)


def test_a_hook_that_fails_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    def hook(event: Event, /) -> None:
        raise ZeroDivisionError

    with static_waypost(a_policy(), on_event=hook) as wp, caplog.at_level(logging.ERROR):
        assert wp.refresh()
    assert "hook" in caplog.text


# ── feedback ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def validator(tmp_path: Path) -> AsyncGenerator[Running]:
    async with (
        running_upstream() as upstream,
        running_validator(tmp_path, {"acme": upstream, "medcloud": upstream}) as running,
    ):
        yield running


async def rated(validator: Running, decision: str) -> tuple[str, str | None]:
    for _ in range(500):  # records are written off the request's path
        record = await validator.services.store.get(decision)
        if record is not None and record.feedback is not None:
            return record.feedback.rating, record.feedback.cause
        await anyio.sleep(0.01)
    raise AssertionError("no feedback was kept")


async def test_feedback_reaches_the_record_of_the_answer(validator: Running) -> None:
    url = str(validator.client.base_url)
    awp = AsyncWaypost(
        token=validator.headers()["Authorization"].removeprefix("Bearer "),
        manifest=StaticManifest(a_policy()),
        base_url=url,
        refresh_interval_s=None,
    )
    async with awp, awp.httpx2_client() as http:
        client = openai.AsyncOpenAI(base_url=awp.base_url, api_key="unused", http_client=http)
        raw = await client.chat.completions.with_raw_response.create(
            model="auto", messages=[{"role": "user", "content": "Hello"}]
        )
        found = decision_id(raw.headers)
        assert found is not None
        await validator.record_of(found)
        await awp.feedback(found, "bad", cause="incomplete")
        assert await rated(validator, found) == ("bad", "incomplete")

        with pytest.raises(InvalidRequestError) as refused:
            await awp.feedback("nobody-s", "good")
    assert refused.value.code == "decision_not_found"


async def test_feedback_is_sent_from_blocking_programs_too(validator: Running) -> None:
    wp = Waypost(
        token=validator.headers()["Authorization"].removeprefix("Bearer "),
        manifest=StaticManifest(a_policy()),
        base_url=str(validator.client.base_url),
        refresh_interval_s=None,
    )
    answer = await validator.chat()
    found = decision_id(answer.headers)
    assert found is not None
    await validator.record_of(found)
    await to_thread.run_sync(lambda: wp.feedback(found, "good"))
    assert await rated(validator, found) == ("good", None)


def test_feedback_that_nobody_takes_says_so() -> None:
    with dead_origin() as dead:
        wp = static_waypost(a_policy(), base_url=dead)
        with pytest.raises(UpstreamError) as failed:
            wp.feedback("1", "good")
    assert failed.value.code == "validator_unreachable"


@pytest.mark.parametrize("said", [None, "", '"""', "verdict=accepted", "id=7"])
def test_an_answer_without_a_decision_has_no_id(said: str | None) -> None:
    assert decision_id({} if said is None else {"Waypost-Decision": said}) is None
