"""Whose fault a failure is: the model's, the key's, the API's, or one caller's. Over real sockets."""

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
    running_upstream,
)
from support.validator import ENVIRONMENT, HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, Policy, Route
from waypost.validator.upstream.breaker import BreakerRules

pytestmark = pytest.mark.anyio

FAILURES = BreakerRules().failures
KEY = ENVIRONMENT["ACME_KEY"]


def first_then_second() -> Policy:
    return a_policy(
        models=(
            a_model("first", endpoints=ENDPOINTS),
            a_model("second", provider="medcloud", endpoints=ENDPOINTS),
        ),
        routes=(Route(name="default", models=("first",), fallback=("second",)),),
        data_classes={},
        last_resort=(),
    )


def saying(text: str) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}]}


def telling(status: int, body: bytes, *, content_type: str = "application/json") -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.respond(status, body, content_type=content_type)

    return behave


def poisoned(bad: Behaviour) -> Behaviour:
    """Fail for requests with the word in them, and answer all others."""

    async def behave(exchange: Exchange) -> None:
        await (bad if b"poison" in exchange.seen.body else answering())(exchange)

    return behave


# ── one account, one body ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_fails_for_one_account_rests_for_that_account_alone(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, streamed: bool
) -> None:
    acme.behave = poisoned(failing(500))
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        for count in range(2 * FAILURES):
            body = {**saying(f"poison {count}"), "stream": streamed}
            await validator.chat(body, account="mallory")
        asked_for_mallory = len(acme.seen)
        theirs = await validator.chat({**saying("fine"), "stream": streamed}, account="alice")
        own = await validator.chat({**saying("fine"), "stream": streamed}, account="mallory")

    assert asked_for_mallory == FAILURES
    assert 'model="first"' in theirs.headers["waypost-decision"]
    assert 'model="second"' in own.headers["waypost-decision"]


async def test_a_body_that_fails_again_and_again_rests_alone(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = poisoned(failing(500))
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        for _ in range(2 * FAILURES):
            await validator.chat(saying("poison"))
        asked = len(acme.seen)
        other = await validator.chat(saying("fine"))

    assert asked == FAILURES
    assert 'model="first"' in other.headers["waypost-decision"]


async def test_what_fails_for_two_accounts_rests_for_all(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        for count in range(FAILURES):
            await validator.chat(saying(f"{count}"), account=("alice", "bob")[count % 2])
        asked = len(acme.seen)
        third = await validator.chat(saying("hello"), account="carol")

    assert (asked, len(acme.seen)) == (FAILURES, FAILURES)
    assert 'model="second"' in third.headers["waypost-decision"]


async def test_a_refused_connection_speaks_for_everybody(
    tmp_path: Path, medcloud: Upstream
) -> None:
    async with running_upstream() as gone:
        pass
    async with running_validator(
        tmp_path, {"acme": gone, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        for _ in range(FAILURES):
            await validator.chat(saying("same"), account="alice")
        other = await validator.record(await validator.chat(saying("hello"), account="bob"))

    assert [attempt.model for attempt in other.attempts] == ["second"]


async def test_long_answers_in_one_piece_that_take_long_put_nothing_to_rest(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    def hurried(providers: dict[str, Any]) -> None:
        providers["acme"] |= {"timeout_s": 0.1, "breaker": {"failures": 2, "slow_after_s": 0.05}}

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await answering()(exchange)

    acme.behave = slow
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second(), change=hurried
    ) as validator:
        # 40 tokens at half of 60 a second are more than a second.
        for count in range(4):
            body = {**saying(f"write {count}"), "max_tokens": 40}
            served = await validator.record(await validator.chat(body))
            assert [(one.model, one.outcome) for one in served.attempts] == [("first", "ok")]
        acme.behave = hanging
        late = await validator.record(await validator.chat({**saying("x"), "max_tokens": 1}))

    # Asked for one word it is late as ever.
    assert [one.outcome for one in late.attempts] == ["timeout", "ok"]


async def test_short_deadlines_of_callers_put_nothing_to_rest(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = poisoned(hanging)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        for count in range(2 * FAILURES):
            await validator.chat(
                saying(f"poison {count}"),
                headers={"Waypost-Deadline-Ms": "30"},
                account=("alice", "bob")[count % 2],
            )
        answer = await validator.chat(saying("fine"), account="alice")

    assert 'model="first"' in answer.headers["waypost-decision"]


# ── an API that a provider does not have ───────────────────────────────────────────────────────

NO_SUCH_API = [
    telling(404, b'{"detail":"Not Found"}'),
    telling(404, b"404 page not found", content_type="text/plain"),
    telling(404, b""),
    telling(405, b'{"detail":"Method Not Allowed"}'),
    telling(404, b'{"error":{"message":"Invalid URL (POST /v1/responses)","type":"x"}}'),
    telling(404, b"<html><head><title>404 Not Found</title></head></html>"),
]


@pytest.mark.parametrize("refusal", NO_SUCH_API)
async def test_an_api_that_a_provider_does_not_have_is_translated_from_then_on(
    tmp_path: Path, acme: Upstream, refusal: Behaviour
) -> None:
    async def chat_alone(exchange: Exchange) -> None:
        await (answering() if exchange.seen.path.endswith("/chat/completions") else refusal)(
            exchange
        )

    acme.behave = chat_alone
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": acme}, policy=first_then_second()
    ) as validator:
        for _ in range(2 * FAILURES):
            answer = await validator.client.post(
                "/v1/responses",
                json={"model": "first", "input": "hi"},
                headers=validator.headers(),
            )
            assert answer.status_code == 200, answer.text
            assert 'model="first"' in answer.headers["waypost-decision"]
        chat = await validator.chat({**HELLO, "model": "first"})
        is_closed = validator.services.manifests.targets()["first"].breaker.is_closed

    assert [seen.path for seen in acme.seen].count("/v1/responses") == 1
    assert is_closed
    assert 'model="first"' in chat.headers["waypost-decision"]


async def test_an_api_that_nothing_stands_in_for_is_not_asked_again_and_asked_early_if_need_be(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async def ask(validator: Running, **wishes: Any) -> Any:  # noqa: ANN401
        return await validator.client.post(
            "/v1/embeddings",
            json={"model": "auto", "input": "hi"},
            headers=validator.headers(**wishes),
        )

    acme.behave = telling(404, b'{"detail":"Not Found"}')
    vectors: dict[str, Any] = {
        "object": "list",
        "data": [],
        "model": "m",
        "usage": {"prompt_tokens": 2},
    }
    medcloud.behave = telling(200, json.dumps(vectors).encode())
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        for _ in range(8):
            assert (await ask(validator)).status_code == 200
        asked = len(acme.seen)
        alone = await ask(validator, models=("first",))
        acme.behave = answering()
        chat = await validator.chat()

    assert asked == 1
    assert (alone.status_code, alone.json()["error"]["code"]) == (503, "out_of_service")
    assert int(alone.headers["retry-after"]) <= 6
    assert 'model="first"' in chat.headers["waypost-decision"]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"error":{"message":"The model `x` does not exist","code":"model_not_found"}}',
         "model_not_found"),
        (b'{"object":"error","message":"The model `x` does not exist.","code":404}',
         "model_not_found"),
        (b'{"type":"error","error":{"type":"not_found_error","message":"model: x"}}',
         "model_not_found"),
        (b'{"error":{"message":"model \\"x\\" not found, try pulling it first"}}',
         "model_not_found"),
        (b'{"error":{"message":"No endpoints found that support tool use. Try","code":404}}',
         "model_not_found"),
        (b'{"error":{"message":"No allowed providers are available for the selected","code":404}}',
         "model_not_found"),
        (b'{"error":{"message":"No such File object: file-abc123","param":"id"}}', "client_error"),
    ],
)  # fmt: skip
async def test_a_404_on_a_model_or_a_thing_says_nothing_of_the_api(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, body: bytes, outcome: str
) -> None:
    acme.behave = telling(404, body)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        record = await validator.record(await validator.chat())
        unspoken = validator.services.upstreams["acme"].unspoken

    assert record.attempts[0].outcome == outcome
    assert not unspoken


async def test_an_api_that_has_answered_is_not_taken_for_missing(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = poisoned(telling(404, b"nothing here", content_type="text/plain"))
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        await validator.chat(saying("fine"))
        odd = await validator.record(await validator.chat(saying("poison")))
        after = await validator.chat(saying("fine again"))

    assert [one.outcome for one in odd.attempts] == ["bad_response", "ok"]
    assert 'model="first"' in after.headers["waypost-decision"]


# ── the provider's own trouble ─────────────────────────────────────────────────────────────────

TROUBLES: list[tuple[int, Any]] = [
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message":
     "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing"}}),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message":
     "You have reached your specified API usage limits. You will regain access on 2026-12-01"}}),
    (400, {"type": "error", "error": {"type": "invalid_request_error", "message":
     "The long context beta is not yet available for this subscription."}}),
    (400, {"error": {"code": "billing_hard_limit_reached", "param": None,
                     "message": "Billing hard limit has been reached"}}),
    (429, {"error": {"code": "insufficient_quota", "type": "insufficient_quota",
                     "message": "You exceeded your current quota, please check your plan"}}),
    (402, {"error": {"message": "Insufficient Balance"}}),
    (400, [{"error": {"code": 400, "message": "API key expired. Please renew the API key.",
            "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}]),
    (400, {"error": {"code": 400, "message": "User location is not supported for the API use.",
                     "status": "FAILED_PRECONDITION"}}),
    (400, {"code": "Client specified an invalid argument",
           "error": "Incorrect API key provided: sk***et. You can obtain an API key"}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body"), TROUBLES)
async def test_the_operators_trouble_rests_the_key_and_is_told_to_nobody(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, status: int, body: object
) -> None:
    acme.behave = telling(status, json.dumps(body).encode())
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        served = await validator.record(await validator.chat())
        rests = validator.services.upstreams["acme"].keys.is_any_resting
        medcloud.behave = failing(500)
        alone = await validator.chat(saying("other"))

    assert [(one.model, one.outcome) for one in served.attempts] == [
        ("first", "key_refused"),
        ("second", "ok"),
    ]
    assert rests
    assert (alone.status_code, alone.json()["error"]["code"]) == (502, "upstream_unavailable")


async def test_an_id_that_is_too_long_is_no_prompt_that_is_too_long(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    message = (
        "Invalid 'messages[1].tool_calls[0].id': string too long. Expected a string with maximum"
        " length 40, but got a string with length 43 instead."
    )
    error = {"message": message, "code": "string_above_max_length", "param": "messages[1].id"}
    acme.behave = telling(400, json.dumps({"error": error}).encode())
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        response = await validator.chat()
        record = await validator.record(response)

    assert [one.outcome for one in record.attempts] == ["client_error"]
    assert response.json()["error"]["message"] == message


# ── what callers are told ──────────────────────────────────────────────────────────────────────

ENVELOPES: list[tuple[bytes, str]] = [
    (b'{"detail":"Bad tool."}', "Bad tool."),
    (
        b'{"detail":[{"loc":["body","messages",0,"role"],"msg":"Field required","input":"SECRET"}]}',
        "body.messages.0.role: Field required",
    ),
    (b'{"object":"error","message":"Bad tool.","code":400}', "Bad tool."),
    (b'[{"error":{"code":400,"message":"Bad tool.","status":"INVALID_ARGUMENT"}}]', "Bad tool."),
    (b'{"error":"Bad tool."}', "Bad tool."),
    (b'{"message":"Bad tool."}', "Bad tool."),
    (b'{"errors":["Bad tool.","Bad call."]}', "Bad tool.; Bad call."),
    (b'{"errors":[{"message":"Bad tool."}]}', "Bad tool."),
    (b"Bad tool.", "Bad tool."),
    (b"<html><head><title>Bad tool.</title></head><body>x</body></html>", "Bad tool."),
    (b"x" * 100_000, "x" * 1_998 + " …"),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
async def test_a_providers_words_survive_in_any_envelope_and_any_translation(
    tmp_path: Path, acme: Upstream, path: str, dialect: str
) -> None:
    def speaking(providers: dict[str, Any]) -> None:
        for settings in providers.values():
            settings["dialect"] = dialect

    asked = {
        "/v1/chat/completions": saying("hi"),
        "/v1/messages": {**saying("hi"), "max_tokens": 9},
        "/v1/responses": {"model": "auto", "input": "hi"},
    }[path]
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": acme}, policy=first_then_second(), change=speaking
    ) as validator:
        for body, message in ENVELOPES:
            acme.behave = telling(400, body)
            answer = await validator.client.post(path, json=asked, headers=validator.headers())
            assert answer.status_code == 400
            assert answer.json()["error"]["message"] == message, body[:80]
            assert "SECRET" not in answer.text


@pytest.mark.parametrize("shown", [KEY, "sk-acme-s", f"{KEY[:4]}*****{KEY[-2:]}", "sk***et"])
async def test_the_operators_keys_are_not_passed_on(
    tmp_path: Path, acme: Upstream, shown: str
) -> None:
    error = {"error": {"message": f"Not for {shown}, says {shown}.", "code": "odd"}}

    async def behave(exchange: Exchange) -> None:
        if not exchange.seen.json.get("stream"):
            await exchange.respond(400, json.dumps(error).encode())
            return
        await exchange.start_stream()
        await exchange.chunk(event("It begins"))
        await asyncio.sleep(0.05)  # or both are read at once, and that is no answer
        await exchange.chunk(b"data: " + json.dumps(error).encode() + b"\n\n")
        await exchange.end_stream()

    acme.behave = behave
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": acme}, policy=first_then_second()
    ) as validator:
        whole = await validator.chat()
        streamed = await validator.chat({**HELLO, "stream": True})
        translated = await validator.client.post(
            "/v1/messages",
            json={**saying("hi"), "max_tokens": 9, "stream": True},
            headers=validator.headers(),
        )
        record = await validator.record(whole)

    for text in (whole.text, streamed.text, translated.text):
        assert "Not for [key], says [key]." in text
        assert shown not in text
    assert shown not in repr(record)


# ── what only its maker can read ───────────────────────────────────────────────────────────────

REASONED: dict[str, Any] = {
    "model": "auto",
    "input": [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": "Hello."},
        {"role": "user", "content": "and now?"},
    ],
}
RESPONSE = json.dumps(
    {"id": "resp_1", "object": "response", "model": "m", "status": "completed", "output": [],
     "usage": {"input_tokens": 3, "output_tokens": 2}}
).encode()  # fmt: skip
FOREIGN = json.dumps(
    {"error": {"message": "The encrypted content gAAA could not be verified.",
               "type": "invalid_request_error", "code": "invalid_encrypted_content"}}
).encode()  # fmt: skip


def made_elsewhere(exchange_body: bytes) -> bool:
    return b"encrypted_content" in exchange_body


async def stranger(exchange: Exchange) -> None:
    """Cannot read what another has made."""
    if made_elsewhere(exchange.seen.body):
        await exchange.respond(400, FOREIGN)
    else:
        await exchange.respond(200, RESPONSE)


async def ask_reasoned(validator: Running, **headers: str) -> Any:  # noqa: ANN401
    return await validator.client.post(
        "/v1/responses", json=REASONED, headers={**validator.headers(), **headers}
    )


async def test_what_one_provider_cannot_read_goes_to_the_next_who_may_have_made_it(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave, medcloud.behave = stranger, telling(200, RESPONSE)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        record = await validator.record(await ask_reasoned(validator))

    assert [(one.model, one.outcome) for one in record.attempts] == [
        ("first", "foreign_state"),
        ("second", "ok"),
    ]
    assert made_elsewhere(medcloud.seen[0].body)


async def test_what_nobody_can_read_is_left_out_and_asked_once_more(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = medcloud.behave = stranger
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        answer = await ask_reasoned(validator)
        record = await validator.record(answer)

    assert answer.status_code == 200
    assert [(one.model, one.outcome) for one in record.attempts] == [
        ("first", "foreign_state"),
        ("second", "foreign_state"),
        ("first", "ok"),
    ]
    sent = acme.seen[-1].json["input"]
    assert [item.get("type", "message") for item in sent] == ["message", "message", "message"]
    assert "id" not in sent[1]


async def test_where_the_maker_is_known_nobody_else_is_sent_what_it_made(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = stranger
    medcloud.behave = telling(200, RESPONSE)
    session = {"Waypost-Facts": 'session="second", cached=10'}
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=first_then_second()
    ) as validator:
        away = await validator.record(await ask_reasoned(validator, **session))

    assert [(one.model, one.outcome) for one in away.attempts] == [("first", "ok")]
    assert not any(made_elsewhere(seen.body) for seen in acme.seen)
