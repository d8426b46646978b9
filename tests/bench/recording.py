"""What records cost a request, what they take of the throughput, and a million of them."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from bench.processes import LOAD_CORE, cpu_s, free_port, nginx, running, worker_of, wrk
from bench.serving import a_validator
from support.recorded import a_record
from support.worlds import NOW, a_policy
from waypost.shared.records import DecisionRecord, encode_record
from waypost.shared.wire.trace_context import begin
from waypost.validator.records import RecordFilter, RecordSink, SqliteRecordStore
from waypost.validator.telemetry.counts import Counts

T = TypeVar("T")

RECORDS = 1_000_000
BATCH = 5_000
ROUNDS, SECONDS = 7, 3
SETTLE_S = 0.3
CALLS = 20_000


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    return [*_per_request(folder), *_throughput(folder), *_million(folder)]


def _per_request(folder: Path) -> list[tuple[str, str, str]]:
    async def measure() -> tuple[float, float]:
        store = SqliteRecordStore.open(folder / "few.sqlite")
        sink, counts = RecordSink(store), Counts()
        counts.know([a_policy()])
        records = [a_record(number) for number in range(CALLS)]
        put_us = _each_us(records, sink.put)
        count_us = _each_us(records, counts.record)
        await sink.close()
        await store.close()
        return put_us, count_us

    put_us, count_us = asyncio.run(measure())
    header = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    trace_us = _each_us(range(CALLS), lambda n: begin(header, share=0.1, rng=0.5, randomness=n))
    return [
        ("a record: encoded and queued", f"{put_us:.1f} us", ""),
        ("a record: counted for the metrics", f"{count_us:.1f} us", ""),
        ("both, on the way of a request", f"{put_us + count_us:.1f} us", "≤ 50 us"),
        ("a request that is not traced", f"{trace_us:.1f} us", ""),
    ]


def _each_us(items: Sequence[T], work: Callable[[T], object]) -> float:
    started = time.perf_counter()
    for item in items:
        work(item)
    return (time.perf_counter() - started) / len(items) * 1e6


def _throughput(folder: Path) -> list[tuple[str, str, str]]:
    """What recording takes of a request, by processor time: others on the machine do not count.

    The first thread is the event loop, which bounds what one process serves; the store is written
    by others, on whatever core is free. Here all share one.
    """
    upstream = free_port()
    command, log = nginx(folder, upstream)
    url = f"http://127.0.0.1:{upstream}"
    spent_us: dict[tuple[bool, bool], list[float]] = {}
    with ExitStack() as stack:
        stack.enter_context(running(command, port=upstream, core=LOAD_CORE, log=log))
        servers = {
            is_recorded: stack.enter_context(
                a_validator(folder / f"recorded-{is_recorded}", url, records=is_recorded)
            )
            for is_recorded in (True, False)
        }
        servers = {
            is_recorded: (port, headers, worker_of(pid))
            for is_recorded, (port, headers, pid) in servers.items()
        }
        for number in range(-1, ROUNDS):
            for is_recorded, (port, headers, pid) in servers.items():
                before = cpu_s(pid), cpu_s(pid, thread=pid)
                load = wrk(port, connections=32, seconds=SECONDS, headers=headers, folder=folder)
                time.sleep(SETTLE_S)  # the last batch is this round's
                after = cpu_s(pid), cpu_s(pid, thread=pid)
                if number >= 0:  # the round before has warmed up caches and connections
                    for place in (0, 1):
                        spent_us.setdefault((is_recorded, bool(place)), []).append(
                            (after[place] - before[place]) / load.requests * 1e6
                        )
    (all_us, all_added_us), (loop_us, loop_added_us) = (
        (
            statistics.median(spent_us[False, of_loop]),
            statistics.median(
                on - off
                for on, off in zip(spent_us[True, of_loop], spent_us[False, of_loop], strict=True)
            ),
        )
        for of_loop in (False, True)
    )
    return [
        ("a request without records, of the event loop", f"{loop_us:.0f} us", ""),
        ("recording adds, of the event loop", f"{loop_added_us:.0f} us", "≤ 50 us"),
        ("recording takes of what a loop serves", _share(loop_added_us, loop_us), "≤ 5%"),
        ("recording adds in all, writing included", f"{all_added_us:.0f} us", ""),
        ("recording takes where all share a core", _share(all_added_us, all_us), ""),
    ]


def _share(added_us: float, us: float) -> str:
    return f"{added_us / (us + added_us):.1%}"


def _million(folder: Path) -> list[tuple[str, str, str]]:
    async def measure() -> list[tuple[str, str, str]]:
        path = folder / "many.sqlite"
        now = [float(NOW)]
        store = SqliteRecordStore.open(path, clock=lambda: now[0])
        started = time.perf_counter()
        for start in range(0, RECORDS, BATCH):
            now[0] = float(NOW + start + BATCH)
            await store.append([_numbered(n) for n in range(start, start + BATCH)])
            await store.compact()
        written_s = time.perf_counter() - started
        result = [
            ("a million records: written, upkeep included", f"{RECORDS / written_s:,.0f}/s", ""),
            ("a million records: on disk", f"{path.stat().st_size / 2**20:,.0f} MiB", ""),
        ]
        since = RecordFilter(since_ms=(NOW + RECORDS // 3) * 1_000)
        for what, ask in (
            ("list, newest 50", lambda: store.list(RecordFilter(), limit=50)),
            ("list, one model's", lambda: store.list(RecordFilter(model="m7"), limit=50)),
            ("list, of what is rare", lambda: store.list(RecordFilter(reason="none"), limit=50)),
            ("stats of all", lambda: store.stats(RecordFilter())),
            ("stats by the hour", lambda: store.stats(since, by=("route",), step_ms=3_600_000)),
            ("stats of an account", lambda: store.stats(RecordFilter(account="a7"))),
        ):
            started = time.perf_counter()
            await ask()
            took_ms = (time.perf_counter() - started) * 1_000
            result.append((f"a million records: {what}", f"{took_ms:,.0f} ms", "≤ 1,000 ms"))
        await store.close()
        return result

    return asyncio.run(measure())


def _numbered(number: int) -> tuple[DecisionRecord, bytes]:
    record = a_record(
        number,
        model=f"m{number % 20}",
        route=f"r{number % 6}",
        account=f"a{number % 50}",
        ttft_ms=50.0 + number * 7 % 400,
        duration_ms=200.0 + number * 13 % 3_000,
        cost_nusd=number * 97 % 100_000,
    )
    return record, encode_record(record)
