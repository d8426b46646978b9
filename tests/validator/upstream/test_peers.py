"""What validators tell each other of providers that fail, over a real Redis."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from support.redis import RedisServer, running_redis
from support.upstream import Exchange, Upstream, answering, failing
from support.validator import ENVIRONMENT, HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route
from waypost.validator.config import ConfigError
from waypost.validator.upstream.breaker import Breaker, BreakerRules
from waypost.validator.upstream.peers import Peers
from waypost.validator.upstream.witnesses import fingerprint

pytestmark = pytest.mark.anyio

FAILURES = BreakerRules().failures


def policy(*fallback: str) -> Policy:
    return a_policy(
        models=(a_model("first"), a_model("second", provider="medcloud")),
        routes=(Route(name="default", models=("first",), fallback=fallback),),
        last_resort=fallback,
    )


async def fleet(
    stack: AsyncExitStack,
    folder: Path,
    url: str,
    upstreams: dict[str, Upstream],
    **changes: Any,  # noqa: ANN401 - sections of validator.yaml
) -> tuple[Running, Running]:
    """Two validators that share nothing but Redis."""
    changes.setdefault("policy", policy("second"))
    running: list[Running] = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        validator = running_validator(
            folder / name,
            upstreams,
            environment={**ENVIRONMENT, "PEERS": url},
            peers={"dsn": "PEERS", "prefix": folder.name},
            **changes,
        )
        running.append(await stack.enter_async_context(validator))
    one, two = running
    return one, two


def client_of(url: str) -> Any:  # noqa: ANN401
    library: Any = Redis  # its own types are partly unknown
    return library.from_url(url)


async def heard(url: str, folder: Path, *, listeners: int = 2) -> None:
    """Wait until both listen."""
    redis = client_of(url)
    channel = f"{folder.name}:rests"
    for _ in range(500):
        if (await redis.pubsub_numsub(channel))[0][1] == listeners:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("nobody listens")
    await redis.aclose()


def breaker_of(validator: Running, name: str = "first") -> Breaker:
    return validator.services.manifests.targets()[name].breaker


async def fail_for_two(validator: Running) -> None:
    """Send what two accounts ask, in turn, until the breaker must have opened."""
    for place in range(FAILURES):
        body = {**HELLO, "user": f"{place}"}
        answer = await validator.chat(body, account=("alice", "bob")[place % 2])
        assert answer.status_code == 200


def rests(validator: Running) -> None:
    """Have a validator say that ``first`` rests, whether it does or not."""
    upstream = validator.services.upstreams["acme"]
    assert upstream.on_rest is not None
    region = validator.services.manifests.targets()["first"].model.region
    upstream.on_rest("acme", "acme-first", region, frozenset())


async def doubted(validator: Running) -> Breaker:
    """Return the breaker once its validator has heard; looked at without sending anything."""
    breaker = breaker_of(validator)
    for _ in range(500):
        if breaker.is_doubted(validator.services.monotonic()):
            return breaker
        await asyncio.sleep(0.01)
    raise AssertionError("it has not heard")


async def test_what_rests_at_one_validator_opens_at_another_by_a_single_failure(
    tmp_path: Path, redis_server: RedisServer, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    async with AsyncExitStack() as stack:
        one, two = await fleet(
            stack, tmp_path, redis_server.url, {"acme": acme, "medcloud": medcloud}
        )
        await heard(redis_server.url, tmp_path)
        await fail_for_two(one)
        breaker = await doubted(two)
        acme.seen.clear()
        statuses = [(await two.chat()).status_code for _ in range(3)]

        assert statuses == [200, 200, 200]
        assert len(acme.seen) == 1
        assert not breaker.is_closed


async def test_while_one_request_finds_out_the_others_go_elsewhere_first(
    tmp_path: Path, redis_server: RedisServer, acme: Upstream, medcloud: Upstream
) -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def held(exchange: Exchange) -> None:
        arrived.set()
        await release.wait()
        await answering()(exchange)

    async with AsyncExitStack() as stack:
        one, two = await fleet(
            stack, tmp_path, redis_server.url, {"acme": acme, "medcloud": medcloud}
        )
        await heard(redis_server.url, tmp_path)
        acme.behave = failing(500)
        await fail_for_two(one)
        await doubted(two)
        acme.seen.clear()
        medcloud.seen.clear()
        acme.behave = held
        finding_out = asyncio.create_task(two.chat())
        await arrived.wait()
        others = [await two.chat() for _ in range(3)]
        release.set()

        assert (await finding_out).status_code == 200
        assert {other.status_code for other in others} == {200}
        assert (len(acme.seen), len(medcloud.seen)) == (1, 3)
        # The one that found out has cleared it for all.
        await two.chat()
        assert len(acme.seen) == 2


async def test_one_account_that_fails_here_and_there_takes_no_provider_from_others(
    tmp_path: Path, redis_server: RedisServer, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    async with AsyncExitStack() as stack:
        one, two = await fleet(
            stack, tmp_path, redis_server.url, {"acme": acme, "medcloud": medcloud}
        )
        await heard(redis_server.url, tmp_path)
        upstream = one.services.upstreams["acme"]
        assert upstream.on_rest is not None
        region = one.services.manifests.targets()["first"].model.region
        upstream.on_rest("acme", "acme-first", region, frozenset({fingerprint("acme")}))
        breaker = await doubted(two)
        for place in range(2 * FAILURES):
            await two.chat({**HELLO, "user": f"{place}"})
        acme.behave = answering()
        other = await two.chat(account="bob")

    assert breaker.is_closed
    assert 'model="first"' in other.headers["waypost-decision"]


async def test_a_validator_that_cries_wolf_takes_no_provider_from_the_others(
    tmp_path: Path, redis_server: RedisServer, acme: Upstream
) -> None:
    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        await answering()(exchange)

    acme.behave = late
    upstreams = {"acme": acme, "medcloud": acme}
    async with AsyncExitStack() as stack:
        one, two = await fleet(stack, tmp_path, redis_server.url, upstreams, policy=policy())
        await heard(redis_server.url, tmp_path)
        rests(one)
        await doubted(two)
        # With nowhere else to go, all at once.
        answers = await asyncio.gather(*(two.chat() for _ in range(10)))

    assert {answer.status_code for answer in answers} == {200}
    assert len(acme.seen) == 10


async def test_what_is_no_word_of_a_peer_is_not_heeded(
    tmp_path: Path, redis_server: RedisServer, acme: Upstream
) -> None:
    async with AsyncExitStack() as stack:
        one, two = await fleet(
            stack, tmp_path, redis_server.url, {"acme": acme, "medcloud": acme}, policy=policy()
        )
        await heard(redis_server.url, tmp_path)
        redis = client_of(redis_server.url)
        word = {"by": "x", "provider": "acme", "model": "acme-first", "region": ""}
        for data in (
            b"\xff",
            b"{}",
            b"[]",
            msgspec.json.encode({**word, "provider": "nobody"}),
            msgspec.json.encode({**word, "model": "invented"}),
            msgspec.json.encode({**word, "model": 7}),
        ):
            await redis.publish(f"{tmp_path.name}:rests", data)
        await redis.aclose()
        # Sent after them, so that whatever they did is done.
        rests(one)
        await doubted(two)

        assert (await two.chat()).status_code == 200


async def test_without_redis_all_is_served_and_with_it_back_validators_talk_again(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = failing(500)
    with running_redis() as server:
        server.kill()
        async with AsyncExitStack() as stack:
            one, two = await fleet(
                stack, tmp_path, server.url, {"acme": acme, "medcloud": medcloud}
            )
            await fail_for_two(one)
            assert not breaker_of(one).is_closed
            assert (await two.chat()).status_code == 200

            await asyncio.to_thread(server.start)
            await heard(server.url, tmp_path)
            rests(one)
            await doubted(two)


async def test_the_ledgers_redis_serves_unless_another_is_named(
    tmp_path: Path, redis_server: RedisServer, acme: Upstream
) -> None:
    prefix = tmp_path.name
    async with running_validator(
        tmp_path,
        {"acme": acme, "medcloud": acme},
        environment={**ENVIRONMENT, "LEDGER": redis_server.url},
        ledger={"store": "redis", "dsn": "LEDGER", "prefix": prefix},
    ) as validator:
        await heard(redis_server.url, tmp_path, listeners=1)
        assert (await validator.chat(HELLO)).status_code == 200


async def test_an_address_that_is_none_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        Peers("http://:secret@localhost", prefix="p", monotonic=lambda: 0.0)

    assert "secret" not in str(caught.value)
