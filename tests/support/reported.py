"""Random reports of usage, through the readers of real streams, and what is charged for them.

Each run is one provider's stream or whole answer: reports in any order, partial, repeated, null,
nested or none, in the words of its dialect, cut anywhere.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from support.worlds import a_model, some_facts
from waypost.shared.money import MTOK, Price, bill, upper_bound
from waypost.shared.requests.apis import decode
from waypost.validator.dialects.adapter import Adapter, InboundRequest
from waypost.validator.dialects.providers import adapters
from waypost.validator.dialects.sse import EventReader
from waypost.validator.dialects.usage import NOTHING, UsageReport
from waypost.validator.pipeline.charge import Charge, Evidence, charge_for

IN_NUSD, OUT_NUSD = 3, 15
PRICE = Price(input_nusd_per_mtok=IN_NUSD * MTOK, output_nusd_per_mtok=OUT_NUSD * MTOK)
MODEL = a_model("one", price=PRICE)
MESSAGES = '"messages":[{"role":"user","content":"Hi"}],"max_tokens":9'
BODIES = {
    "chat.completions": f'{{"model":"auto",{MESSAGES},"stream":true}}',
    "messages": f'{{"model":"auto",{MESSAGES},"stream":true}}',
    "responses": '{"model":"auto","input":"Hi","store":false,"stream":true}',
    "embeddings": '{"model":"auto","input":"Hi"}',
}
# The keys of a whole side or the total, and those of parts, in the words of each usage.
WORDS: dict[str, tuple[tuple[str, str, str], tuple[str, ...]]] = {
    "chat": (
        ("prompt_tokens", "completion_tokens", "total_tokens"),
        ("cached_tokens", "prompt_cache_hit_tokens", "reasoning_tokens", "citation_tokens",
         "cache_read_input_tokens"),
    ),
    "responses": (("input_tokens", "output_tokens", "total_tokens"), ("cached_tokens",)),
    "messages": (
        ("input_tokens", "output_tokens", ""),
        ("cache_read_input_tokens", "cache_creation_input_tokens"),
    ),
    "gemini": (
        ("promptTokenCount", "candidatesTokenCount", "totalTokenCount"),
        ("cachedContentTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount"),
    ),
}  # fmt: skip
NESTED = {
    "chat": ("prompt_tokens_details", "completion_tokens_details"),
    "responses": ("input_tokens_details", "output_tokens_details"),
    "messages": ("cache_creation", "iterations"),
    "gemini": ("promptTokensDetails", "candidatesTokensDetails"),
}
JUNK: tuple[Any, ...] = (None, {}, [], "many", -1, 2**70, 1.5, True, {"cached_tokens": None}, [7])


@dataclass
class Told:
    """The largest counts that were told by whoever could be heard.

    Attributes:
        any_count: the largest of all, parts too.
    """

    sides: list[int] = field(default_factory=lambda: [0, 0, 0])
    any_count: int = 0
    reports: int = 0


def _usage(draw: random.Random, words: str, told: Told) -> object:
    """Return one report, and note what it tells."""
    told.reports += 1
    if draw.random() < 0.08:
        return draw.choice(JUNK)
    sides, parts = WORDS[words]
    usage: dict[str, Any] = {}
    size = draw.choice((1, 40, 40, 4_000, 10**9))
    for place, name in enumerate(sides):
        chance = draw.random()
        if name and chance < 0.6:
            usage[name] = count = draw.choice((0, draw.randrange(size)))
            told.sides[place] = max(told.sides[place], count)
            told.any_count = max(told.any_count, count)
        elif name and chance < 0.75:
            usage[name] = draw.choice(JUNK)
    for name in parts:
        if draw.random() < 0.15:
            usage[name] = count = draw.randrange(size)
            told.any_count = max(told.any_count, count)
        elif draw.random() < 0.1:
            usage[name] = draw.choice(JUNK)
    for name in NESTED[words]:
        if draw.random() < 0.1:
            usage[name] = draw.choice(JUNK)
    return usage


# ── events ─────────────────────────────────────────────────────────────────────────────────────


def _chat(draw: random.Random, told: Told) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": None}
    event: dict[str, Any] = {"choices": draw.choice(([choice], [choice], [], None))}
    kind = draw.randrange(6)
    if kind < 3:
        choice["delta"] = {"content": "x" * draw.randrange(9)}
    elif kind == 3:
        choice["finish_reason"] = "stop"
    if draw.random() < 0.5:
        usage = _usage(draw, "chat", told) if event["choices"] != [choice] else None
        place = draw.randrange(3)
        if place == 0 and event["choices"] == [choice]:
            choice["usage"] = _usage(draw, "chat", told)
        elif place == 1 and event["choices"] is not None:
            event["x_groq"] = {"usage": _usage(draw, "chat", told)}
        if usage is not None:
            event["usage"] = usage
    if draw.random() < 0.03:
        event["error"] = {"message": "overloaded"}
    return event


def _messages(draw: random.Random, told: Told) -> dict[str, Any]:
    kind = draw.randrange(7)
    if kind == 0:
        head = {"type": "message", "content": [], "usage": _usage(draw, "messages", told)}
        return {"type": "message_start", "message": head}
    if kind == 1:
        delta: dict[str, Any] = {"stop_reason": draw.choice((None, "end_turn"))}
        usage = _usage(draw, "messages", told)
        return {"type": "message_delta", "delta": delta, "usage": usage}
    if kind == 2 and draw.random() < 0.1:
        return {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}
    delta = {"type": "text_delta", "text": "x" * draw.randrange(9)}
    return {"type": "content_block_delta", "index": 0, "delta": delta}


def _responses(draw: random.Random, told: Told) -> dict[str, Any]:
    if draw.random() < 0.3:
        end = draw.choice(("response.completed", "response.incomplete", "response.failed"))
        return {"type": end, "response": {"usage": _usage(draw, "responses", told)}}
    return {"type": "response.output_text.delta", "delta": "x" * draw.randrange(9)}


def _gemini(draw: random.Random, told: Told) -> dict[str, Any]:
    parts = [{"text": "x" * draw.randrange(9)}] if draw.random() < 0.7 else []
    candidate: dict[str, Any] = {"content": {"parts": parts}}
    if draw.random() < 0.2:
        candidate["finishReason"] = draw.choice(("STOP", "MAX_TOKENS", "OTHER"))
    event: dict[str, Any] = {"candidates": [candidate]}
    if draw.random() < 0.7:
        event["usageMetadata"] = _usage(draw, "gemini", told)
    return event


EVENTS = {"openai": _chat, "anthropic": _messages, "gemini": _gemini, "responses": _responses}


def _ways() -> list[tuple[str, str, Adapter]]:
    ways: list[tuple[str, str, Adapter]] = []
    for dialect in ("openai", "anthropic", "gemini"):
        for endpoint, adapter in adapters(dialect, max_tokens_field="max_tokens").items():
            if endpoint in ("chat.completions", "messages", "responses"):
                is_native = (endpoint, dialect) == ("responses", "openai")
                ways.append((endpoint, "responses" if is_native else dialect, adapter))
    return ways


WAYS = _ways()
FACTS = some_facts()
ASKED = {
    endpoint: InboundRequest(endpoint, decode(endpoint, body.encode()), body.encode(), id="1")
    for endpoint, body in BODIES.items()
}


def try_once(draw: random.Random) -> int:
    """Charge one stream or answer; return how many reports it told.

    Raises:
        AssertionError: the charge breaks a rule.
    """
    told = Told()
    if draw.random() < 0.2:
        report, is_final, written, counted = _whole(draw, told), True, 20, 20
        has_output = draw.random() < 0.5
        written = written if has_output else 0
    else:
        reader = _stream(draw, told)
        report, has_output = reader.report, True
        is_final = reader.is_done or reader.has_last_word
        written, counted = reader.output_bytes, reader.reported_bytes
    output_tokens = draw.choice((0, 16, 4_096)) if has_output else 0
    facts = structs.replace(
        FACTS, measured=structs.replace(FACTS.measured, max_input_tokens=draw.choice((60, 10**5)))
    )
    held = upper_bound(
        PRICE,
        input_tokens=facts.measured.max_input_tokens,
        output_tokens=output_tokens,
        needs=facts.measured.needs,
    )
    evidence = Evidence(
        is_free=False,
        report=report,
        has_output=has_output,
        is_final=is_final,
        output_bytes=written,
        reported_bytes=counted,
        held_nusd=held,
        output_tokens=output_tokens,
    )
    _check(charge_for(evidence, MODEL, facts), evidence, told)
    return told.reports


def _stream(draw: random.Random, told: Told) -> EventReader:
    endpoint, dialect, adapter = draw.choice(WAYS)
    reader = adapter.reader(ASKED[endpoint])
    assert isinstance(reader, EventReader)
    for _ in range(draw.randrange(1, 8)):
        heard = Told(list(told.sides), told.any_count, told.reports)
        event = EVENTS[dialect](draw, heard)
        wire = b"data: " + json.dumps(event).encode() + b"\n\n"
        if reader.is_over:
            break  # nobody reads on
        told.sides, told.any_count, told.reports = heard.sides, heard.any_count, heard.reports
        for _ in range(draw.choice((1, 1, 1, 2))):
            reader.feed(wire)
    if draw.random() < 0.3:
        reader.feed(b"data: [DONE]\n\n")
        reader.end(is_whole=True)
    return reader


def _whole(draw: random.Random, told: Told) -> UsageReport:
    dialect = draw.choice(("chat", "messages", "gemini"))
    name = {"chat": "openai", "messages": "anthropic", "gemini": "gemini"}[dialect]
    adapter = next(way[2] for way in WAYS if way[1] == name)
    place = "usageMetadata" if dialect == "gemini" else "usage"
    return adapter.report(json.dumps({place: _usage(draw, dialect, told)}).encode())


# ── the rules ──────────────────────────────────────────────────────────────────────────────────


def _check(charge: Charge, evidence: Evidence, told: Told) -> None:
    into, out, total = told.sides
    held, seen = evidence.held_nusd, (charge, evidence, told)
    assert charge.cost_nusd <= held, seen
    if charge.usage is not None:
        # Never less than the richest report.
        usage = charge.usage
        assert charge.told_nusd is None, seen
        assert usage.input_tokens >= into, seen
        assert not evidence.has_output or usage.output_tokens >= out, seen
        assert usage.input_tokens + usage.output_tokens >= total, seen
    if not charge.cost_nusd:
        # Never free unless every count is told as 0.
        assert charge.usage is not None or not held, seen
        assert not told.any_count or not held, seen
    least = max(into * IN_NUSD + out * OUT_NUSD * evidence.has_output, total * IN_NUSD)
    assert charge.cost_nusd >= min(least, held), seen
    # Never above the bound without a mark.
    if least > held:
        assert charge.told_nusd is not None, seen
        assert charge.told_nusd >= least, seen
        assert not charge.is_confirmed, seen
    if charge.told_nusd is not None:
        assert charge.cost_nusd == held, seen
    if evidence.report is NOTHING:
        assert charge.usage is None, seen
    elif charge.usage is not None:
        assert charge.cost_nusd == bill(PRICE, charge.usage), seen
