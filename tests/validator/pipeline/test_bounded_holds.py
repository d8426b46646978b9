"""What is held bounds what is billed: pictures, tools of the provider, tiers, and thinking."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from support.pictures import claude, gemini_tiles, openai_patches, openai_tiles, picture
from support.upstream import Behaviour, Exchange, Upstream, answering, running_upstream
from support.validator import HELLO, Running, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, Facts, HostedTool, Model, Route, Signed
from waypost.shared.decision.costs import cost_bound_nusd, output_bound
from waypost.shared.decision.reading import TextReader
from waypost.shared.money import MTOK, Factor, Price, PriceAbove
from waypost.shared.pictures import RULES
from waypost.shared.requests.apis import decode, measure
from waypost.validator.dialects.usage import UsageReport
from waypost.validator.pipeline.charge import Evidence, charge_for
from waypost.validator.pipeline.picture_size import size_of

pytestmark = pytest.mark.anyio

PRICE = Price(
    input_nusd_per_mtok=3_000 * MTOK,
    output_nusd_per_mtok=15_000 * MTOK,
    cached_input_nusd_per_mtok=300 * MTOK,
    cache_write_nusd_per_mtok=3_750 * MTOK,
    above=(PriceAbove(above_input_tokens=3_000, input_nusd_per_mtok=6_000 * MTOK),),
    factors=(
        Factor("service_tier=flex", 50),
        Factor("service_tier=priority", 200),
        Factor("speed=fast", 600),
    ),
)
SEARCH = HostedTool(name="web_search", call_nusd=10_000_000, calls=3, tokens=2_000)
ALL = ("audio", "json", "tools", "vision")


def a_priced_model(rule: str = "claude", **changes: Any) -> Model:  # noqa: ANN401 - of Model
    fields: dict[str, Any] = {
        "price": PRICE,
        "pictures": RULES[rule],
        "hosted_tools": (SEARCH,),
        "capabilities": ALL,
        "endpoints": ENDPOINTS,
        "context_tokens": 400_000,
        "max_output_tokens": 2_000,
    }
    return a_model("one", **{**fields, **changes})


# ── the property, without a wire ───────────────────────────────────────────────────────────────

COUNTS = {
    "openai-tiles-gpt-4o-mini": lambda w, h: openai_tiles(w, h, base=2_833, tile=5_667),
    "openai-patches-mini": lambda w, h: openai_patches(w, h, factor=1.62),
    "claude": lambda w, h: claude(w, h, side=1_568, most=1_600),
    "gemini-tiles": gemini_tiles,
}
sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))
DRAWN = {size: picture(*size) for size in ((1, 1), (700, 31), (384, 385), (896, 640))}


@given(
    rule=st.sampled_from(sorted(COUNTS)),
    text=st.text(max_size=200),
    pictures=st.lists(st.sampled_from(sorted(DRAWN)), max_size=3),
    asked=st.sampled_from((None, 5, 500)),
    orders=st.fixed_dictionaries(
        {},
        optional={
            "service_tier": st.sampled_from(("flex", "priority", "auto", "default")),
            "speed": st.sampled_from(("fast", "standard")),
        },
    ),
    searches=st.none() | st.integers(0, 3),
    data=st.data(),
)
def test_no_bill_by_a_providers_own_rules_is_more_than_what_is_held(
    rule: str,
    text: str,
    pictures: list[tuple[int, int]],
    asked: int | None,
    orders: dict[str, str],
    searches: int | None,
    data: st.DataObject,
) -> None:
    images = [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": DRAWN[size]},
        }
        for size in pictures
    ]
    said = [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]
    body: dict[str, Any] = {"messages": said, **orders}
    if asked is not None:
        body["max_tokens"] = asked
    if searches is not None:
        body["tools"] = [{"type": "web_search_20250305", "name": "web_search"}]
    raw = json.dumps(body).encode()
    measured = measure(
        "messages", decode("messages", raw), body=raw, reader=TextReader(()), size_of=size_of
    )
    model = a_priced_model(rule)
    facts = Facts(now=0, signed=Signed(tier="pro"), measured=measured)
    held = cost_bound_nusd(model, facts)

    # What the provider makes of it: no more tokens than bytes of text, its own count of pictures,
    # and the whole prompt once more after each search.
    words = data.draw(st.integers(0, len(text.encode()) + 20), "tokens of the text")
    prompt = words + sum(COUNTS[rule](*size) for size in pictures)
    out = data.draw(st.integers(0, output_bound(model, facts)), "tokens of the answer")
    calls = searches or 0
    brought = [data.draw(st.integers(0, SEARCH.tokens)) for _ in range(calls)]
    read = sum(prompt + sum(brought[:turn]) + (out if turn else 0) for turn in range(calls + 1))
    cached = data.draw(st.integers(0, read), "of it from a cache")
    told = [f"{field}={value}" for field, value in orders.items()]
    report = UsageReport(
        input_tokens=read,
        output_tokens=out,
        cache_write_tokens=cached,
        calls=(("web_search", calls),) if calls else None,
        asks=tuple(told),
    )
    evidence = Evidence(
        is_free=False,
        report=report,
        has_output=True,
        is_final=True,
        output_bytes=10 * out,
        reported_bytes=10 * out,
        held_nusd=held,
        output_tokens=output_bound(model, facts),
    )
    charge = charge_for(evidence, model, facts)

    assert charge.told_nusd is None
    assert charge.is_confirmed
    # And it is the bill: tokens by the tier that was told, and each search.
    alone = charge_for(
        Evidence(
            is_free=False, report=UsageReport(input_tokens=read, output_tokens=out,
            cache_write_tokens=cached), has_output=True, is_final=True, output_bytes=0, reported_bytes=0,
            held_nusd=10**15, output_tokens=2_000,
        ),
        a_priced_model(rule, hosted_tools=UNSET),
        Facts(now=0, signed=Signed(tier="pro")),
    ).cost_nusd  # fmt: skip
    percent = 100
    for ask in told:
        percent = -(
            -percent * dict((f.asks, f.percent) for f in PRICE.factors).get(ask, 100) // 100
        )
    assert charge.cost_nusd == -(-alone * percent // 100) + calls * SEARCH.call_nusd


def test_a_screenshot_is_not_held_for_by_its_bytes() -> None:
    data = picture(1_280, 800)
    padded = data[:-4] + "A" * 2_000_000  # as a photograph would be
    source = {"type": "base64", "media_type": "image/png", "data": padded}
    body = {
        "max_tokens": 1_000,
        "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}],
    }
    raw = json.dumps(body).encode()
    measured = measure(
        "messages", decode("messages", raw), body=raw, reader=TextReader(()), size_of=size_of
    )
    facts = Facts(now=0, signed=Signed(tier="pro"), measured=measured)

    # 1,366 tokens of picture, 151 bytes around it, and the answer.
    assert 0.015 < cost_bound_nusd(a_priced_model(), facts) / 1e9 < 0.03


# ── over the wire ──────────────────────────────────────────────────────────────────────────────

ROUTE = Route(name="default", models=("one",))


@asynccontextmanager
async def world(
    folder: Path,
    behave: Behaviour,
    *models: Model,
    **changes: Any,  # noqa: ANN401
) -> AsyncGenerator[tuple[Running, Upstream]]:
    models = models or (a_priced_model(),)
    policy = a_policy(
        models=models,
        routes=(Route(name="default", models=tuple(model.id for model in models)),),
        last_resort=(),
    )

    def native(providers: dict[str, Any]) -> None:
        providers["acme"]["dialect"] = "anthropic"

    async with (
        running_upstream(behave) as acme,
        running_validator(
            folder, {"acme": acme}, policy=policy, change=native, **changes
        ) as validator,
    ):
        yield validator, acme


def a_message(**usage: object) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        body = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [{"type": "text", "text": "Four."}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 10, "output_tokens": 5, **usage},
        }  # fmt: skip
        await exchange.respond(200, json.dumps(body).encode())

    return behave


ASKED = {"model": "auto", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
USUAL_NUSD = 10 * 3_000 + 5 * 15_000


async def ask(here: Running, **fields: object) -> Any:  # noqa: ANN401 - a response
    return await here.client.post("/v1/messages", json={**ASKED, **fields}, headers=here.headers())


@pytest.mark.parametrize(
    ("fields", "usage", "cost"),
    [
        ({"service_tier": "priority"}, {"service_tier": "priority"}, 2 * USUAL_NUSD),
        ({"service_tier": "priority"}, {"service_tier": "standard"}, USUAL_NUSD),
        ({"service_tier": "flex"}, {}, -(-USUAL_NUSD // 2)),
        ({"speed": "fast"}, {"speed": "fast"}, 6 * USUAL_NUSD),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            {"server_tool_use": {"web_search_requests": 2}},
            USUAL_NUSD + 2 * SEARCH.call_nusd,
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, {}, USUAL_NUSD),
    ],
)
async def test_what_was_ordered_is_held_and_what_was_told_is_billed(
    tmp_path: Path, fields: dict[str, Any], usage: dict[str, Any], cost: int
) -> None:
    async with world(tmp_path, a_message(**usage)) as (here, _):
        response = await ask(here, **fields)
        record = await here.record(response)

        assert response.status_code == 200, response.text
        assert (record.cost_nusd, record.unconfirmed_nusd) == (cost, 0)
        assert await here.settled() == (cost, 0)


async def test_a_provider_is_told_how_often_it_may_call_what_it_runs(tmp_path: Path) -> None:
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 50}
    async with world(tmp_path, a_message()) as (here, acme):
        await ask(here, tools=[tool, {"name": "mine", "input_schema": {"type": "object"}}])

        sent = acme.seen[0].json["tools"]
        assert sent[0]["max_uses"] == SEARCH.calls
        assert sent[1] == {"name": "mine", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"service_tier": "scale"}, "unpriced", "service_tier"),
        ({"inference_geo": "us"}, "unpriced", "inference_geo"),
        ({"tools": [{"type": "code_execution_20250825", "name": "c"}]}, "unbounded_input", "tools[0]"),
        ({"mcp_servers": [{"type": "url", "url": "https://a"}]}, "unbounded_input", "mcp_servers"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}]}]},
            "unbounded_input",
            "messages[0].content[0]",
        ),
    ],
)  # fmt: skip
async def test_what_no_model_prices_is_refused_with_its_place(
    tmp_path: Path, fields: dict[str, Any], code: str, param: str
) -> None:
    async with world(tmp_path, a_message()) as (here, acme):
        response = await ask(here, **fields)

        details = response.json()["error"]["details"]
        assert (response.status_code, details["error_code"], details["param"]) == (400, code, param)
        assert not acme.seen
        assert (await here.record(response)).cost_nusd == 0


async def test_a_model_that_does_not_price_it_is_kept_out_and_says_so(tmp_path: Path) -> None:
    plain = a_model("plain", cents_in=1, endpoints=ENDPOINTS, capabilities=ALL)
    async with world(tmp_path, a_message(), plain, a_priced_model()) as (here, _):
        response = await ask(here, service_tier="priority")
        record = await here.record(response)
        explained = await here.client.get(f"/v1/decisions/{record.id}", headers=here.headers())

        assert record.model == "one"
        assert "service_tier=priority" in explained.text


async def test_a_bound_of_the_policy_lets_a_reference_in(tmp_path: Path) -> None:
    film = {"type": "video_url", "video_url": {"url": "https://a.example/film.mp4"}}
    bounded = a_priced_model(part_tokens=(("video_url", 50_000),))
    async with world(tmp_path, a_message(input_tokens=40_000), bounded) as (here, _):
        response = await ask(here, messages=[{"role": "user", "content": [film]}])
        record = await here.record(response)

        assert response.status_code == 200
        assert record.unconfirmed_nusd == 0
        assert record.reserved_nusd >= record.cost_nusd > 40_000 * 3_000


# ── thinking ───────────────────────────────────────────────────────────────────────────────────


def thinking(budget: int, *, most: int) -> dict[str, Any]:
    return {"max_tokens": most, "thinking": {"type": "enabled", "budget_tokens": budget}}


async def test_a_model_that_cannot_think_that_much_is_left_out(tmp_path: Path) -> None:
    small = a_priced_model(max_output_tokens=8_192)
    large = a_model(
        "large", price=PRICE, endpoints=ENDPOINTS, context_tokens=400_000,
        max_output_tokens=64_000, cents_in=900,
    )  # fmt: skip
    async with world(tmp_path, a_message(), small, large) as (here, acme):
        response = await ask(here, **thinking(31_999, most=32_000))

        assert response.status_code == 200
        assert (await here.record(response)).model == "large"
        assert acme.seen[0].json["max_tokens"] == 32_000


async def test_money_cuts_no_answer_below_its_thinking(tmp_path: Path) -> None:
    large = a_priced_model(max_output_tokens=64_000)
    day = [{"window": "day", "limit_usd": Decimal("0.20")}]  # 13,000 tokens of answer
    async with world(tmp_path, a_message(), large, budgets={"default": day}) as (here, acme):
        refused = await ask(here, **thinking(31_999, most=32_000))
        served = await ask(here, **thinking(1_024, most=32_000))

        assert refused.status_code == 402
        assert served.status_code == 200
        assert [seen.json["max_tokens"] > 1_024 for seen in acme.seen] == [True]


async def test_nobody_can_think_that_much(tmp_path: Path) -> None:
    async with world(tmp_path, a_message()) as (here, _):
        response = await ask(here, **thinking(31_999, most=32_000))

        details = response.json()["error"]["details"]
        assert (response.status_code, details["error_code"]) == (400, "output_too_small")


# ── the record ─────────────────────────────────────────────────────────────────────────────────


async def test_a_served_request_is_recorded_whatever_fails_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("boom")

    async with (
        running_upstream(answering()) as acme,
        running_validator(tmp_path, {"acme": acme}, records={"prompts": True}) as here,
    ):
        recorder = here.services.recorder
        monkeypatch.setattr(recorder, "with_prompt", explode)
        monkeypatch.setattr(recorder, "_observers", (explode,))
        response = await here.chat(HELLO)
        record = await here.record(response)

        assert response.status_code == 200
        assert record.cost_nusd > 0


def searched(action: str) -> dict[str, Any]:
    return {
        "type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": action},
    }  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_searches_of_the_responses_api_are_counted_by_its_items(
    tmp_path: Path, streamed: bool
) -> None:
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    output = [searched("search"), searched("open_page"), searched("search")]
    whole = {"object": "response", "output": output, "usage": usage, "service_tier": "priority"}

    async def behave(exchange: Exchange) -> None:
        if not streamed:
            await exchange.respond(200, json.dumps(whole).encode())
            return
        await exchange.start_stream()
        done = [{"type": "response.output_item.done", "item": item} for item in output]
        # Some backends end with no items at all.
        end = {"type": "response.completed", "response": {**whole, "output": []}}
        for one in (*done, {"type": "response.output_text.delta", "delta": "4"}, end):
            await exchange.chunk(b"data: " + json.dumps(one).encode() + b"\n\n")
        await exchange.end_stream()

    policy = a_policy(models=(a_priced_model(),), routes=(ROUTE,), last_resort=())
    async with (
        running_upstream(behave) as acme,
        running_validator(tmp_path, {"acme": acme}, policy=policy) as here,
    ):
        response = await here.client.post(
            "/v1/responses",
            json={
                "model": "auto", "input": "News?", "max_output_tokens": 50, "stream": streamed,
                "tools": [{"type": "web_search"}], "service_tier": "priority",
            },
            headers=here.headers(),
        )  # fmt: skip
        record = await here.record(response)

        assert response.status_code == 200, response.text
        assert record.cost_nusd == 2 * USUAL_NUSD + 2 * SEARCH.call_nusd
        assert record.unconfirmed_nusd == 0
        assert acme.seen[0].json["max_tool_calls"] == SEARCH.calls
