"""``make soak``: random faults under steady traffic, with one provider of three always down.

Half an hour is pressed into three minutes: time-outs, rests and the length of outages are a tenth
of what they would be. At the end nothing may have leaked: no task, socket, hold or memory; and
callers may have noticed next to nothing.
"""

import asyncio
import gc
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx

from faults.apart import apart
from support.billing import WORD, Billing
from support.upstream import (
    USAGE,
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
from support.validator import HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Hedge, Route

PRESSED = 10  # times quicker than life
CALLERS = 12
PROVIDERS = ("acme", "globex", "medcloud")
# A process that is kept from running for so long sees time-outs that no provider had; and breakers
# that open then take so long to close again.
STALL_S, AFTERMATH_S = 0.1, 2.0
# Caches fill, and the allocator keeps what it once had; a leak of 1 kB a request would be 20 MiB.
MOST_GROWN_KIB = 8_192
ANSWER = "Two and two are four, as far as anybody knows."
# Around and above the 64 KiB after which a connection stops reading for a while.
LARGE = tuple("x" * size + " as far as anybody knows." for size in (65_500, 70_000, 300_000))
ANSWERS = (*[ANSWER] * 40, *LARGE)
ROUND_S = 15.0  # of a soak, for each 200 requests at once


async def closing(exchange: Exchange) -> None:
    exchange.close()


async def garbled(exchange: Exchange) -> None:
    await exchange.respond(200, b"<html>", content_type="text/html")


async def halting(exchange: Exchange) -> None:
    await exchange.start_stream()
    await hanging(exchange)


async def announcing(exchange: Exchange) -> None:
    """Begins a stream, and is overloaded before any of the answer."""
    await exchange.start_stream()
    await exchange.chunk(ROLE)
    await exchange.chunk(b'data: {"error": {"message": "overloaded"}}\n\n')
    await exchange.end_stream()


async def nested(exchange: Exchange) -> None:
    """Sends what no decoder can read."""
    await exchange.respond(200, b"[" * 5_000)


def ending(text: str, *last: bytes) -> Behaviour:
    """Answers with a whole stream that ends as some providers do."""

    async def behave(exchange: Exchange) -> None:
        if not exchange.seen.json.get("stream"):
            await exchange.respond(200, completion(text))
            return
        await exchange.start_stream()
        await exchange.chunk(ROLE + event(text))
        for piece in last:
            await exchange.chunk(piece)
        await exchange.end_stream()

    return behave


ROLE = event(None, choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
WHOLE: tuple[Behaviour, ...] = (
    answering(ANSWER),
    ending(ANSWER, event(None), usage_event()),
    ending(ANSWER, event(None), usage_event(), b"data: [DONE]"),
    ending(ANSWER, event(None, usage=USAGE)[:-2]),
)

OUTAGES: tuple[Behaviour, ...] = (
    failing(500),
    failing(503),
    failing(429, extra="retry-after: 1\r\n"),
    failing(401),
    hanging,
    resetting,
    closing,
    garbled,
    halting,
    announcing,
    nested,
)


@dataclass
class Report:
    """What came of it. ``leaked`` names what there is more of at the end than at the beginning.

    Of what ended, ``stood still`` failed while this process was kept from running. ``billed_nusd``
    is what the providers' own bill says of the answers that it has counted, half of all.
    """

    seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])
    held_nusd: int = 0
    billed_nusd: int = 0
    spent_nusd: int = 0
    leaked: dict[str, int] = field(default_factory=dict[str, int])
    grown_kib: int = 0

    @property
    def success(self) -> float:
        """Share of the requests that were answered, of those whose caller stayed."""
        asked = self.ended["answered"] + self.ended["failed"]
        return self.ended["answered"] / asked if asked else 0.0


class Machine:
    """Notices when others keep this process from running; what it does itself is no excuse."""

    def __init__(self) -> None:
        self._stalled_at = float("-inf")

    async def watch_for_ever(self) -> None:
        tick_s = STALL_S / 5
        while True:
            began, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(tick_s)
            late_s = time.monotonic() - began - tick_s
            if late_s > STALL_S and time.process_time() - cpu < late_s / 2:
                self._stalled_at = time.monotonic()

    def stalled_since(self, began: float) -> bool:
        """Whether it did, so that a request that ``began`` then says nothing."""
        return self._stalled_at + AFTERMATH_S > began


class Weather:
    """Decides what each provider does: one is down, the others have a blip in a hundred."""

    def __init__(
        self, upstreams: dict[str, Upstream], draw: random.Random, billing: Billing
    ) -> None:
        self._billing = billing
        self._upstreams = upstreams
        self._draw = draw

    async def change_for_ever(self) -> None:
        while True:
            down = self._draw.choice(PROVIDERS)
            outage = self._draw.choice(OUTAGES)
            for name, upstream in self._upstreams.items():
                upstream.behave = outage if name == down else self._fair
                upstream.seen.clear()
            await asyncio.sleep(self._draw.uniform(10, 40) / PRESSED)

    async def _fair(self, exchange: Exchange) -> None:
        await asyncio.sleep(self._draw.expovariate(1 / 0.005))
        blip = self._draw.random() < 0.01
        behave = self._draw.choice(WHOLE)
        if self._draw.random() < 0.5:
            behave = self._billing.behave
        elif self._draw.random() < 0.5:
            behave = answering(self._draw.choice(ANSWERS))
        await (failing(503) if blip else behave)(exchange)


async def _caller(
    validator: Running,
    tokens: list[str],
    draw: random.Random,
    report: Report,
    machine: Machine,
) -> None:
    """Ask for ever, now and then hanging up or in a hurry."""
    while True:
        body: dict[str, Any] = {**HELLO, "stream": draw.random() < 0.5}
        mood, began = draw.random(), time.monotonic()
        headers = {"Authorization": draw.choice(tokens)}
        if mood < 0.02:
            headers["Waypost-Deadline-Ms"] = str(draw.randrange(1, 20))
        try:
            if mood > 0.97:
                async with asyncio.timeout(draw.uniform(0, 0.02)):
                    await _asked(validator, body, headers)
                continue
            response = await _asked(validator, body, headers)
        except TimeoutError:
            report.ended["hung up"] += 1
            continue
        if response.status_code == 200 and _is_whole(response.text):
            report.ended["answered"] += 1
        elif "Waypost-Deadline-Ms" in headers:
            report.ended["in a hurry"] += 1
        elif machine.stalled_since(began):
            report.ended["stood still"] += 1
        else:
            report.ended["failed"] += 1
            report.failures.append(f"{response.status_code} {response.text[:200]}")
        await asyncio.sleep(draw.expovariate(1 / 0.02))


def _is_whole(text: str) -> bool:
    return "knows." in text or WORD.strip() in text


async def _asked(
    validator: Running, body: dict[str, Any], headers: dict[str, str]
) -> httpx.Response:
    return await validator.client.post("/v1/chat/completions", json=body, headers=headers)


def _policy(billing: Billing) -> Any:  # noqa: ANN401
    price = billing.rates.price()
    models = tuple(a_model(f"m-{name}", provider=name, price=price) for name in PROVIDERS)
    names = tuple(model.id for model in models)
    return a_policy(
        models=models,
        routes=(Route(name="default", models=names, hedge=Hedge(after_ms=100)),),
        last_resort=names,
    )


def _pressed(providers: dict[str, Any]) -> None:
    for settings in providers.values():
        settings |= {
            "timeout_s": 2 / PRESSED,
            "retries": 1,
            "breaker": {"first_rest_s": 5 / PRESSED, "last_rest_s": 60 / PRESSED},
        }


def _sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():
        with suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


def _memory_kib() -> int:
    gc.collect()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def _counted(validator: Running) -> dict[str, int]:
    """Return what is there while nobody asks: the client's and the providers' ends included."""
    await validator.client.aclose()
    for upstream in validator.services.upstreams.values():
        # Connections that rest are no leak. To close the provider itself would end it for good.
        cast(Any, upstream)._transport._idle.close()
    await asyncio.sleep(0.25)
    validator.client = httpx.AsyncClient(base_url=validator.url, timeout=20)
    in_flight = sum(one.limiter.in_flight for one in validator.services.upstreams.values())
    return {
        "tasks": len(asyncio.all_tasks()),
        "sockets": _sockets(),
        "requests under way": in_flight,
    }


async def soak(folder: Path, *, seconds: float, seed: int) -> Report:
    """Return what came of ``seconds`` of traffic; a third of it goes by before memory counts."""
    draw, report = random.Random(seed), Report(seconds=seconds)
    billing = Billing(seed=seed)
    async with AsyncExitStack() as stack:
        upstreams = {
            name: await stack.enter_async_context(running_upstream(answering(ANSWER)))
            for name in PROVIDERS
        }
        validator = await stack.enter_async_context(
            running_validator(folder, upstreams, policy=_policy(billing), change=_pressed)
        )
        await _asked(validator, HELLO, validator.headers())
        before = await _counted(validator)
        tasks = [asyncio.create_task(Weather(upstreams, draw, billing).change_for_ever())]
        # As SDKs do: a token is used until it expires, and the validator remembers it.
        tokens = [validator.bearer(sub=f"user-{number}") for number in range(50)]
        machine = Machine()
        tasks.append(asyncio.create_task(machine.watch_for_ever()))
        tasks += [
            asyncio.create_task(_caller(validator, tokens, draw, report, machine))
            for _ in range(CALLERS)
        ]
        await asyncio.sleep(seconds / 3)
        warm_kib = _memory_kib()
        await asyncio.sleep(seconds * 2 / 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for upstream in upstreams.values():
            upstream.behave = answering(ANSWER)
        with suppress(AssertionError):  # told below
            await validator.settled()
        report.spent_nusd, report.held_nusd = await validator.spent()
        report.billed_nusd = int(billing.due(less_unseen=True))
        report.grown_kib = _memory_kib() - warm_kib
        for _ in range(20):
            # What is being closed may take a while where much else runs; a leak stays.
            after = await _counted(validator)
            report.leaked = {
                name: after[name] - count for name, count in before.items() if after[name] > count
            }
            if not report.leaked:
                break
        await validator.client.aclose()
    return report


def main() -> int:
    """Run it for as many seconds as asked, or three minutes; say what came of it."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    seed = int(time.time())
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(soak(Path(folder), seconds=seconds, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        rounds = max(1, int(seconds / ROUND_S))
        tenants = asyncio.run(apart(Path(folder), rounds=rounds, seed=seed))
    print(f"{seconds:.0f} s, pressed {PRESSED} times, seed {seed}: {dict(report.ended)}")
    print(f"answered {report.success:.3%}; of failures the first: {report.failures[:5]}")
    print(f"leaked {report.leaked or 'nothing'}; still held {report.held_nusd} nusd")
    print(f"spent {report.spent_nusd} nusd, of which providers billed {report.billed_nusd}")
    print(f"memory after the first third: {report.grown_kib:+} KiB")
    print(f"{rounds} times 200 tenants at once: {dict(tenants.ended)}; mixed {tenants.mixed[:5]}")
    good = (
        not tenants.mixed
        and not tenants.held_nusd
        and tenants.ended["answered"] > tenants.ended.total() / 2
        and report.success >= 0.999
        and 0 < report.billed_nusd <= report.spent_nusd
        and not report.leaked
        and not report.held_nusd
        and report.grown_kib <= MOST_GROWN_KIB
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
