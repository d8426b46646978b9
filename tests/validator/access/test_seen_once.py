"""What every memory of proofs and one-time tokens does, whatever keeps it."""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from support.redis import RedisServer, running_redis
from support.upstream import Upstream
from support.validator import ENVIRONMENT, running_validator
from waypost.shared.errors import StoreError
from waypost.validator.access.seen_once import SeenOnce, SqliteSeen
from waypost.validator.access.seen_once_redis import RedisSeen

pytestmark = pytest.mark.anyio

UNTIL = 4_000_000_000


@pytest.fixture(params=["sqlite", "redis"])
async def another(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[Callable[[], SeenOnce]]:
    """Opens the same memory once more, as another process does."""
    opened: list[SeenOnce] = []
    prefix = uuid4().hex
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None

    def open_one() -> SeenOnce:
        if server is None:
            opened.append(SqliteSeen.open(tmp_path / "replay.sqlite"))
        else:
            opened.append(RedisSeen(server.url, prefix=prefix))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


async def test_a_mark_is_new_once_whoever_asks(another: Callable[[], SeenOnce]) -> None:
    one, two = another(), another()

    assert await one.is_first(b"a", until=UNTIL)
    assert not await one.is_first(b"a", until=UNTIL)
    assert not await two.is_first(b"a", until=UNTIL)
    assert await two.is_first(b"b", until=UNTIL)


async def test_of_many_who_ask_at_once_one_is_first(another: Callable[[], SeenOnce]) -> None:
    stores = [another() for _ in range(4)]
    found: list[bool] = []

    async def ask(store: SeenOnce) -> None:
        found.append(await store.is_first(b"a", until=UNTIL))

    async with anyio.create_task_group() as tasks:
        for store in stores * 5:
            tasks.start_soon(ask, store)

    assert found.count(True) == 1


async def test_what_has_ended_is_known_to_all_and_lasts_as_long_as_the_latest_said(
    another: Callable[[], SeenOnce],
) -> None:
    one, two = another(), another()

    await one.end(b"a", until=UNTIL)
    await one.end(b"a", until=UNTIL + 1)

    assert [await two.ended_until(mark) for mark in (b"a", b"b")] == [UNTIL + 1, 0]


async def test_an_address_that_is_none_is_not_quoted() -> None:
    with pytest.raises(StoreError) as caught:
        RedisSeen("http://:secret@localhost", prefix="p")

    assert "secret" not in str(caught.value)


async def test_redis_that_is_away_lets_nothing_in_and_comes_back_by_itself() -> None:
    with running_redis() as server:
        seen = RedisSeen(server.url, prefix="p")
        assert await seen.is_first(b"a", until=UNTIL)

        server.kill()
        with pytest.raises(StoreError) as caught:
            await seen.is_first(b"b", until=UNTIL)
        server.start()

        assert caught.value.code == "replay_unavailable"
        assert not await seen.is_first(b"a", until=UNTIL)
        assert await seen.is_first(b"b", until=UNTIL)
        await seen.close()


async def test_a_one_time_token_is_good_for_one_request_at_either_of_two_validators(
    tmp_path: Path, redis_server: RedisServer, acme: Upstream
) -> None:
    upstreams = {"acme": acme, "medcloud": acme}
    environment = {**ENVIRONMENT, "REPLAY": redis_server.url}
    shared: Any = {"environment": environment, "replay": {"store": "redis", "dsn": "REPLAY"}}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    jti = uuid4().hex
    async with (
        running_validator(tmp_path / "one", upstreams, **shared) as one,
        running_validator(tmp_path / "two", upstreams, **shared) as two,
    ):
        first = await one.chat(one_time=True, jti=jti)
        # Both know the issuer by one name, each by a key of its own.
        again = await two.chat(one_time=True, jti=jti)

    assert first.status_code == 200
    assert again.json()["error"]["code"] == "token_replayed"
