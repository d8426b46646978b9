"""A duty that was declared goes along with each request, wherever that is made."""

import asyncio
import json
import logging
import multiprocessing
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import pytest
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from support.loopback import serving
from support.worlds import a_policy
from waypost.client import AsyncWaypost, Event, FactsElsewhere, Waypost
from waypost.client.testing import FakeValidator, static_async_waypost, static_waypost

HELLO = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def validator() -> FakeValidator:
    return FakeValidator(a_policy())


def ask(wp: Waypost, validator: FakeValidator) -> None:
    with wp.http_client(transport=validator.transport()) as http:
        http.post(f"{wp.base_url}/chat/completions", json=HELLO)


async def aask(wp: AsyncWaypost, validator: FakeValidator) -> None:
    async with wp.http_client(transport=validator.transport()) as http:
        await http.post(f"{wp.base_url}/chat/completions", json=HELLO)


def duties(validator: FakeValidator) -> list[tuple[str, ...]]:
    return [seen.declared.data_classes for seen in validator.requests]


# ── where a request may be made ────────────────────────────────────────────────────────────────

Run = Callable[[Callable[[], None]], None]


def here(work: Callable[[], None]) -> None:
    work()


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_a_pool(work: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def in_a_loop_of_a_thread(work: Callable[[], None]) -> None:
    async def run() -> None:
        work()

    in_a_thread(lambda: asyncio.run(run()))


def in_an_executor_of_a_loop(work: Callable[[], None]) -> None:
    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(None, work)

    asyncio.run(run())


def in_a_task_of_before(work: Callable[[], None]) -> None:
    async def run() -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        asyncio.get_running_loop().call_soon(work)
        await asyncio.sleep(0)

    asyncio.run(run())


EVERYWHERE = [
    here,
    in_a_thread,
    in_a_pool,
    in_a_loop_of_a_thread,
    in_an_executor_of_a_loop,
    in_a_task_of_before,
]


@pytest.mark.parametrize("inner", EVERYWHERE)
@pytest.mark.parametrize("outer", EVERYWHERE)
def test_a_bound_client_carries_its_duties_everywhere(
    outer: Run, inner: Run, validator: FakeValidator
) -> None:
    if _both_loops(outer, inner):
        pytest.skip("a thread has one loop")
    wp = static_waypost(a_policy(), default_data="pii").bound(data="phi", task="triage")

    outer(lambda: inner(lambda: ask(wp, validator)))

    assert duties(validator) == [("pii", "phi")]
    assert validator.requests[0].declared.task == "triage"


def _both_loops(outer: Run, inner: Run) -> bool:
    loops = (in_a_loop_of_a_thread, in_a_task_of_before)
    return outer in loops and inner in (in_an_executor_of_a_loop, in_a_task_of_before)


def _ask_and_tell(wp: Waypost, path: Path) -> None:
    validator = FakeValidator(a_policy())
    ask(wp, validator)
    path.write_text(json.dumps(duties(validator)), encoding="utf-8")


def test_a_bound_client_carries_its_duties_into_a_forked_process(tmp_path: Path) -> None:
    wp = static_waypost(a_policy()).bound(data="phi")
    path = tmp_path / "duties"
    child = multiprocessing.get_context("fork").Process(target=_ask_and_tell, args=(wp, path))
    child.start()
    child.join()

    assert json.loads(path.read_text(encoding="utf-8")) == [["phi"]]


async def test_an_async_client_is_bound_for_tasks_and_other_loops(
    validator: FakeValidator,
) -> None:
    wp = static_async_waypost(a_policy()).bound(data="phi")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(aask, wp, validator)
    await to_thread.run_sync(lambda: asyncio.run(aask(wp, validator)))

    assert duties(validator) == [("phi",), ("phi",)]


def test_no_block_loosens_what_is_bound_or_the_default(validator: FakeValidator) -> None:
    wp = static_waypost(a_policy(), default_data="pii")

    with wp.facts(data=(), interactive=False), wp.bound(data="phi").facts(data="more"):
        ask(wp.bound(data="phi"), validator)
        ask(wp.bound(data="phi").bound(data="other"), validator)

    assert duties(validator) == [("pii", "phi", "more"), ("pii", "phi", "other", "more")]


def test_a_bound_client_shares_manifest_and_learning_and_leaves_closing_to_its_maker() -> None:
    wp = static_waypost(a_policy())
    bound = wp.bound(session="talk")

    wp.network_changed()
    bound.close()
    wp._core.note_session("talk", "large", 500)

    assert bound.manifest_version == wp.manifest_version == 42
    assert bound._core.models is wp._core.models
    assert bound._core.declared().session is not None
    assert wp._core.declared().session is None
    assert bound.choose("Hello").model == wp.choose("Hello").model


# ── where a block would be lost ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "elsewhere", [in_a_thread, in_a_pool, in_a_loop_of_a_thread, in_an_executor_of_a_loop]
)
def test_a_request_of_another_thread_while_a_block_is_open_is_warned_of(
    elsewhere: Run, validator: FakeValidator, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    wp = static_waypost(a_policy(), on_event=events.append)

    with caplog.at_level(logging.WARNING, "waypost"), wp.facts(data=("phi", "pii")):
        elsewhere(lambda: ask(wp, validator))
        elsewhere(lambda: ask(wp, validator))

    lost = [event for event in events if isinstance(event, FactsElsewhere)]
    assert lost == [FactsElsewhere(data=("phi", "pii"))] * 2
    assert [record.message for record in caplog.records if "phi, pii" in record.message] == [
        "a request goes out without the data classes phi, pii, which a facts block in another"
        " thread declares: threads do not inherit blocks; use Waypost.bound"
    ]


@pytest.mark.parametrize("how", ["inside", "bound", "copied", "no duty", "over"])
def test_nothing_is_warned_of_where_nothing_is_lost(how: str, validator: FakeValidator) -> None:
    events: list[Event] = []
    wp = static_waypost(a_policy(), on_event=events.append)

    with wp.facts(data="phi" if how != "no duty" else (), task="triage"):
        if how == "inside":
            ask(wp, validator)
        elif how == "copied":
            asyncio.run(asyncio.to_thread(ask, wp, validator))
        elif how != "over":
            in_a_thread(lambda: ask(wp.bound(data="phi") if how == "bound" else wp, validator))
    if how == "over":
        in_a_thread(lambda: ask(wp, validator))

    assert not [event for event in events if isinstance(event, FactsElsewhere)]


# ── where a block is left ──────────────────────────────────────────────────────────────────────


async def test_a_stream_whose_reader_hangs_up_ends_its_block_without_an_error(
    validator: FakeValidator,
) -> None:
    wp = static_async_waypost(a_policy())

    async def stream() -> AsyncGenerator[str]:
        with wp.facts(data="phi", session="talk"):
            await aask(wp, validator)
            yield "one"
            yield "two"

    pieces = stream()

    async def read() -> None:
        assert await anext(pieces) == "one"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
    await pieces.aclose()  # elsewhere, as a server does for who has hung up

    await aask(wp, validator)
    assert duties(validator) == [("phi",), ()]
    assert not wp._core._blocks


def test_a_stream_read_by_several_threads_ends_its_block_without_an_error() -> None:
    wp = static_waypost(a_policy())

    def stream() -> Generator[int]:
        with wp.facts(data="phi"):
            yield from range(3)

    pieces = stream()
    in_a_thread(lambda: [next(pieces)])  # type: ignore[arg-type]
    pieces.close()

    assert not wp._core._blocks


async def test_a_web_app_that_streams_in_a_block_survives_whoever_hangs_up(
    validator: FakeValidator,
) -> None:
    wp = static_async_waypost(a_policy())
    ended: list[BaseException | None] = []
    done = threading.Event()

    async def pieces() -> AsyncGenerator[str]:
        try:
            with wp.facts(data="phi"):
                await aask(wp, validator)
                while True:
                    yield "x" * 1_000
                    await anyio.sleep(0.001)
        except BaseException as exc:
            ended.append(exc)
            done.set()
            raise

    async def answer(_: Request) -> StreamingResponse:
        return StreamingResponse(pieces())

    with serving(Starlette(routes=[Route("/", answer)])) as url:
        async with httpx.AsyncClient() as http, http.stream("GET", url) as response:
            await anext(response.aiter_bytes())
        assert await to_thread.run_sync(done.wait, 20)

    assert duties(validator) == [("phi",)]
    assert isinstance(ended[0], asyncio.CancelledError | GeneratorExit)
