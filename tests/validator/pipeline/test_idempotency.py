"""A request that is sent again with its key is one request, and is charged once."""

import pytest

from support.validator import HELLO, Running

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "order-66"}
OTHER = {**HELLO, "messages": [{"role": "user", "content": "3 + 3?"}]}


async def test_a_request_sent_again_with_its_key_is_charged_once(validator: Running) -> None:
    first = await validator.chat(headers=KEY)
    spent = await validator.settled()
    again = await validator.chat(headers=KEY)

    assert first.status_code == 200
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_done")
    assert first.headers["x-request-id"] in again.json()["error"]["message"]
    assert await validator.settled() == spent


async def test_a_key_cannot_stand_for_two_requests(validator: Running) -> None:
    await validator.chat(headers=KEY)

    other = await validator.chat(OTHER, headers=KEY)

    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_a_caller_s_keys_are_its_own(validator: Running) -> None:
    one = await validator.chat(headers=KEY, sub="alice")
    two = await validator.chat(OTHER, headers=KEY, sub="bob")

    assert (one.status_code, two.status_code) == (200, 200)


async def test_a_key_has_a_size(validator: Running) -> None:
    response = await validator.chat(headers={"Idempotency-Key": "x" * 300})

    assert (response.status_code, response.json()["error"]["code"]) == (
        400,
        "idempotency_key_invalid",
    )
