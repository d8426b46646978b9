"""A fault of our own, wherever it strikes: the hold ends, the record is kept, the caller is told."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from support.dialects import running_dialects
from support.upstream import Upstream
from support.validator import HELLO, Running
from support.wires import message, message_events, streaming
from waypost.shared.records import fate_of
from waypost.validator.dialects.adapter import Passthrough
from waypost.validator.manifest.active import ActiveManifest
from waypost.validator.pipeline.attempt import ProviderAttempt
from waypost.validator.pipeline.exchange import Exchange as Request
from waypost.validator.services import Services

pytestmark = pytest.mark.anyio

STREAM = {**HELLO, "stream": True}
SETTLING = import_module("waypost.validator.pipeline.settle")


def fault(*_: object, **__: object) -> NoReturn:
    raise KeyError("a field that is not there")


@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (SETTLING, "charge_for"),
        (ActiveManifest, "unrouted_price"),
        (Services, "with_shadow"),
        (Services, "with_prompt"),
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
            call.receipt = lambda: fault(faults.pop())
        else:
            call.receipt = None
        await write(call, *args, **named)

    monkeypatch.setattr(Request, "start", start)
    response = await validator.chat(body)

    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    record = await validator.record(response)
    assert record.cost_nusd > 0
    assert await validator.spent() == (record.cost_nusd, 0)


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
