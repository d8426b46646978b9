"""Providers that fail, and what the caller, the ledger and the record see of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from support.upstream import (
    Behaviour,
    Exchange,
    Upstream,
    answering,
    event,
    failing,
    hanging,
    resetting,
    running_upstream,
)
from support.validator import HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route, SpendLimit
from waypost.shared.records import fate_of
from waypost.shared.wire.headers import parse_decision
from waypost.validator.upstream.breaker import JITTER, BreakerRules

pytestmark = pytest.mark.anyio

FAILURES = BreakerRules().failures


def two_models(**changes: object) -> Policy:
    """``first`` at acme, and ``second`` at medcloud, ten times as dear, to fall back to."""
    return a_policy(
        models=(
            a_model("first", provider="acme"),
            a_model("second", provider="medcloud", cents_in=150, cents_out=600, **changes),
        ),
        routes=(Route(name="default", models=("first",), fallback=("second",)),),
        last_resort=(),
    )


async def nonsense(exchange: Exchange) -> None:
    await exchange.respond(200, b"not an answer", content_type="text/plain")


async def redirecting(exchange: Exchange) -> None:
    elsewhere = "location: http://169.254.169.254/latest/meta-data\r\n"
    await exchange.respond(307, b"", extra=elsewhere)


@pytest.mark.parametrize(
    ("behave", "outcome", "status"),
    [
        (failing(500), "server_error", 500),
        (failing(503), "server_error", 503),
        (failing(429, extra="retry-after: 1\r\n"), "rate_limited", 429),
        (failing(401), "key_refused", 401),
        (failing(404), "api_unsupported", 404),
        (resetting, "server_error", None),
        (nonsense, "bad_response", 200),
        (redirecting, "bad_response", 307),
    ],
)
async def test_a_provider_that_fails_is_replaced_by_the_next_of_the_chain(
    tmp_path: Path,
    acme: Upstream,
    medcloud: Upstream,
    behave: Behaviour,
    outcome: str,
    status: int | None,
) -> None:
    acme.behave = behave
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=two_models()
    ) as validator:
        response = await validator.chat()
        record = await validator.record(response)
        spent = await validator.spent()

    assert response.status_code == 200
    assert parse_decision(response.headers["waypost-decision"])["model"] == "second"
    first, second = record.attempts
    assert (first.outcome, first.http_status) == (outcome, status)
    assert (second.model, second.outcome) == ("second", "ok")
    # Paid for at the price of the model that answered, out of a hold that covered it; and what
    # may have been served without a refusal, by another.
    assert bool(record.unconfirmed_nusd) == (status in (None, 200))
    assert record.cost_nusd == 20 * 1_500 + 7 * 6_000 + record.unconfirmed_nusd
    assert record.cost_nusd <= record.reserved_nusd
    assert spent == (record.cost_nusd, 0)


async def test_a_provider_that_is_not_there_is_replaced(tmp_path: Path, medcloud: Upstream) -> None:
    async with running_upstream() as gone:
        pass
    async with running_validator(
        tmp_path, {"acme": gone, "medcloud": medcloud}, policy=two_models()
    ) as validator:
        record = await validator.record(await validator.chat())

    assert [attempt.outcome for attempt in record.attempts] == ["connect_error", "ok"]


async def test_a_provider_that_does_not_answer_in_time_is_replaced(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    def hurry(providers: dict[str, Any]) -> None:
        providers["acme"]["timeout_s"] = 0.2

    acme.behave = hanging
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=two_models(), change=hurry
    ) as validator:
        whole = await validator.record(await validator.chat())
        streamed = await validator.record(await validator.chat({**HELLO, "stream": True}))

    for record in (whole, streamed):
        assert [attempt.outcome for attempt in record.attempts] == ["timeout", "ok"]


async def test_when_nobody_answers_nothing_is_charged(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = medcloud.behave = failing(500)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=two_models()
    ) as validator:
        response = await validator.chat()
        record = await validator.record(response)
        spent = await validator.spent()

    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_unavailable"
    assert (record.verdict, record.reason) == ("refused", "upstream_unavailable")
    assert len(record.attempts) == 2
    assert spent == (0, 0)


async def test_when_all_are_too_slow_the_status_says_so(tmp_path: Path, acme: Upstream) -> None:
    def hurry(providers: dict[str, Any]) -> None:
        providers["acme"]["timeout_s"] = 0.1

    acme.behave = hanging
    async with running_validator(tmp_path, {"acme": acme}, change=hurry) as validator:
        response = await validator.chat(models=("small",))

    assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")


async def test_an_outage_never_sends_patient_data_to_who_may_not_see_it(
    validator: Running, acme: Upstream, medcloud: Upstream
) -> None:
    medcloud.behave = failing(500)

    response = await validator.chat(headers={"Waypost-Facts": 'data="phi"'})

    assert response.status_code == 502
    assert not acme.seen


async def test_an_outage_does_not_open_models_that_the_token_leaves_out(
    validator: Running, acme: Upstream
) -> None:
    acme.behave = failing(500)

    await validator.chat(models=("small",))

    assert [seen.json["model"] for seen in acme.seen] == ["acme-small"]


async def test_a_fallback_that_the_account_cannot_pay_for_is_not_tried(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    limits = (SpendLimit(window="day", limit_nusd=100_000),)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=two_models()
    ) as validator:
        response = await validator.chat({**HELLO, "max_tokens": 100}, limits=limits)
        await validator.record(response)
        spent = await validator.spent()

    assert response.status_code == 502
    assert not medcloud.seen
    assert spent == (0, 0)


async def test_what_the_provider_rejects_reaches_the_caller_free_of_charge(
    validator: Running, acme: Upstream
) -> None:
    acme.behave = failing(400, code="bad_tool")

    response = await validator.chat()

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_tool"
    record = await validator.record(response)
    assert [attempt.outcome for attempt in record.attempts] == ["client_error"]
    assert (record.cost_nusd, await validator.spent()) == (0, (0, 0))


async def test_a_rejection_without_reason_still_has_the_envelope(
    validator: Running, acme: Upstream
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.respond(422, b"no", content_type="text/plain")

    acme.behave = behave
    response = await validator.chat()

    assert (response.status_code, response.json()["error"]["code"]) == (422, "upstream_rejected")


async def test_a_provider_that_keeps_failing_is_given_a_rest(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=two_models()
    ) as validator:
        for _ in range(FAILURES):
            await validator.chat({**HELLO, "model": "first"})
        response = await validator.chat({**HELLO, "model": "first"})

    assert len(acme.seen) == FAILURES
    decision = parse_decision(response.headers["waypost-decision"])
    assert (decision["verdict"], decision["reason"]) == ("overridden", "out_of_service")


async def test_while_a_probe_streams_its_answer_the_others_are_served(
    tmp_path: Path, acme: Upstream
) -> None:
    def resting_briefly(providers: dict[str, Any]) -> None:
        providers["acme"]["breaker"] = {"failures": 1, "first_rest_s": 0.01}

    ends = asyncio.Event()

    async def streaming_on(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("It goes on"))
        await ends.wait()

    acme.behave = failing(500)
    async with running_validator(tmp_path, {"acme": acme}, change=resting_briefly) as validator:
        await validator.chat(models=("small",))
        await asyncio.sleep(0.02)
        acme.behave = streaming_on
        async with validator.client.stream(
            "POST",
            "/v1/chat/completions",
            json={**HELLO, "stream": True},
            headers=validator.headers(models=("small",)),
        ) as probe:
            await anext(probe.aiter_lines())
            acme.behave = answering()
            response = await validator.chat(models=("small",))
            ends.set()

    assert response.status_code == 200


async def test_a_long_rest_is_kept_only_while_there_is_somewhere_else_to_go(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    def resting_long(providers: dict[str, Any]) -> None:
        providers["acme"]["breaker"] = {"failures": 1, "first_rest_s": 0.01, "last_rest_s": 300}

    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=two_models(), change=resting_long
    ) as validator:
        # It has failed for 164 s, and rests for as long from six seconds ago.
        breaker = validator.services.manifests.targets()["first"].breaker
        began = validator.services.monotonic() - 170
        for tries in range(15):
            at = began + 0.01 * (2**tries - 1)
            assert breaker.admit(at + 1e-6)
            breaker.failed(at, rng=0)
        assert breaker.rests_s(validator.services.monotonic()) > 100

        elsewhere = await validator.chat()
        still_rests = not breaker.is_closed
        nowhere_else = await validator.chat(models=("first",))

    assert (elsewhere.status_code, len(medcloud.seen)) == (200, 1)
    assert still_rests
    # The provider is back, which nobody would have found out for two minutes.
    assert (nowhere_else.status_code, len(acme.seen)) == (200, 1)


async def test_with_every_provider_at_rest_the_caller_is_told(
    tmp_path: Path, acme: Upstream
) -> None:
    acme.behave = failing(500)
    async with running_validator(tmp_path, {"acme": acme}) as validator:
        for _ in range(FAILURES):
            await validator.chat(models=("small",))
        response = await validator.chat(models=("small",))

    assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_service")


@pytest.mark.parametrize(
    ("behave", "longest_s"),
    [
        (failing(500), 1 + BreakerRules().first_rest_s * (1 + JITTER)),
        (failing(429, extra="retry-after: 50\r\n"), 51),
    ],
)
async def test_an_enforced_route_at_rest_is_an_outage_and_no_matter_of_rights(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, behave: Behaviour, longest_s: float
) -> None:
    acme.behave = behave
    policy = a_policy(
        models=two_models().models,
        routes=(Route(name="default", models=("first",), enforce=True),),
        last_resort=(),
    )
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=policy
    ) as validator:
        for _ in range(FAILURES):
            await validator.chat()
        response = await validator.chat()
        record = await validator.record(response)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_service")
    assert 1 <= int(response.headers["retry-after"]) <= longest_s
    assert fate_of(record) == "failed"
    assert not medcloud.seen


async def test_a_model_whose_provider_is_not_configured_is_never_chosen(
    tmp_path: Path, acme: Upstream
) -> None:
    async with running_validator(tmp_path, {"acme": acme}) as validator:
        response = await validator.chat(headers={"Waypost-Facts": 'data="phi"'})

    assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_service")
    assert "retry-after" not in response.headers
    assert not acme.seen


# ── what the provider sees ─────────────────────────────────────────────────────────────────────


async def test_the_provider_gets_our_key_and_nothing_of_the_callers(
    validator: Running, acme: Upstream
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await validator.chat(
        headers={"Cookie": "a=b", "X-Forwarded-For": "10.0.0.1", "traceparent": trace}
    )

    assert acme.seen[0].headers == {
        "accept": "*/*",
        "accept-encoding": "identity",
        "authorization": "Bearer sk-acme-secret",
        "content-length": acme.seen[0].headers["content-length"],
        "content-type": "application/json",
        "host": f"127.0.0.1:{acme.port}",
        "traceparent": trace,
        "user-agent": "waypost",
    }


async def test_all_of_the_body_but_model_and_bound_passes_as_it_came(
    validator: Running, acme: Upstream
) -> None:
    body = (
        b'{"model":"auto","messages":[{"role":"user","content":"\\u00fc \xc3\xbc",'
        b'"x":1.50e2}], "temperature": 0.70,"max_tokens":9,"unknown":{"b":[1, 2.0],"a":null}}'
    )

    await validator.chat(body)

    assert acme.seen[0].body == (
        b'{"model":"acme-small","messages":[{"role":"user","content":"\\u00fc \xc3\xbc",'
        b'"x":1.50e2}],"temperature":0.70,"unknown":{"b":[1, 2.0],"a":null},"max_tokens":9}'
    )


async def test_the_answer_passes_as_it_came(validator: Running, acme: Upstream) -> None:
    answer = b'{ "choices": [], "usage": {"prompt_tokens": 1}, "odd": 1.50e2 }'

    async def behave(exchange: Exchange) -> None:
        await exchange.respond(200, answer)

    acme.behave = behave
    assert (await validator.chat()).content == answer


async def test_a_bound_is_sent_in_the_field_that_the_provider_knows(
    tmp_path: Path, acme: Upstream
) -> None:
    def newer(providers: dict[str, Any]) -> None:
        providers["acme"]["max_tokens_field"] = "max_completion_tokens"

    async with running_validator(tmp_path, {"acme": acme}, change=newer) as validator:
        await validator.chat({**HELLO, "max_tokens": 5})

    sent = acme.seen[0].json
    assert (sent.get("max_tokens"), sent["max_completion_tokens"]) == (None, 5)


async def test_a_provider_that_overcharges_is_believed_up_to_what_was_held(
    validator: Running, acme: Upstream
) -> None:
    acme.behave = answering(usage={"prompt_tokens": 10_000, "completion_tokens": 50_000})
    limits = (SpendLimit(window="day", limit_nusd=3_000_000),)

    record = await validator.record(await validator.chat(limits=limits))

    assert record.cost_nusd == record.reserved_nusd == record.unconfirmed_nusd > 0
    assert await validator.settled() == (record.cost_nusd, 0)


async def test_answers_under_way_do_not_wait_for_each_other(
    validator: Running, acme: Upstream
) -> None:
    together = asyncio.Barrier(20)

    async def behave(exchange: Exchange) -> None:
        async with asyncio.timeout(10):
            await together.wait()
        await answering()(exchange)

    acme.behave = behave
    responses = await asyncio.gather(*(validator.chat(sub=f"user-{n}") for n in range(20)))

    assert {response.status_code for response in responses} == {200}
    assert len({json.dumps(response.headers["x-request-id"]) for response in responses}) == 20
