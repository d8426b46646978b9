"""What can go wrong with a provider: what the caller sees, what is charged, what the record says.

Each fault happens on a real socket, to an answer in one piece and to a stream, once with nowhere
else to go and once with another provider to fall back to. Waits are short by configuration.
"""

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.upstream import (
    DONE,
    Behaviour,
    Exchange,
    Upstream,
    answering,
    completion,
    event,
    failing,
    hanging,
    resetting,
    running_upstream,
    usage_event,
)
from support.validator import HELLO, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route
from waypost.shared.decision.costs import cost_bound_nusd

pytestmark = pytest.mark.anyio

TIMEOUT_S = 0.25
SSE = b"content-type: text/event-stream\r\n"

UNAVAILABLE = (502, "upstream_unavailable")
TIMED_OUT = (504, "upstream_timeout")
LIMITED = (503, "upstream_rate_limited")


def raw(*parts: bytes, apart_s: float = 0.0, then: str = "stay") -> Behaviour:
    """Send these bytes, and then stay silent, end the connection, or break it."""

    async def behave(exchange: Exchange) -> None:
        for part in parts:
            await exchange.send(part)
            await asyncio.sleep(apart_s)
        if then == "stay":
            await hanging(exchange)
        elif then == "end":
            exchange.close()
        else:
            exchange.reset()

    return behave


def both(whole: Behaviour, streamed: Behaviour) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await (streamed if exchange.seen.json.get("stream") else whole)(exchange)

    return behave


def head(length: int | None = None, extra: bytes = b"", *, kind: bytes = b"") -> bytes:
    lines = kind or b"content-type: application/json\r\n"
    if length is not None:
        lines += b"content-length: %d\r\n" % length
    return b"HTTP/1.1 200 OK\r\n" + lines + extra + b"\r\n"


def singly(data: bytes) -> tuple[bytes, ...]:
    return tuple(bytes([byte]) for byte in data)


async def gzipped(exchange: Exchange) -> None:
    body = gzip.compress(completion())
    if exchange.seen.json.get("stream"):
        stream = gzip.compress(EVENTS)
        await exchange.send(head(len(stream), b"content-encoding: gzip\r\n", kind=SSE) + stream)
    else:
        await exchange.respond(200, body, extra="content-encoding: gzip\r\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


ANSWER = completion()
EVENTS = event("Four.") + DONE
GZIPPED = gzip.compress(ANSWER)
CHUNKED = b"transfer-encoding: chunked\r\n"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and what is made of it.

    Attributes:
        is_free: the provider was sent nothing, or refused: it cannot charge for it.
    """

    behave: Behaviour = field(default_factory=answering)
    outcome: str = "server_error"
    told: tuple[int, str] = UNAVAILABLE
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    is_free: bool = False


FAULTS = {
    "refuses": Fault(outcome="connect_error", settings={"base_url": "closed"}, is_free=True),
    "has no name": Fault(
        outcome="connect_error",
        settings={"base_url": "http://nobody.invalid/v1"},
        is_free=True,
    ),
    "speaks no TLS": Fault(outcome="connect_error", settings={"base_url": "tls"}, is_free=True),
    "resets": Fault(resetting),
    "ends before the head": Fault(raw(b"HTTP/1.1 2", then="end")),
    "hangs before the head": Fault(hanging, "timeout", TIMED_OUT),
    "hangs after the head": Fault(
        both(raw(head(100)), raw(head(None, CHUNKED, kind=SSE))), "timeout", TIMED_OUT
    ),
    "trickles": Fault(
        both(
            raw(head(len(ANSWER)), *singly(ANSWER), apart_s=0.02),
            raw(head(10_000, kind=SSE), *singly(event("word " * 50)), apart_s=0.02),
        ),
        "timeout",
        TIMED_OUT,
    ),
    "limits our rate": Fault(
        failing(429, extra="retry-after: 30\r\n"), "rate_limited", LIMITED, is_free=True
    ),
    "is overloaded": Fault(failing(503), is_free=True),
    "refuses our key": Fault(failing(401), "key_refused", is_free=True),
    "sends less than it says": Fault(
        both(
            raw(head(len(ANSWER) + 9), ANSWER, then="end"),
            raw(head(900, kind=SSE), b'data: {"half', then="end"),
        )
    ),
    "sends more than it says": Fault(
        both(raw(head(len(ANSWER) - 9), ANSWER), raw(head(9, kind=SSE), event("four"))),
        "bad_response",
    ),
    "sends a page": Fault(
        both(
            raw(head(6), b"<html>"),
            raw(head(24, kind=b"content-type: text/html\r\n"), b"<html>not a stream</html>"),
        ),
        "bad_response",
        is_free=True,
    ),
    "sends no JSON": Fault(both(raw(head(4), b"four"), raw(head(4), b"four")), "bad_response"),
    "sends no HTTP": Fault(raw(b"220 mail.example ESMTP\r\n"), "bad_response"),
    "compresses though asked not to": Fault(gzipped, "bad_response"),
    "says gzip and sends something else": Fault(
        both(
            raw(head(len(GZIPPED), b"content-encoding: gzip\r\n") + GZIPPED[::-1]),
            raw(head(None, CHUNKED + b"content-encoding: gzip\r\n", kind=SSE) + chunk(EVENTS)),
        ),
        "bad_response",
    ),
    "compresses and does not say so": Fault(
        both(
            raw(head(len(GZIPPED)) + GZIPPED),
            raw(head(len(GZIPPED), kind=SSE) + GZIPPED, then="end"),
        ),
        "bad_response",
    ),
    "sends an endless head": Fault(raw(head()[:-2] + b"x: " + b"y" * 70_000), "bad_response"),
    "breaks a chunk": Fault(
        raw(head(None, CHUNKED, kind=SSE) + b"zz\r\n"),
        "bad_response",
    ),
}


def policy() -> Policy:
    return a_policy(
        models=(a_model("first"), a_model("second", provider="medcloud", cents_in=150)),
        routes=(Route(name="default", models=("first",), fallback=("second",)),),
        last_resort=(),
    )


def faulty(fault: Fault, closed_port: int, open_port: int) -> Callable[[dict[str, Any]], None]:
    addresses = {
        "closed": f"http://127.0.0.1:{closed_port}/v1",
        "tls": f"https://127.0.0.1:{open_port}/v1",
    }

    def change(providers: dict[str, Any]) -> None:
        settings = dict(fault.settings)
        if "base_url" in settings:
            settings["base_url"] = addresses.get(settings["base_url"], settings["base_url"])
        providers["acme"] |= {"timeout_s": TIMEOUT_S, "connect_timeout_s": TIMEOUT_S, **settings}

    return change


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_provider_that(
    name: str, stream: bool, tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    fault = FAULTS[name]
    acme.behave = fault.behave
    async with running_upstream() as gone:
        pass
    body = {**HELLO, "stream": stream}
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=policy(),
        change=faulty(fault, gone.port, acme.port),
    ) as validator:
        # With somewhere else to go: an answer, paid for at the price of who gave it, and what
        # the first may charge for although it never answered.
        served = await validator.chat(body)
        record = await validator.record(served)
        assert served.status_code == 200
        assert "Four." in served.text
        assert [(one.model, one.outcome) for one in record.attempts] == [
            ("first", fault.outcome),
            ("second", "ok"),
        ]
        assert record.facts is not None
        lost = 0 if fault.is_free else cost_bound_nusd(policy().models[0], record.facts)
        assert record.unconfirmed_nusd == lost
        assert record.cost_nusd == lost + 20 * 1_500 + 7 * 600
        assert await validator.settled() == (record.cost_nusd, 0)

        # With nowhere: a clear error, and the same loss.
        told = await validator.chat(body, models=("first",))
        refused = await validator.record(told)
        if fault.told == LIMITED:  # while its key rests it is not even asked
            assert (told.status_code, refused.attempts) == (503, ())
        else:
            assert (told.status_code, told.json()["error"]["code"]) == fault.told
            assert [one.outcome for one in refused.attempts] == [fault.outcome]
        assert (refused.verdict, refused.cost_nusd) == ("refused", lost)
        assert ("What the attempts may have cost is charged" in told.text) == bool(lost)
        assert await validator.settled() == (record.cost_nusd + lost, 0)


# ── in the middle of a stream ──────────────────────────────────────────────────────────────────

BEGUN = head(None, CHUNKED, kind=SSE)


@pytest.mark.parametrize(
    "behave",
    [
        raw(BEGUN + chunk(event("half an")), then="end"),
        raw(BEGUN + chunk(event("half an")), apart_s=0.05, then="break"),
        raw(BEGUN + chunk(event("half an")) + b"0\r\n\r\n"),
        raw(BEGUN + chunk(event("half an"))),
        raw(BEGUN + chunk(event("half an")), b"zz\r\n", apart_s=0.1),
        raw(BEGUN + chunk(event("half an") + b'data: {"cho') + b"0\r\n\r\n"),
    ],
    ids=["ends", "resets", "truncates", "hangs", "breaks a chunk", "truncates an event"],
)
async def test_a_provider_that_in_the_middle_of_a_stream(
    behave: Behaviour, tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = behave
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": medcloud},
        policy=policy(),
        change=faulty(Fault(), 0, 0),
    ) as validator:
        response = await validator.chat({**HELLO, "stream": True})
        record = await validator.record(response)
        spent = await validator.settled()

    *answer, last, rest = response.text.split("\n\n")
    assert (len(answer), rest) == (1, "")
    assert '"code":"upstream_cut_short"' in last
    assert [one.outcome for one in record.attempts] == ["cut_short"]
    facts = record.facts
    assert facts is not None
    assert record.cost_nusd == facts.measured.max_input_tokens * 150 + len("half an") * 600
    assert spent == (record.cost_nusd, 0)
    assert not medcloud.seen


async def test_a_provider_that_lingers_after_the_end_of_a_stream_gave_an_answer(
    tmp_path: Path, acme: Upstream
) -> None:
    acme.behave = raw(BEGUN + chunk(event("Four.") + usage_event() + DONE))
    async with running_validator(
        tmp_path, {"acme": acme}, change=faulty(Fault(), 0, 0)
    ) as validator:
        record = await validator.record(await validator.chat({**HELLO, "stream": True}))

    assert [one.outcome for one in record.attempts] == ["ok"]
    assert record.cost_nusd == 20 * 150 + 7 * 600


# ── faults that last ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("behave", "asked_at_most"),
    [
        # The key rests after the first.
        (failing(429, extra="retry-after: 30\r\n"), 1),
        # The breaker opens after five in a row, one retry in between each.
        (failing(500), 6),
        (resetting, 6),
    ],
)
async def test_a_storm_costs_no_caller_anything_and_the_provider_is_soon_left_alone(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, behave: Behaviour, asked_at_most: int
) -> None:
    def one_retry(providers: dict[str, Any]) -> None:
        providers["acme"]["retries"] = 1

    acme.behave = behave
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=policy(), change=one_retry
    ) as validator:
        statuses = [(await validator.chat()).status_code for _ in range(20)]

    assert set(statuses) == {200}
    assert len(acme.seen) <= asked_at_most


async def test_a_provider_that_flaps_is_rested_by_its_rate_of_failures(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    turns = iter(range(10_000))

    async def flapping(exchange: Exchange) -> None:
        await (answering() if next(turns) % 2 else failing(500))(exchange)

    acme.behave = flapping
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=policy()
    ) as validator:
        statuses = [(await validator.chat()).status_code for _ in range(40)]
        opened = validator.services.upstreams["acme"].opened

    assert set(statuses) == {200}
    assert len(acme.seen) == 21  # never many in a row, but half of more than twenty
    assert opened
