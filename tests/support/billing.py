"""A provider that keeps a bill of its own, by rules of its own, in every dialect.

It counts what it reads and writes itself, and prices that in fractions, with nothing of the
product's. What it has made is billed, whether or not anybody waited for it; what it refuses is
free. A prompt has a mark in it (``marked``), by which its bill is found.
"""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from support.upstream import Exchange
from waypost.shared.money import MTOK, Price, PriceAbove

_MARK = re.compile(rb"#(\d+)=(x*)")
WORD = "indeed "  # a token; of more bytes than one, as tokens are
REFUSALS = (
    (503, b'{"error":{"message":"overloaded"}}'),
    (429, b'{"error":{"message":"slow down"}}'),
    (200, b'{"error":{"message":"Provider returned error","code":502}}'),
    (200, b"<!doctype html>"),
    (200, b""),
)
# What was written in the moment of hanging up may never be read.
UNREAD_WORDS = 2


def marked(number: int, size: int = 40) -> str:
    """Return a prompt that is told from others."""
    return f"#{number}={'x' * size}"


@dataclass(frozen=True)
class Rates:
    """What a token costs, in nano-dollars; of long prompts half as much again, or twice."""

    input: int = 3_000
    output: int = 15_000
    cached: int = 300
    written: int = 3_750
    kept_1h: int = 6_000
    long: int = 100  # tokens of a prompt from which on all costs more

    def price(self) -> Price:
        """Return the same as the product has it."""
        return Price(
            input_nusd_per_mtok=self.input * MTOK,
            output_nusd_per_mtok=self.output * MTOK,
            cached_input_nusd_per_mtok=self.cached * MTOK,
            cache_write_nusd_per_mtok=self.written * MTOK,
            cache_write_1h_nusd_per_mtok=self.kept_1h * MTOK,
            above=(
                PriceAbove(
                    above_input_tokens=self.long,
                    input_nusd_per_mtok=2 * self.input * MTOK,
                    output_nusd_per_mtok=3 * self.output * MTOK // 2,
                    cached_input_nusd_per_mtok=2 * self.cached * MTOK,
                    cache_write_nusd_per_mtok=2 * self.written * MTOK,
                    cache_write_1h_nusd_per_mtok=2 * self.kept_1h * MTOK,
                ),
            ),
        )


@dataclass
class Made:
    """What one request has used by now.

    Attributes:
        prompt: tokens of it, those of a cache and of tools among them.
        unseen: words and thoughts that nobody was told of.
    """

    number: int
    model: str
    prompt: int
    cached: int = 0
    written: int = 0
    kept_1h: int = 0
    tools: int = 0
    thoughts: int = 0
    words: int = 0
    unseen: int = 0

    def due(self, rates: Rates, *, less_unseen: bool = False) -> Fraction:
        """Return what it costs, in nano-dollars."""
        is_long = self.prompt > rates.long
        plain = self.prompt - self.cached - self.written - self.kept_1h
        read = plain * rates.input + self.cached * rates.cached
        kept = self.written * rates.written + self.kept_1h * rates.kept_1h
        written = self.thoughts + self.words - (self.unseen if less_unseen else 0)
        into = (read + kept) * (2 if is_long else 1)
        return into + Fraction(written * rates.output * (3 if is_long else 2), 2)


@dataclass(frozen=True)
class Plan:
    """What becomes of one request.

    Attributes:
        ends: ``whole``, ``cut`` (after some words), ``hangs``, ``fails`` (an error in the stream),
            or ``refused``.
        tells: how much is told of what was used: ``all``, ``again`` (in every event that may), or
            ``nothing``.
    """

    made: Made
    ends: str
    tells: str
    after: int
    delay_s: float


@dataclass
class Billing:
    """The provider. ``behave`` is for an ``Upstream``."""

    rates: Rates = field(default_factory=Rates)
    seed: int = 0
    faults: float = 0.0
    slow_s: float = 0.0
    bills: list[Made] = field(default_factory=list[Made])

    def of(self, number: int) -> list[Made]:
        """Return the bills of one prompt."""
        return [one for one in self.bills if one.number == number]

    def due(self, *, less_unseen: bool = False) -> Fraction:
        """Return what all cost together."""
        return sum((one.due(self.rates, less_unseen=less_unseen) for one in self.bills), Fraction())

    async def behave(self, exchange: Exchange) -> None:
        """Answer in the dialect that is asked in, and bill it."""
        path, body = exchange.seen.path, exchange.seen.body
        dialect = _dialect(path)
        plan = self._plan(path, body, dialect)
        await asyncio.sleep(plan.delay_s)
        if plan.ends == "refused":
            status, text = random.Random(plan.made.number).choice(REFUSALS)
            await exchange.respond(status, text)
            return
        self.bills.append(plan.made)
        if "stream" in path.lower() or exchange.seen.json.get("stream"):
            await self._stream(exchange, plan, dialect)
            return
        answer = json.dumps(_WHOLE[dialect](plan)).encode()
        plan.made.words = 0 if dialect == "embeddings" else plan.after
        if plan.ends == "cut":
            # Without a byte of answer it might not have been heard, and would be asked again.
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer)
            await exchange.send(head + answer[: len(answer) // 2])
            exchange.close()
        elif plan.ends == "hangs":
            await asyncio.sleep(3_600)
        else:
            await exchange.respond(200, answer)

    async def _stream(self, exchange: Exchange, plan: Plan, dialect: str) -> None:
        made, has_ended = plan.made, False
        told_thoughts = dialect in ("gemini", "messages")
        stops_at = plan.after if plan.ends == "whole" else max(0, plan.after - 2)
        try:
            await exchange.start_stream()
            for event, words in _STREAMS[dialect](plan):
                if words > stops_at:
                    break
                made.words = max(made.words, words)
                await exchange.chunk(event)
                await asyncio.sleep(0)
            else:
                has_ended = True
                await exchange.end_stream()
            if plan.ends == "cut":
                await asyncio.sleep(0.02)
                exchange.close()
            elif plan.ends == "hangs":
                await asyncio.sleep(3_600)
            elif plan.ends == "fails" and not has_ended:
                await exchange.chunk(_failure(dialect))
                await exchange.end_stream()
                if not made.words:
                    self.bills.remove(made)  # nothing was made
        except (asyncio.CancelledError, ConnectionError):
            # Who hangs up behind the last word has had it all.
            made.unseen += 0 if has_ended else min(made.words, UNREAD_WORDS)
            raise
        finally:
            # Thoughts come before words, if they come.
            if not has_ended and not (told_thoughts and made.words):
                made.unseen += made.thoughts

    def _plan(self, path: str, body: bytes, dialect: str) -> Plan:
        mark = _MARK.search(body)
        number, size = (0, 40) if mark is None else (int(mark[1]), len(mark[2]))
        draw = random.Random(f"{self.seed} {number} {len(self.bills)}")
        made = Made(number, path, prompt=size // 2 + 8)
        made.cached = draw.randrange(made.prompt // 2)
        made.written = draw.randrange(made.prompt // 4) if dialect in ("messages", "chat") else 0
        if dialect == "messages" and b'"1h"' in body:
            made.kept_1h = draw.randrange(made.prompt // 4)
        if dialect == "gemini":
            made.tools = draw.randrange(made.prompt // 2)
        if dialect == "embeddings":
            made.cached = 0
        else:
            made.thoughts = draw.randrange(6)
        ends = "whole"
        if draw.random() < self.faults:
            ends = draw.choice(("cut", "hangs", "fails", "refused"))
        tells = "all" if draw.random() >= self.faults else draw.choice(("again", "nothing"))
        delay_s = draw.random() * self.slow_s
        return Plan(made, ends, tells, draw.randrange(1, 8), delay_s)


def _dialect(path: str) -> str:
    if "enerateContent" in path:
        return "gemini"
    name = path.rpartition("/")[2]
    return {"completions": "chat"}.get(name, name)


def _text(plan: Plan) -> str:
    return WORD * plan.after


# ── OpenAI ─────────────────────────────────────────────────────────────────────────────────────


def _chat_usage(plan: Plan, words: int) -> dict[str, Any]:
    made = plan.made
    return {
        "prompt_tokens": made.prompt,
        "completion_tokens": words + made.thoughts,
        "total_tokens": made.prompt + words + made.thoughts,
        "prompt_tokens_details": {
            "cached_tokens": made.cached,
            "cache_write_tokens": made.written,
        },
        "completion_tokens_details": {"reasoning_tokens": made.thoughts},
    }


def _chat(plan: Plan) -> dict[str, Any]:
    message = {"role": "assistant", "content": _text(plan)}
    answer: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    usage = _chat_usage(plan, plan.after)
    return answer if plan.tells == "nothing" else {**answer, "usage": usage}


def _data(event: object) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def _chat_events(plan: Plan) -> Iterator[tuple[bytes, int]]:
    def chunk(delta: dict[str, str], words: int, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        usage = {"usage": _chat_usage(plan, words)} if plan.tells == "again" else {}
        return _data({"id": "c", "object": "chat.completion.chunk", "choices": [choice], **usage})

    yield chunk({"role": "assistant", "content": ""}, 0), 0
    for words in range(1, plan.after + 1):
        yield chunk({"content": WORD}, words), words
    yield chunk({}, plan.after, "stop"), plan.after
    if plan.tells != "nothing":
        usage = _chat_usage(plan, plan.after)
        place: dict[str, Any] = {"usage": usage}
        if plan.made.number % 3 == 1:
            place = {"x_groq": {"usage": usage}}
        yield _data({"id": "c", "choices": [], **place}), plan.after
    yield b"data: [DONE]\n\n", plan.after


def _response(plan: Plan, words: int, status: str) -> dict[str, Any]:
    made = plan.made
    usage = {
        "input_tokens": made.prompt,
        "input_tokens_details": {"cached_tokens": made.cached},
        "output_tokens": words + made.thoughts,
        "output_tokens_details": {"reasoning_tokens": made.thoughts},
        "total_tokens": made.prompt + words + made.thoughts,
    }
    content = [{"type": "output_text", "text": WORD * words, "annotations": []}]
    item = {"type": "message", "id": "m", "role": "assistant", "content": content}
    is_told = plan.tells != "nothing" and status != "in_progress"
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "output": [{**item, "status": status}],
        "usage": usage if is_told else None,
    }


def _responses(plan: Plan) -> dict[str, Any]:
    return _response(plan, plan.after, "completed")


def _response_events(plan: Plan) -> Iterator[tuple[bytes, int]]:
    started = _response(plan, 0, "in_progress")
    yield _named({"type": "response.created", "response": started}), 0
    for words in range(1, plan.after + 1):
        yield _named({"type": "response.output_text.delta", "delta": WORD}), words
    whole = _responses(plan)
    yield _named({"type": "response.completed", "response": whole}), plan.after


def _embeddings(plan: Plan) -> dict[str, Any]:
    made, style = plan.made, plan.made.number % 2
    usage = {"total_tokens": made.prompt, **({"prompt_tokens": made.prompt} if style else {})}
    data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    answer = {"object": "list", "data": data}
    return answer if plan.tells == "nothing" else {**answer, "usage": usage}


# ── Anthropic ──────────────────────────────────────────────────────────────────────────────────


def _named(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\n".encode() + _data(event)


def _input(made: Made, prompt: int) -> dict[str, Any]:
    return {
        "input_tokens": prompt - made.cached - made.written - made.kept_1h,
        "cache_read_input_tokens": made.cached,
        "cache_creation_input_tokens": made.written + made.kept_1h,
        "cache_creation": {
            "ephemeral_5m_input_tokens": made.written,
            "ephemeral_1h_input_tokens": made.kept_1h,
        },
    }


def _message_usage(plan: Plan, words: int) -> dict[str, Any]:
    made = plan.made
    written = words + made.thoughts
    if made.number % 4:
        return {**_input(made, made.prompt), "output_tokens": written}
    # A compaction before the message: the counts above leave it out.
    compaction = {"type": "compaction", "input_tokens": 5, "output_tokens": made.thoughts}
    message = {"type": "message", **_input(made, made.prompt - 5), "output_tokens": words}
    return {
        **_input(made, made.prompt - 5),
        "output_tokens": words,
        "iterations": [compaction, message],
    }


def _message(plan: Plan) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-1",
        "content": [{"type": "text", "text": _text(plan)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    usage = _message_usage(plan, plan.after)
    return {**answer, "usage": {} if plan.tells == "nothing" else usage}


def _message_events(plan: Plan) -> Iterator[tuple[bytes, int]]:
    made, is_told = plan.made, plan.tells != "nothing"
    # Some tell zeros at first (GLM-5#139).
    start = {**_input(made, made.prompt), "output_tokens": 1}
    if made.number % 5 == 1:
        start = dict.fromkeys(("input_tokens", "output_tokens"), 0)
    head = {**_message(plan), "content": [], "stop_reason": None, "usage": start}
    yield (
        _named({"type": "message_start", "message": head if is_told else {**head, "usage": {}}}),
        0,
    )
    block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
    yield _named({"type": "content_block_start", "index": 0, "content_block": block}), 0
    delta = {"type": "thinking_delta", "thinking": WORD * made.thoughts}
    yield _named({"type": "content_block_delta", "index": 0, "delta": delta}), 0
    yield _named({"type": "content_block_stop", "index": 0}), 0
    block = {"type": "text", "text": ""}
    yield _named({"type": "content_block_start", "index": 1, "content_block": block}), 0
    for words in range(1, plan.after + 1):
        delta = {"type": "text_delta", "text": WORD}
        yield _named({"type": "content_block_delta", "index": 1, "delta": delta}), words
    yield _named({"type": "content_block_stop", "index": 1}), plan.after
    usage = _message_usage(plan, plan.after)
    if plan.tells == "again" and made.number % 5 != 1 and "iterations" not in usage:
        usage["input_tokens"] = 0  # it was told at the beginning
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    yield _named({**end, "usage": usage if is_told else {}}), plan.after
    yield _named({"type": "message_stop"}), plan.after


# ── Gemini ─────────────────────────────────────────────────────────────────────────────────────


def _gemini(plan: Plan, text: str | None = None, words: int | None = None) -> dict[str, Any]:
    made = plan.made
    is_end = words is None
    words = plan.after if words is None else words
    candidate: dict[str, Any] = {
        "content": {"role": "model", "parts": [{"text": _text(plan) if text is None else text}]},
        "index": 0,
    }
    if is_end:
        candidate["finishReason"] = "STOP"
    usage = {
        "promptTokenCount": made.prompt - made.tools,
        "toolUsePromptTokenCount": made.tools,
        "cachedContentTokenCount": min(made.cached, made.prompt - made.tools),
        "thoughtsTokenCount": made.thoughts,
        "totalTokenCount": made.prompt + words + made.thoughts,
        **({"candidatesTokenCount": words} if words else {}),
    }
    answer = {"candidates": [candidate], "modelVersion": "gemini-1"}
    return answer if plan.tells == "nothing" else {**answer, "usageMetadata": usage}


def _gemini_events(plan: Plan) -> Iterator[tuple[bytes, int]]:
    for words in range(1, plan.after + 1):
        yield _data(_gemini(plan, WORD, words)), words
    yield _data(_gemini(plan, "")), plan.after


def _failure(dialect: str) -> bytes:
    error = {"type": "overloaded_error", "message": "overloaded"}
    if dialect == "messages":
        return _named({"type": "error", "error": error})
    if dialect == "responses":
        return _named({"type": "error", "code": "server_error", "message": "overloaded"})
    return _data({"error": {**error, "code": 503}})


_WHOLE = {
    "chat": _chat,
    "embeddings": _embeddings,
    "gemini": _gemini,
    "messages": _message,
    "responses": _responses,
}
_STREAMS = {
    "chat": _chat_events,
    "gemini": _gemini_events,
    "messages": _message_events,
    "responses": _response_events,
}
