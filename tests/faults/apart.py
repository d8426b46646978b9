"""Tenants kept apart: 200 requests at once with large answers, resets and callers that hang up.

Each caller's message holds a mark of its own, and each byte of its answer says it again. Whoever
reads a mark that is not its own has got somebody else's answer.
"""

import asyncio
import random
import re
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from support.upstream import DONE, Exchange, completion, event, running_upstream, usage_event
from support.validator import Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Route

AT_ONCE = 200
MARK = re.compile(rb"<mark-\d+>")
END = "<end>"
PROVIDERS = ("acme", "globex")
# Around and above what a connection reads before it pauses (64 KiB), and several of those.
SIZES = (*[10] * 6, *[2_000] * 6, 65_000, 66_000, 70_000, 140_000, 400_000)


@dataclass
class Apart:
    """What came of it: how requests ended, and what was mixed up."""

    ended: Counter[str] = field(default_factory=Counter[str])
    mixed: list[str] = field(default_factory=list[str])
    held_nusd: int = 0


class Marked:
    """A provider that says the caller's mark again and again, and fails in its course."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    async def __call__(self, exchange: Exchange) -> None:
        found = MARK.search(exchange.seen.body)
        mark = found.group().decode() if found else ""
        text = mark * (self._draw.choice(SIZES) // max(1, len(mark)) + 1) + END
        await asyncio.sleep(self._draw.uniform(0, 0.03))
        if self._draw.random() < 0.03:
            exchange.reset()
        elif exchange.seen.json.get("stream"):
            await self._stream(exchange, text)
        else:
            await self._whole(exchange, completion(text))

    async def _whole(self, exchange: Exchange, body: bytes) -> None:
        if self._draw.random() > 0.05:
            await exchange.respond(200, body)
            return
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        )
        await exchange.send(head.encode() + b"\r\n" + body[: len(body) // 2])
        exchange.reset()

    async def _stream(self, exchange: Exchange, text: str) -> None:
        await exchange.start_stream()
        step = max(len(text) // 40, self._draw.choice((500, 7_000, 80_000)))
        for start in range(0, len(text), step):
            await exchange.chunk(event(text[start : start + step]))
            if self._draw.random() < 0.01:
                exchange.reset()
                return
        await exchange.chunk(event(None))
        await exchange.chunk(usage_event())
        if self._draw.random() < 0.8:
            await exchange.chunk(DONE)  # Perplexity, Cerebras and GPUStack send none
        await exchange.end_stream()


async def _call(
    validator: Running, client: httpx.AsyncClient, number: int, draw: random.Random, report: Apart
) -> None:
    mark = f"<mark-{number}>"
    body: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": f"Say {mark} again and again."}],
        "stream": draw.random() < 0.5,
    }
    headers = {"Authorization": validator.bearer(sub=f"user-{number}")}
    patience_s = draw.uniform(0, 0.08) if draw.random() < 0.1 else 30.0
    got = b""
    try:
        async with (
            asyncio.timeout(patience_s),
            client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response,
        ):
            async for chunk in response.aiter_bytes():
                got += chunk
    except TimeoutError:
        report.ended["hung up"] += 1
    except httpx.HTTPError:
        report.ended["broken"] += 1
    else:
        whole = response.status_code == 200 and END.encode() in got
        report.ended["answered" if whole else f"failed {response.status_code}"] += 1
    found = {one.decode() for one in MARK.findall(got)}
    if found - {mark}:
        report.mixed.append(f"{mark} was told {sorted(found)[:3]}")


def _settings(providers: dict[str, Any]) -> None:
    for one in providers.values():
        one |= {"timeout_s": 5, "retries": 1, "max_concurrency": 1_000}
        one["breaker"] = {"first_rest_s": 0.1, "last_rest_s": 0.2}


async def apart(folder: Path, *, rounds: int, seed: int) -> Apart:
    """Return what came of ``rounds`` of 200 requests at once."""
    draw, report = random.Random(seed), Apart()
    models = tuple(a_model(f"m-{name}", provider=name) for name in PROVIDERS)
    names = tuple(model.id for model in models)
    policy = a_policy(
        models=models, routes=(Route(name="default", models=names),), last_resort=names
    )
    async with AsyncExitStack() as stack:
        upstreams = {
            name: await stack.enter_async_context(running_upstream(Marked(draw)))
            for name in PROVIDERS
        }
        validator = await stack.enter_async_context(
            running_validator(folder, upstreams, policy=policy, change=_settings)
        )
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=validator.url, timeout=30, limits=httpx.Limits(max_connections=AT_ONCE)
            )
        )
        for turn in range(rounds):
            numbers = range(turn * AT_ONCE, (turn + 1) * AT_ONCE)
            await asyncio.gather(
                *(_call(validator, client, number, draw, report) for number in numbers)
            )
        with suppress(AssertionError):  # told below
            await validator.settled()
        report.held_nusd = (await validator.spent())[1]
    return report
