# ruff: noqa: ANN401 - one text tests two libraries, whose types have nothing in common
"""What goes over the wire, where it goes, and what an answer teaches.

Each test runs four times: blocking and awaiting, over httpx and over httpx2.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from msgspec import Struct
from opentelemetry.sdk.trace import TracerProvider

from support.worlds import a_model, a_policy
from waypost.client import AsyncWaypost, Waypost
from waypost.client.testing import (
    FakeValidator,
    SeenRequest,
    StaticManifest,
    unsigned_token,
)
from waypost.shared.contracts import Endpoint, Policy, Route

BODY = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}
TOKEN = unsigned_token(tier="free")

Handler = Callable[[Any], Any]


class Answered(Struct):
    status_code: int
    headers: Mapping[str, str]
    content: bytes


class World:
    """One client over one library, spoken to from a blocking test."""

    def __init__(self, lib: Any, awaits: bool) -> None:
        self.lib = lib
        self.awaits = awaits
        self.wp: Any = None

    def make(self, policy: Policy | None = None, **options: Any) -> "World":
        manifest = StaticManifest(policy or a_policy())
        defaults = {
            "token": TOKEN,
            "manifest": manifest,
            "base_url": "https://validator.test",
            "refresh_interval_s": None,
        }
        self.wp = (AsyncWaypost if self.awaits else Waypost)(**{**defaults, **options})
        return self

    def post(
        self, handler: Handler, *, url: str = "", body: Any = BODY, headers: Any = None
    ) -> Answered:
        """POST through ``http_client`` to ``handler``, which answers with the library's types."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = url or f"{self.wp.base_url}/chat/completions"
        made = self.wp.http_client if self.lib is httpx else self.wp.httpx2_client
        transport = self.lib.MockTransport(handler)

        async def awaiting() -> Answered:
            async with made(transport=transport) as client:
                return _answered(await client.post(url, content=content, headers=headers))

        if self.awaits:
            return anyio.run(awaiting)
        with made(transport=transport) as client:
            return _answered(client.post(url, content=content, headers=headers))

    def asks(self, validator: FakeValidator, **request: Any) -> tuple[Answered, SeenRequest]:
        answer = self.post(self.handler(validator), **request)
        return answer, validator.requests[-1]

    def handler(self, validator: FakeValidator) -> Handler:
        def handle(request: Any) -> Any:
            headers = dict(request.headers)
            status, answer, body = validator.answer(request.url.path, headers, request.content)
            return self.lib.Response(status, headers=answer, content=body)

        return handle


def _answered(response: Any) -> Answered:
    return Answered(response.status_code, response.headers, response.content)


@pytest.fixture(
    params=[(httpx, False), (httpx, True), (httpx2, False), (httpx2, True)],
    ids=["httpx", "httpx-async", "httpx2", "httpx2-async"],
)
def world(request: pytest.FixtureRequest) -> World:
    return World(*request.param)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ── what is added ──────────────────────────────────────────────────────────────────────────────


def test_a_request_carries_token_and_proposal(world: World) -> None:
    answer, seen = world.make().asks(FakeValidator(a_policy()))
    assert answer.status_code == 200
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"
    assert seen.headers["waypost-proposal"] == 'model="small", route="short-chat", manifest=42'
    assert "traceparent" not in seen.headers  # the app has no span for it to continue
    assert "waypost-facts" not in seen.headers
    assert seen.decision is not None
    assert seen.decision.verdict == "accepted"


def test_a_request_carries_the_second_choice(world: World) -> None:
    models = (a_model("a"), a_model("b"))
    route = Route(name="fast", models=("a", "b"), optimize="latency")
    policy = a_policy(models=models, routes=(route,), last_resort=())
    _, seen = world.make(policy).asks(FakeValidator(policy))
    assert re.fullmatch(r'model="(a|b)", otherwise="(a|b)", .*', seen.headers["waypost-proposal"])


def test_the_body_goes_out_unchanged(world: World) -> None:
    odd = b'{"messages" :[ {"role":"user","content":"H\\u00e9"}],\n "model":"auto","x":1.50}'
    _, seen = world.make().asks(FakeValidator(a_policy()), body=odd)
    assert seen.body == odd
    assert seen.headers["content-length"] == str(len(odd))


def test_a_model_named_in_the_body_is_the_proposal(world: World) -> None:
    _, seen = world.make().asks(FakeValidator(a_policy()), body={**BODY, "model": "frontier"})
    assert seen.headers["waypost-proposal"] == 'model="frontier", manifest=42'
    assert seen.decision is not None
    assert seen.decision.verdict == "overridden"


def test_a_model_nobody_knows_is_left_for_the_validator_to_name(world: World) -> None:
    _, seen = world.make().asks(FakeValidator(a_policy()), body={**BODY, "model": "gpt-9"})
    assert "waypost-proposal" not in seen.headers


def test_a_proposal_the_caller_wrote_stands(world: World) -> None:
    written = {"Waypost-Proposal": 'model="clinical"'}
    _, seen = world.make().asks(FakeValidator(a_policy()), headers=written)
    assert seen.headers["waypost-proposal"] == 'model="clinical"'


def test_a_trace_under_way_is_continued(world: World) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    _, seen = world.make().asks(FakeValidator(a_policy()), headers={"traceparent": parent})
    assert seen.headers["traceparent"] == parent


def test_inside_a_span_of_the_app_its_trace_is_continued(world: World) -> None:
    with TracerProvider().get_tracer("app").start_as_current_span("ask") as span:
        _, seen = world.make().asks(FakeValidator(a_policy()))
    context = span.get_span_context()
    assert seen.headers["traceparent"] == (
        f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    )


def test_facts_of_client_block_and_header_add_up(world: World) -> None:
    world.make(data="pii", task="write")
    with world.wp.facts(data="phi", tags="beta"):
        _, seen = world.asks(
            FakeValidator(a_policy()),
            headers={"Waypost-Facts": 'interactive=?0, data="eu_personal", task="classify"'},
        )
    declared = seen.declared
    assert declared.data_classes == ("pii", "phi", "eu_personal")
    assert (declared.task, declared.tags, declared.interactive) == ("classify", ("beta",), False)


def test_declared_duties_count_in_the_proposal(world: World) -> None:
    _, seen = world.make().asks(FakeValidator(a_policy()), headers={"Waypost-Facts": 'data="phi"'})
    assert seen.headers["waypost-proposal"].startswith('model="clinical"')


def test_facts_that_do_not_parse_are_never_dropped(world: World) -> None:
    answer, seen = world.make().asks(
        FakeValidator(a_policy()), headers={"Waypost-Facts": 'data="phi'}
    )
    assert seen.headers["waypost-facts"] == 'data="phi'
    assert "waypost-proposal" not in seen.headers
    assert json.loads(answer.content)["error"]["code"] == "header_malformed"


@pytest.mark.parametrize(
    "body",
    [b"not json", b"", b'{"messages":[]}', b'{"messages":[{"role":"user"}],"max_tokens":-1}'],
)
def test_a_body_that_makes_no_sense_is_the_validators_to_refuse(world: World, body: bytes) -> None:
    answer, seen = world.make().asks(FakeValidator(a_policy()), body=body)
    assert seen.body == body
    assert answer.status_code == 400


def test_other_apis_get_token_and_facts_but_no_proposal(world: World) -> None:
    world.make(data="phi")
    _, seen = world.asks(
        FakeValidator(a_policy()),
        url="https://validator.test/v1/embeddings?x=1",
        body={"input": "x"},
    )
    assert seen.path == "/v1/embeddings"
    assert seen.headers["waypost-facts"] == 'data="phi"'
    assert "waypost-proposal" not in seen.headers


# ── never the caller's problem ─────────────────────────────────────────────────────────────────


def no_manifest() -> StaticManifest:
    manifest = StaticManifest(a_policy())
    manifest.load = lambda: None  # type: ignore[method-assign]
    return manifest


@pytest.mark.parametrize("manifest", [no_manifest(), StaticManifest(a_policy(), expires_at=1)])
def test_without_a_valid_manifest_the_validator_decides(
    world: World, manifest: StaticManifest
) -> None:
    world.make(manifest=manifest)
    answer, seen = world.asks(FakeValidator(a_policy()))
    assert answer.status_code == 200
    assert "waypost-proposal" not in seen.headers
    assert seen.decision is not None
    assert seen.decision.verdict == "decided"


def test_where_no_endpoint_is_known_the_manifest_is_waited_for(world: World) -> None:
    manifest = StaticManifest(a_policy(endpoints=(Endpoint(id="eu", url="https://eu.example/v1"),)))
    manifest.load = lambda: None  # type: ignore[method-assign]
    world.make(manifest=manifest, base_url=None)
    _, seen = world.asks(FakeValidator(a_policy()))
    assert seen.headers["host"] == "eu.example"


def test_where_no_endpoint_can_be_known_the_error_says_so(world: World) -> None:
    from waypost.client import WaypostError

    world.make(manifest=no_manifest(), base_url=None)
    manifest_without_endpoints = world.asks
    with pytest.raises(WaypostError, match="No validator is known yet") as caught:
        manifest_without_endpoints(FakeValidator(a_policy()))
    assert caught.value.code == "no_endpoint"


# ── tokens ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url", ["https://other.example/v1/chat/completions", "https://validator.test.evil.example/v1/x"]
)
def test_a_token_is_sent_to_validators_only(world: World, url: str) -> None:
    seen: list[Any] = []

    def elsewhere(request: Any) -> Any:
        seen.append(dict(request.headers))
        return world.lib.Response(200)

    world.make(data="phi").post(elsewhere, url=url)
    assert not seen[0].keys() & {"authorization", "waypost-proposal", "waypost-facts"}


def test_a_redirect_does_not_carry_the_token_away(world: World) -> None:
    def redirecting(request: Any) -> Any:
        assert request.url.host == "validator.test"
        return world.lib.Response(307, headers={"Location": "https://evil.example/v1/x"})

    assert world.make().post(redirecting).status_code == 307


def test_without_a_token_source_the_callers_own_token_is_used(world: World) -> None:
    own = unsigned_token(tier="enterprise")
    world.make(token=None)
    _, seen = world.asks(
        FakeValidator(a_policy()),
        headers={"Authorization": f"Bearer {own}"},
        body={**BODY, "messages": [{"role": "user", "content": "Prove it."}]},
    )
    assert seen.headers["authorization"] == f"Bearer {own}"
    assert seen.headers["waypost-proposal"].startswith('model="frontier"')


def test_the_sdks_placeholder_key_is_replaced(world: World) -> None:
    _, seen = world.make().asks(
        FakeValidator(a_policy()), headers={"authorization": "Bearer unused"}
    )
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"


class Source:
    """Hands out tokens, a new one each time."""

    def __init__(self, *lifetimes_s: int) -> None:
        self.tokens = [
            unsigned_token(lifetime_s=lifetime_s, tenant=f"t{n}")
            for n, lifetime_s in enumerate(lifetimes_s)
        ]
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return self.tokens[min(self.asked, len(self.tokens)) - 1]


def refusing(world: World, refused: list[str], seen: list[str]) -> Handler:
    def handle(request: Any) -> Any:
        token = request.headers["authorization"].removeprefix("Bearer ")
        seen.append(token)
        status = 401 if token in refused else 200
        return world.lib.Response(status, content=request.content)

    return handle


def test_a_token_function_is_asked_once(world: World) -> None:
    source, seen = Source(600, 600), list[str]()
    world.make(token=source)
    for _ in range(3):
        world.post(refusing(world, [], seen))
    assert source.asked == 1
    assert set(seen) == {source.tokens[0]}


def test_a_token_is_renewed_before_it_lapses(world: World) -> None:
    source, seen = Source(0, 600), list[str]()
    world.make(token=source)
    for _ in range(2):
        world.post(refusing(world, [], seen))
    assert seen == source.tokens


def test_a_refused_token_is_replaced_once_and_the_request_repeated(world: World) -> None:
    source, seen = Source(600, 600), list[str]()
    world.make(token=source)
    answer = world.post(refusing(world, source.tokens[:1], seen))
    assert answer.status_code == 200
    assert json.loads(answer.content) == BODY
    assert seen == source.tokens


def test_a_token_that_stays_refused_ends_in_the_401(world: World) -> None:
    source, seen = Source(600, 600, 600), list[str]()
    world.make(token=source)
    assert world.post(refusing(world, source.tokens, seen)).status_code == 401
    assert len(seen) == 2


def test_the_same_token_again_is_not_tried_again(world: World) -> None:
    source, seen = Source(600), list[str]()
    world.make(token=source)
    assert world.post(refusing(world, source.tokens, seen)).status_code == 401
    assert len(seen) == 1


def test_a_fixed_token_that_is_refused_is_not_repeated(world: World) -> None:
    seen: list[str] = []
    world.make()
    assert world.post(refusing(world, [TOKEN], seen)).status_code == 401
    assert len(seen) == 1


def test_a_failing_renewal_leaves_the_401_standing(world: World) -> None:
    first = unsigned_token()
    tokens = iter([first])
    world.make(token=lambda: next(tokens, "") or 1 / 0)
    assert world.post(refusing(world, [first], [])).status_code == 401


def test_a_token_source_that_fails_at_first_fails_the_request(world: World) -> None:
    def broken() -> str:
        raise OSError("the token service is down")

    with pytest.raises(OSError, match="token service"):
        world.make(token=broken).post(refusing(world, [], []))


def test_coroutine_functions_give_tokens_too() -> None:
    world = World(httpx, awaits=True)
    asked = 0

    async def source() -> str:
        nonlocal asked
        asked += 1
        await anyio.lowlevel.checkpoint()
        return TOKEN

    world.make(token=source)
    _, seen = world.asks(FakeValidator(a_policy()))
    assert (asked, seen.headers["authorization"]) == (1, f"Bearer {TOKEN}")


@pytest.mark.anyio
async def test_requests_at_the_same_time_share_one_renewal() -> None:
    asked = 0

    async def slow_source() -> str:
        nonlocal asked
        asked += 1
        await anyio.sleep(0.01)
        return TOKEN

    wp = World(httpx, awaits=True).make(token=slow_source).wp
    validator = FakeValidator(a_policy())
    async with (
        wp.http_client(transport=validator.transport()) as client,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(20):
            tasks.start_soon(lambda: client.post(f"{wp.base_url}/chat/completions", json=BODY))
    assert (asked, len(validator.requests)) == (1, 20)


# ── endpoints ──────────────────────────────────────────────────────────────────────────────────

TWO = a_policy(
    endpoints=(
        Endpoint(id="near", url="https://near.example/v1", region="eu"),
        Endpoint(id="far", url="https://far.example/v1", region="us"),
    )
)
EU_TOKEN = unsigned_token(region="eu")


class Network:
    """Endpoints by host; those in ``dead`` cannot be connected to."""

    def __init__(self, world: World, **errors: Exception) -> None:
        self.validator = FakeValidator(TWO)
        self.asked: list[str] = []
        self.errors = errors
        self._answer = world.handler(self.validator)

    def __call__(self, request: Any) -> Any:
        host = request.url.host.removesuffix(".example")
        self.asked.append(host)
        if host in self.errors:
            raise self.errors[host]
        return self._answer(request)


def test_the_callers_region_comes_first(world: World) -> None:
    network = Network(world)
    world.make(TWO, token=EU_TOKEN).post(network)
    assert network.asked == ["near"]
    assert network.validator.requests[0].headers["host"] == "near.example"


@pytest.mark.parametrize("error", ["ConnectError", "ConnectTimeout"])
def test_a_dead_endpoint_is_passed_over_and_then_left_alone(world: World, error: str) -> None:
    network = Network(world, near=getattr(world.lib, error)("nobody there"))
    world.make(TWO, token=EU_TOKEN, base_url=None)
    assert world.post(network).status_code == 200
    assert world.post(network).status_code == 200
    assert network.asked == ["near", "far", "far"]
    assert world.wp.choose("Hello").endpoint == "https://far.example/v1"


def test_once_something_was_sent_no_other_endpoint_gets_it(world: World) -> None:
    network = Network(world, near=world.lib.ReadTimeout("too slow"))
    with pytest.raises(world.lib.ReadTimeout):
        world.make(TWO, token=EU_TOKEN, base_url=None).post(network)
    assert network.asked == ["near"]


def test_when_all_endpoints_are_dead_the_caller_sees_a_connect_error(world: World) -> None:
    dead = world.lib.ConnectError("nobody there")
    network = Network(world, near=dead, far=dead)
    with pytest.raises(world.lib.ConnectError):
        world.make(TWO, token=EU_TOKEN, base_url=None).post(network)
    assert network.asked == ["near", "far"]


def test_the_configured_validator_is_the_last_resort(world: World) -> None:
    dead = world.lib.ConnectError("nobody there")
    network = Network(world, near=dead, far=dead)
    assert (
        world.make(TWO, token=EU_TOKEN, base_url="https://spare.example").post(network).status_code
        == 200
    )
    assert network.asked == ["near", "far", "spare"]


def test_a_gateway_without_a_validator_behind_it_counts_as_dead(world: World) -> None:
    asked: list[str] = []

    def gateway(request: Any) -> Any:
        asked.append(request.url.host)
        return world.lib.Response(503 if request.url.host == "near.example" else 200)

    world.make(TWO, token=EU_TOKEN, base_url=None)
    assert world.post(gateway).status_code == 200
    assert world.post(gateway).status_code == 200
    assert asked == ["near.example", "far.example", "far.example"]


@pytest.mark.parametrize("status", [502, 504])
def test_what_may_have_been_done_is_not_done_again(world: World, status: int) -> None:
    asked: list[str] = []

    def gateway(request: Any) -> Any:
        asked.append(request.url.host)
        return world.lib.Response(status)

    assert world.make(TWO, token=EU_TOKEN, base_url=None).post(gateway).status_code == status
    assert asked == ["near.example"]


def test_when_nothing_can_be_reached_trying_again_ends(world: World) -> None:
    asked: list[str] = []

    def dead(request: Any) -> Any:
        asked.append(request.url.host)
        raise world.lib.ConnectError("refused")

    world.make(TWO, token=EU_TOKEN, base_url=None)
    for _ in range(20):
        with pytest.raises(world.lib.ConnectError):
            world.post(dead)
    assert len(asked) == 20 + 5, "each once, and five times another"


def test_of_endpoints_in_a_region_the_near_one_is_asked(world: World, clock: Clock) -> None:
    """The round trip is what is left of the wait when the validator's own time is taken off."""
    asked: list[str] = []

    def far_and_near(request: Any) -> Any:
        asked.append(request.url.host)
        clock.now_s += 2.4 if request.url.host == "a.example" else 2.02
        return world.lib.Response(
            200, headers={"Server-Timing": "decide;dur=0.5, forward;dur=2000"}
        )

    endpoints = tuple(Endpoint(id=name, url=f"https://{name}.example/v1") for name in "ab")
    world.make(a_policy(endpoints=endpoints), base_url=None)
    world.wp._core.monotonic = clock
    for _ in range(6):
        world.post(far_and_near)
    assert set(asked[2:]) == {"b.example"} if "a.example" in asked else set(asked) == {"b.example"}


# ── what answers teach ─────────────────────────────────────────────────────────────────────────

STREAM = "text/event-stream"


def a_race(world: World, clock: Clock) -> World:
    models = (a_model("a"), a_model("b"))
    route = Route(name="fast", models=("a", "b"), optimize="latency")
    world.make(a_policy(models=models, routes=(route,), last_resort=()))
    world.wp._core.monotonic = clock
    return world


def answering(world: World, clock: Clock, *, after_s: float = 0.0, **answer: Any) -> Handler:
    """Answers ``after_s`` by the clock; says which model did, by the decision header."""

    def handle(request: Any) -> Any:
        proposed = request.headers["waypost-proposal"].split('"')[1]
        clock.now_s += after_s
        verdict, model = answer.get("verdict", "accepted"), answer.get("model", proposed)
        reason = answer.get("reason", "proposal_admissible")
        headers = {
            "Content-Type": answer.get("kind", STREAM),
            "Waypost-Decision": f'id="1", verdict={verdict}, model="{model}", reason="{reason}"',
            **answer.get("headers", {}),
        }
        body = answer.get("body", b"data: 1\n\n")
        return world.lib.Response(answer.get("status", 200), headers=headers, content=body)

    return handle


def expected_ms(world: World, model: str) -> float:
    core = world.wp._core
    return float(core.models.estimate(model).ttft_ms(800.0, core.monotonic()))


def proposed_of(world: World, model: str) -> dict[str, Any]:
    return {"body": {**BODY, "model": model}}


def test_the_wait_for_the_first_piece_of_a_stream_is_remembered(world: World, clock: Clock) -> None:
    a_race(world, clock).post(answering(world, clock, after_s=3.0), **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx((800 + 3_000) / 2)
    assert world.wp.choose("Hello").model == "b"


def test_how_long_a_whole_answer_took_says_nothing_of_its_first_token(
    world: World, clock: Clock
) -> None:
    whole = answering(world, clock, after_s=30.0, kind="application/json")
    a_race(world, clock).post(whole, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == 800


def test_a_whole_answer_that_says_its_length_tells_how_slow_the_model_is(
    world: World, clock: Clock
) -> None:
    usage = b'{"choices": [], "usage": {"completion_tokens": 60, "total_tokens": 99}}'
    # 800 ms and 60 tokens at 60 a second were expected: it took three times as long.
    whole = answering(world, clock, after_s=5.4, kind="application/json", body=usage)
    a_race(world, clock).post(whole, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(800 * (1 + 3) / 2)
    assert world.wp._core.models.estimate("a").tpot_ratio_now(clock.now_s) == pytest.approx(1.6)


def test_the_pace_of_a_stream_that_says_its_length_is_remembered(
    world: World, clock: Clock
) -> None:
    class Slow(world.lib.SyncByteStream, world.lib.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            yield b"data: 1\n\n"
            clock.now_s += 4.0
            yield b'data: {"usage": {"completion_tokens": 120}}\n\n'

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for chunk in self:
                yield chunk

    def slow(request: Any) -> Any:
        answer = answering(world, clock, after_s=0.8)(request)
        return world.lib.Response(200, headers=answer.headers, stream=Slow())

    a_race(world, clock).post(slow, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(800)
    assert world.wp._core.models.estimate("a").tpot_ratio_now(clock.now_s) == pytest.approx(1.3)


def test_the_model_that_answered_is_the_one_that_is_timed(world: World, clock: Clock) -> None:
    overridden = answering(
        world, clock, after_s=3.0, model="b", verdict="overridden", reason="duty_unmet"
    )
    a_race(world, clock).post(overridden, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == 800
    assert expected_ms(world, "b") == pytest.approx((800 + 3_000) / 2)


def test_a_model_the_validator_had_to_replace_has_failed(world: World, clock: Clock) -> None:
    fell_back = answering(world, clock, after_s=0.5, model="b")
    a_race(world, clock).post(fell_back, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(5_000)
    assert expected_ms(world, "b") == 800, "the wait for a is not b's"


def test_what_the_validator_knows_to_be_down_is_believed(world: World, clock: Clock) -> None:
    out = answering(world, clock, model="b", verdict="overridden", reason="out_of_service")
    a_race(world, clock).post(out, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(5_000)


def test_a_failed_answer_costs_its_model_and_retry_after_more(world: World, clock: Clock) -> None:
    failed = answering(world, clock, status=503, headers={"Retry-After": "60"})
    a_race(world, clock).post(failed, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(60_000)
    assert not world.wp._core.endpoints.is_ejected("https://validator.test", clock.now_s)


def test_an_outage_of_all_providers_costs_what_was_proposed(world: World, clock: Clock) -> None:
    header = {"Waypost-Decision": 'id="1", verdict=refused, reason="upstream_unavailable"'}
    refused = answering(world, clock, status=503, headers=header)
    a_race(world, clock).post(refused, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(5_000)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 429])
def test_what_the_caller_did_wrong_is_not_the_models_fault(
    world: World, clock: Clock, status: int
) -> None:
    refused = answering(world, clock, status=status)
    a_race(world, clock).post(refused, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == 800


def test_a_timeout_is_a_failure_of_the_model(world: World, clock: Clock) -> None:
    def too_slow(request: Any) -> Any:
        clock.now_s += 20
        raise world.lib.ReadTimeout("too slow")

    with pytest.raises(world.lib.ReadTimeout):
        a_race(world, clock).post(too_slow, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(20_000)


def test_a_stream_that_breaks_off_is_a_failure_of_the_model(world: World, clock: Clock) -> None:
    class Breaking(world.lib.SyncByteStream, world.lib.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            yield b"data: 1\n\n"
            raise world.lib.ReadError("reset")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            raise world.lib.ReadError("reset")

    def breaking(request: Any) -> Any:
        answer = answering(world, clock)(request)
        return world.lib.Response(200, headers=answer.headers, stream=Breaking())

    with pytest.raises(world.lib.ReadError):
        a_race(world, clock).post(breaking, **proposed_of(world, "a"))
    assert expected_ms(world, "a") == pytest.approx(5_000)
    assert not world.wp._core.models.estimate("a").active


def test_nothing_stays_under_way_after_an_answer(world: World, clock: Clock) -> None:
    counted: list[int] = []
    inner = answering(world, clock)

    def counting(request: Any) -> Any:
        counted.append(len(world.wp._core.models.estimate("a").active))
        return inner(request)

    a_race(world, clock).post(counting, **proposed_of(world, "a"))
    assert counted == [1]
    assert not world.wp._core.models.estimate("a").active


def test_a_decision_that_does_not_parse_is_ignored(world: World, clock: Clock) -> None:
    garbled = answering(world, clock, headers={"Waypost-Decision": '"""', "Waypost-Manifest": "x"})
    assert a_race(world, clock).post(garbled).status_code == 200


def test_a_client_that_hangs_up_is_not_a_failure(clock: Clock) -> None:
    world = a_race(World(httpx, awaits=False), clock)
    answer = answering(world, clock)

    def endless(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=answer(request).headers, content=repeat(b"data: 1\n\n"))

    transport = httpx.MockTransport(endless)
    url = f"{world.wp.base_url}/chat/completions"
    with (
        world.wp.http_client(transport=transport) as client,
        client.stream("POST", url, json={**BODY, "model": "a"}) as response,
    ):
        assert next(response.iter_raw()) == b"data: 1\n\n"
        assert len(world.wp._core.models.estimate("a").active) == 1
    assert not world.wp._core.models.estimate("a").active
    assert world.wp._core.models.estimate("a").failures == 0


@pytest.mark.anyio
async def test_cancelling_a_request_leaves_nothing_behind(clock: Clock) -> None:
    world = a_race(World(httpx, awaits=True), clock)

    async def never(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    url = f"{world.wp.base_url}/chat/completions"
    async with world.wp.http_client(transport=httpx.MockTransport(never)) as client:
        with anyio.move_on_after(0.05):
            await client.post(url, json={**BODY, "model": "a"})
    assert not world.wp._core.models.estimate("a").active
    assert expected_ms(world, "a") == 800
