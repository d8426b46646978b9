"""One trace from the caller through the validator to the provider, as a collector gets it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from support.collector import Collector, Span, running_collector
from support.site import tree_of
from support.upstream import Upstream, answering, failing
from support.validator import HELLO, running_validator, serving
from waypost.cli.spans import Spans
from waypost.client import AsyncWaypost
from waypost.edge.serving.app import create_app
from waypost.edge.serving.request_spans import Traced
from waypost.shared.wire.trace_context import begin, traceparent

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID, CALLER_SPAN = PARENT.split("-")[1:3]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


def _tracing(collector: Collector, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"endpoint": collector.url, "headers": {"x-key": "ACME_KEY"}, **changes}


def _by_name(spans: list[Span]) -> dict[str, Span]:
    return {span.name: span for span in spans}


@pytest.mark.anyio
async def test_a_trace_reaches_from_the_caller_to_the_provider_with_a_span_per_step(
    tmp_path: Path, acme: Upstream, collector: Collector
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme}, tracing=_tracing(collector)
    ) as validator:
        response = await validator.chat(headers={"traceparent": PARENT})
        record = await validator.record(response)

    spans = _by_name(collector.spans)
    assert {span.trace_id for span in collector.spans} == {TRACE_ID}
    whole = spans["waypost chat.completions"]
    assert whole.parent_id == CALLER_SPAN
    for step in ("authenticate", "understand", "decide", "reserve", "forward", "settle"):
        assert spans[step].parent_id == whole.span_id
        assert whole.start_ns <= spans[step].start_ns <= spans[step].end_ns
    ask = spans["chat acme-small"]
    assert ask.parent_id == spans["forward"].span_id
    assert ask.attributes["gen_ai.operation.name"] == "chat"
    assert ask.attributes["gen_ai.provider.name"] == "acme"
    assert ask.attributes["gen_ai.request.model"] == "acme-small"
    assert ask.attributes["gen_ai.usage.input_tokens"] == 20
    assert ask.attributes["gen_ai.usage.output_tokens"] == 7
    assert whole.attributes["waypost.decision.id"] == response.headers["x-request-id"]
    assert whole.attributes["waypost.verdict"] == "decided"
    # The provider was told of the very span that the collector has.
    assert acme.seen[0].headers["traceparent"] == f"00-{TRACE_ID}-{ask.span_id}-01"
    assert (record.trace_id, record.attempts[0].span_id) == (TRACE_ID, ask.span_id)
    assert collector.resource["service.name"] == "waypost"
    assert collector.headers[0]["x-key"] == "sk-acme-secret"


@pytest.mark.anyio
async def test_one_trace_leads_from_the_app_through_edge_and_validator_to_the_provider(
    tmp_path: Path, acme: Upstream, collector: Collector
) -> None:
    app = TracerProvider().get_tracer("app")
    spans = Spans.to(collector.url, headers={}, service="waypost-edge", version="1")
    public = tmp_path / "public"
    async with (
        running_validator(tmp_path, {"acme": acme}, tracing=_tracing(collector)) as validator,
        serving(Traced(create_app(public), spans, share=0.0)) as edge,
    ):
        for path, data in tree_of(validator.publisher).items():
            file = public / path[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        async with AsyncWaypost(
            manifest_url=f"{edge}/v1/prod/bundle.json",
            root=validator.publisher.root,
            token=validator.bearer().removeprefix("Bearer "),
            base_url=validator.url,
            cache_dir=False,
            refresh_interval_s=None,
        ) as wp:
            with app.start_as_current_span("ask") as span:
                here = span.get_span_context()
                assert await wp.refresh()
                async with wp.http_client() as client:
                    await client.post(f"{wp.base_url}/chat/completions", json=HELLO)
                thin = {
                    **validator.headers(),
                    "traceparent": f"00-{here.trace_id:032x}-{here.span_id:016x}-01",
                }
                await validator.client.post(f"{edge}/v1/decide", json=HELLO, headers=thin)
            assert await wp.refresh()  # in no span of the app's, so in no trace

    found = _by_name(collector.spans)
    assert {one.trace_id for one in collector.spans} == {f"{here.trace_id:032x}"}
    bundle, decided = found["waypost edge bundle"], found["waypost edge decide"]
    for one in (bundle, decided, found["waypost chat.completions"]):
        assert one.parent_id == f"{here.span_id:016x}"
    assert bundle.attributes["waypost.channel"] == "prod"
    assert bundle.attributes["http.response.status_code"] == 200
    assert decided.attributes["waypost.model"] == "small"
    asked = found["chat acme-small"]
    assert acme.seen[0].headers["traceparent"] == f"00-{asked.trace_id}-{asked.span_id}-01"


@pytest.mark.anyio
async def test_each_try_has_a_span_and_failures_say_so(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, collector: Collector
) -> None:
    acme.behave, medcloud.behave = failing(500), answering()
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, tracing=_tracing(collector)
    ) as validator:
        record = await validator.record(
            await validator.chat({**HELLO, "stream": True}, headers={"traceparent": PARENT})
        )
    tries = [span for span in collector.spans if "gen_ai.request.model" in span.attributes]
    assert len(tries) == len(record.attempts) > 1
    assert {span.attributes["error.type"] for span in tries[:-1]} == {"server_error"}
    assert all(span.is_error for span in tries[:-1])
    assert "error.type" not in tries[-1].attributes
    assert tries[-1].attributes["gen_ai.response.time_to_first_chunk"] > 0


@pytest.mark.anyio
async def test_a_prompt_is_in_no_span(tmp_path: Path, acme: Upstream, collector: Collector) -> None:
    secret = "the-secret-of-this-prompt"
    async with running_validator(
        tmp_path, {"acme": acme}, tracing=_tracing(collector, share=1)
    ) as validator:
        await validator.chat({**HELLO, "messages": [{"role": "user", "content": secret}]})
    assert collector.spans
    assert secret not in repr(collector.spans)


@pytest.mark.anyio
async def test_a_caller_that_does_not_record_is_not_traced_and_the_header_passes(
    tmp_path: Path, acme: Upstream, collector: Collector
) -> None:
    unsampled = PARENT[:-2] + "00"
    async with running_validator(
        tmp_path, {"acme": acme}, tracing=_tracing(collector, share=1)
    ) as validator:
        record = await validator.record(await validator.chat(headers={"traceparent": unsampled}))
    assert collector.spans == []
    assert record.trace_id is None
    assert acme.seen[0].headers["traceparent"] == unsampled


@pytest.mark.anyio
async def test_a_collector_that_is_away_costs_no_answer(tmp_path: Path, acme: Upstream) -> None:
    tracing = {"endpoint": "http://127.0.0.1:1/v1/traces", "share": 1}
    async with running_validator(tmp_path, {"acme": acme}, tracing=tracing) as validator:
        assert (await validator.chat()).status_code == 200


def test_without_tracing_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, waypost.validator.startup.worker, waypost.client\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ── the header ─────────────────────────────────────────────────────────────────────────────────


@given(st.binary(max_size=80), st.integers(0, 2**192 - 1))
def test_no_header_breaks_anything_or_gets_through(header: bytes, randomness: int) -> None:
    trace = begin(header, share=1, rng=0.5, randomness=randomness)
    assert trace is not None
    assert trace.parent_span_id is None
    out = traceparent(trace, trace.span_id)
    again = begin(out, share=0, rng=0.5, randomness=randomness)
    assert again is not None
    assert (again.trace_id, again.parent_span_id) == (trace.trace_id, trace.span_id)


@pytest.mark.parametrize(
    ("header", "is_traced"),
    [
        (PARENT, True),
        (PARENT[:-2] + "00", False),
        (PARENT.upper(), False),
        ("00-" + "0" * 32 + PARENT[35:], False),
        (PARENT + "-more", False),
        (None, False),
    ],
)
def test_the_caller_decides_and_else_the_share(header: str | None, is_traced: bool) -> None:
    raw = None if header is None else header.encode()
    assert (begin(raw, share=0.1, rng=0.5, randomness=1 << 70) is not None) == is_traced
