"""A fault of our own, wherever it strikes: the hold ends, the record is kept, the caller is told."""

import asyncio
import json
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from support.dialects import running_dialects
from support.upstream import Exchange as Asked
from support.upstream import Upstream
from support.validator import HELLO, Running
from support.wires import message, message_events, streaming
from waypost.shared.records import DecisionRecord, fate_of
from waypost.validator.dialects.adapter import Passthrough
from waypost.validator.manifest.active import ActiveManifest
from waypost.validator.manifest.canary import Candidate
from waypost.validator.pipeline import serve
from waypost.validator.pipeline.attempt import ProviderAttempt
from waypost.validator.pipeline.exchange import Exchange as Request
from waypost.validator.records.recorder import Recorder
from waypost.validator.routes.hot_path import new_exchange

pytestmark = pytest.mark.anyio

STREAM = {**HELLO, "stream": True}
PIPELINE = import_module("waypost.validator.pipeline")
SETTLING = import_module("waypost.validator.pipeline.settle")


def fault(*_: object, **__: object) -> NoReturn:
    raise KeyError("a field that is not there")


@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (SETTLING, "charge_for"),
        (ActiveManifest, "unrouted_price"),
        (Candidate, "with_shadow"),
        (Recorder, "with_prompt"),
    ],
)
async def test_a_fault_after_the_answer_loses_neither_answer_nor_record_nor_money(
    owner: Any,  # noqa: ANN401 - a module or a class
    name: str,
    body: dict[str, Any],
    validator: Running,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, fault)

    response = await validator.chat(body)
    record = await validator.record(response)

    assert (response.status_code, record.http_status, fate_of(record)) == (200, 200, "answered")
    assert await validator.spent() == (record.cost_nusd, 0)
    if name == "charge_for":
        assert record.unconfirmed_nusd == record.cost_nusd == record.reserved_nusd
    else:
        assert record.cost_nusd == 20 * 150 + 7 * 600


async def test_a_ledger_that_fails_in_a_way_of_its_own_loses_no_record(
    validator: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("settle", "release", "free_key"):
        monkeypatch.setattr(validator.services.ledger, name, fault)

    record = await validator.record(await validator.chat())

    assert (record.http_status, record.cost_nusd) == (200, 20 * 150 + 7 * 600)


@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["whole", "streamed"])
async def test_a_fault_before_anything_is_sent_costs_nothing(
    body: dict[str, Any], validator: Running, acme: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Passthrough, "request", fault)
    for _ in range(5):  # as many failures of a provider's own would rest it
        await validator.chat(body)
    response = await validator.chat(body)

    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    record = await validator.record(response)
    assert (record.reason, record.cost_nusd) == ("internal_error", 0)
    assert await validator.spent() == (0, 0)
    monkeypatch.undo()
    assert (await validator.chat(body)).status_code == 200


@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["whole", "streamed"])
async def test_a_head_that_cannot_be_written_is_an_error_and_what_was_used_is_paid(
    body: dict[str, Any], validator: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, faults = Request.start, [1]

    async def start(call: Request, *args: Any, **named: Any) -> None:  # noqa: ANN401 - as it comes
        if faults:
            call.sign = lambda _: fault(faults.pop())
        else:
            call.sign = None
        await write(call, *args, **named)

    monkeypatch.setattr(Request, "start", start)
    response = await validator.chat(body)

    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    record = await validator.record(response)
    assert record.cost_nusd > 0
    assert await validator.spent() == (record.cost_nusd, 0)


async def test_a_fault_in_what_counts_loses_neither_answer_nor_record(
    validator: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = _Observed()
    monkeypatch.setattr(validator.services.recorder, "_observers", (fault, candidate))

    response = await validator.chat()

    assert response.status_code == 200
    record = await validator.record(response)
    assert candidate.seen == [record.id], "who comes after the one that fails is shown it too"


class _Observed:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, record: DecisionRecord) -> None:
        self.seen.append(record.id)


@pytest.mark.parametrize("name", ["reserve", "Failover"])
async def test_what_is_held_is_given_back_if_it_cannot_be_spent(
    name: str, validator: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    well = getattr(PIPELINE, name)

    async def reserve(*args: Any) -> NoReturn:  # noqa: ANN401 - as it comes
        await well(*args)
        fault()

    monkeypatch.setattr(PIPELINE, name, reserve if name == "reserve" else fault)

    response = await validator.chat()

    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert (await validator.record(response)).cost_nusd == 0
    assert await validator.spent() == (0, 0)


@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["whole", "streamed"])
async def test_a_request_that_is_cancelled_from_outside_is_recorded_and_holds_nothing(
    body: dict[str, Any], validator: Running, acme: Upstream
) -> None:
    asked = asyncio.Event()

    async def never(exchange: Asked) -> None:
        asked.set()
        await asyncio.Event().wait()

    acme.behave = never
    exchange = new_exchange(
        validator.services, *_posted(body, validator.bearer()), "chat.completions"
    )
    task = asyncio.create_task(serve(validator.services, exchange))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    record = await validator.record_of(exchange.id)
    assert (record.verdict, record.reason, record.http_status) == ("refused", "stopping", 503)
    assert await validator.spent() == (record.cost_nusd, 0)


def _posted(body: dict[str, Any], bearer: str) -> tuple[Any, Any, Any]:
    """Return scope, receive and send of a request whose caller goes on waiting."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        return await asyncio.Event().wait() and {}

    async def send(_: Any) -> None:  # noqa: ANN401 - an ASGI message
        pass

    headers = [(b"authorization", bearer.encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    return scope, receive, send


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses"])
async def test_a_fault_in_the_middle_of_a_stream_ends_it_with_an_error_of_the_api(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"input": "Hi"} if path == "responses" else {**HELLO, "max_tokens": 50}
    async with running_dialects(tmp_path) as world:
        world.anthropic.behave = streaming(message_events(message("Half an ans"))[:5])
        monkeypatch.setattr(ProviderAttempt, "_how_it_ended", _after_the_first("_how_it_ended"))
        response = await world.validator.client.post(
            f"/v1/{path}",
            json={**content, "model": "claude", "stream": True},
            headers=world.validator.headers(),
        )
        record = await world.validator.record(response)
        spent = await world.validator.settled()

    last = response.text.rstrip().rpartition("\n\n")[2]
    told = json.loads(last.partition("data: ")[2])
    assert "inside the validator" in last
    assert told.get("type") == {"messages": "error", "responses": "response.failed"}.get(path)
    assert 0 < record.cost_nusd < record.reserved_nusd, "what came is charged"
    assert (record.http_status, spent) == (500, (record.cost_nusd, 0))


def _after_the_first(name: str) -> Any:  # noqa: ANN401 - a method
    well, calls = getattr(ProviderAttempt, name), list[int]()

    def method(*args: Any, **named: Any) -> Any:  # noqa: ANN401 - as it comes
        calls.append(1)
        return well(*args, **named) if len(calls) == 1 else fault()

    return method
