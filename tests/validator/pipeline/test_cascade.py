"""Cheap models first: how sure an answer is, when a dearer one is asked, and what all that costs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.upstream import (
    DONE,
    USAGE,
    Behaviour,
    Exchange,
    Upstream,
    answering,
    completion,
    event,
    failing,
    hanging,
    usage_event,
)
from support.validator import HELLO, running_validator
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Cascade, Policy, Route, Signal, SpendLimit
from waypost.shared.records import DecisionRecord
from waypost.shared.scoring.judge import FEATURES, JudgeModel, features, judge
from waypost.validator.pipeline.cascade.answers import Answer, read_answer
from waypost.validator.pipeline.cascade.signals import agreement, confidence

pytestmark = pytest.mark.anyio

CHEAP_NUSD = 20 * 150 + 7 * 600
DEAR_NUSD = 20 * 1_500 + 7 * 6_000


def cascading(signal: Signal = "confidence", threshold: int = 700, **changes: Any) -> Policy:  # noqa: ANN401
    """``small`` at acme, and when it is not sure ``second`` at medcloud, ten times as dear."""
    cascade = Cascade(signal=signal, threshold_per_mille=threshold, **changes)
    # Sure of whatever ends as a sentence does.
    weights = tuple(-10.0 if name == "unfinished" else 0.0 for name in FEATURES)
    return a_policy(
        models=(
            a_model("small"),
            a_model("second", provider="medcloud", cents_in=150, cents_out=600),
        ),
        routes=(Route(name="default", models=("small", "second"), cascade=cascade),),
        last_resort=(),
        judge=JudgeModel(weights=weights, bias=5.0),
    )


def sure(value: float, text: str = "4") -> str:
    return json.dumps({"answer": text, "confidence": value})


def with_logprobs(*logprobs: float) -> Behaviour:
    """Answers, and tells how probable its tokens were if it is asked to."""

    async def behave(exchange: Exchange) -> None:
        assert exchange.seen.json["logprobs"] is True
        tokens = [{"token": "word", "logprob": one} for one in logprobs]
        choice = {
            "index": 0, "message": {"role": "assistant", "content": "word"},
            "finish_reason": "stop", "logprobs": {"content": tokens},
        }  # fmt: skip
        await exchange.respond(200, completion(choices=[choice]))

    return behave


def told(record: DecisionRecord) -> list[tuple[str, str, float | None]]:
    return [(one.model, one.kind, one.confidence) for one in record.attempts]


# ── when the next is asked ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_sure_enough_is_kept(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, stream: bool
) -> None:
    acme.behave = answering(sure(0.9))
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading()
    ) as validator:
        response = await validator.chat({**HELLO, "stream": stream})
        record = await validator.record(response)

    assert "0.9" in response.text
    assert told(record) == [("small", "first", 0.9)]
    assert record.cost_nusd == CHEAP_NUSD
    assert not medcloud.seen


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_not_is_asked_for_again_and_both_are_paid(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, stream: bool
) -> None:
    acme.behave, medcloud.behave = answering(sure(0.3)), answering("Certainly four.")
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading()
    ) as validator:
        response = await validator.chat({**HELLO, "stream": stream})
        record = await validator.record(response)
        spent = await validator.spent()

    assert "Certainly" in response.text
    assert "0.3" not in response.text
    assert told(record) == [("small", "first", 0.3), ("second", "escalation", None)]
    assert record.model == "second"
    assert record.cost_nusd == CHEAP_NUSD + DEAR_NUSD
    assert spent == (record.cost_nusd, 0)


@pytest.mark.parametrize(
    ("signal", "unsure", "certain"),
    [
        ("judge", answering("It is four, or"), answering("It is four.")),
        ("sequence_logprob", with_logprobs(-0.1, -2.0), with_logprobs(-0.1, -0.2)),
        ("answer_logprob", with_logprobs(-2.0, -0.1), with_logprobs(-0.1, -2.0)),
    ],
)
async def test_each_signal_tells_a_sure_answer_from_another(
    tmp_path: Path,
    acme: Upstream,
    medcloud: Upstream,
    signal: Signal,
    unsure: Behaviour,
    certain: Behaviour,
) -> None:
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading(signal)
    ) as validator:
        acme.behave = unsure
        escalated = await validator.record(await validator.chat())
        acme.behave = certain
        kept = await validator.record(await validator.chat())

    assert (escalated.model, kept.model) == ("second", "small")


async def test_an_answer_of_which_the_signal_can_read_nothing_is_not_sure(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = answering("four, surely")
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading()
    ) as validator:
        record = await validator.record(await validator.chat())

    assert told(record) == [("small", "first", None), ("second", "escalation", None)]


async def test_answers_that_agree_are_sure_and_each_is_paid(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    texts = iter(["I make it 5.", "The answer is 4.", "So 4", "1", "2", "3"])

    async def behave(exchange: Exchange) -> None:
        await answering(next(texts))(exchange)

    acme.behave = behave
    policy = cascading("self_consistency", 600, samples=3)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=policy
    ) as validator:
        agreed = await validator.chat()
        record = await validator.record(agreed)
        quarrel = await validator.record(await validator.chat())
        spent = await validator.spent()

    assert "answer is 4" in agreed.text
    assert sorted(one.kind for one in record.attempts) == ["first", "sample", "sample"]
    assert max(one.confidence or 0 for one in record.attempts) == pytest.approx(2 / 3, abs=1e-3)
    assert record.cost_nusd == 3 * CHEAP_NUSD
    assert quarrel.model == "second"
    assert quarrel.cost_nusd == 3 * CHEAP_NUSD + DEAR_NUSD
    assert spent == (record.cost_nusd + quarrel.cost_nusd, 0)


async def test_a_stream_passes_unjudged_where_the_route_says_so(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = answering(sure(0.1))
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading(stream_waits=False)
    ) as validator:
        streamed = await validator.record(await validator.chat({**HELLO, "stream": True}))
        whole = await validator.record(await validator.chat())

    assert (streamed.model, whole.model) == ("small", "second")


# ── when the next cannot be had ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("behave", [failing(500), failing(400, code="bad_tool"), hanging])
async def test_an_unsure_answer_beats_none(
    tmp_path: Path, acme: Upstream, medcloud: Upstream, behave: Behaviour
) -> None:
    acme.behave, medcloud.behave = answering(sure(0.3)), behave
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading()
    ) as validator:
        response = await validator.chat(headers={"Waypost-Deadline-Ms": "600"})
        record = await validator.record(response)
        spent = await validator.spent()

    assert response.status_code == 200
    assert "0.3" in response.text
    assert record.model == "small"
    assert spent == (record.cost_nusd, 0)


async def test_an_account_that_cannot_pay_for_the_next_gets_the_answer_that_it_paid_for(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    acme.behave = answering(sure(0.3))
    limits = (SpendLimit(window="day", limit_nusd=60_000),)
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading()
    ) as validator:
        response = await validator.chat({**HELLO, "max_tokens": 64}, limits=limits)
        spent = await validator.settled()

    assert "0.3" in response.text
    assert not medcloud.seen
    assert spent == (CHEAP_NUSD, 0)


async def test_a_stream_that_breaks_off_while_it_is_judged_is_no_answer(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(event("half an ans"))
        await exchange.end_stream()

    acme.behave = behave
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=cascading()
    ) as validator:
        response = await validator.chat({**HELLO, "stream": True})
        record = await validator.record(response)

    assert "half" not in response.text
    assert [(one.outcome, one.kind) for one in record.attempts] == [
        ("server_error", "first"),
        ("ok", "fallback"),
    ]
    facts = record.facts
    assert facts is not None
    half = facts.measured.max_input_tokens * 150 + len("half an ans") * 600
    assert (record.unconfirmed_nusd, record.cost_nusd) == (half, half + DEAR_NUSD)


async def test_neither_samples_nor_escalations_reach_who_may_not_see_the_prompt(
    tmp_path: Path, acme: Upstream, medcloud: Upstream
) -> None:
    policy = a_policy(
        routes=(
            Route(
                name="default",
                models=("clinical", "large"),
                cascade=Cascade(signal="self_consistency", threshold_per_mille=1_000, samples=3),
            ),
        )
    )
    texts = iter("123")

    async def behave(exchange: Exchange) -> None:
        await answering(next(texts))(exchange)

    medcloud.behave = behave
    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": medcloud}, policy=policy
    ) as validator:
        response = await validator.chat(headers={"Waypost-Facts": 'data="phi"'})

    assert response.status_code == 200
    assert not acme.seen


# ── the signals themselves ─────────────────────────────────────────────────────────────────────


def test_the_probability_of_a_long_answer_is_not_less_for_its_length() -> None:
    short, long = Answer("x", (-0.5,) * 2, ("a",) * 2), Answer("x", (-0.5,) * 200, ("a",) * 200)

    assert confidence("sequence_logprob", short, model=None) == pytest.approx(math.exp(-0.5))
    assert confidence("sequence_logprob", long, model=None) == pytest.approx(math.exp(-0.5))


def test_the_first_token_that_says_something_is_the_answer_of_a_classifier() -> None:
    answer = Answer("x", (-0.01, -0.7, -0.01), ("\n", '"', "yes"))

    assert confidence("answer_logprob", answer, model=None) == pytest.approx(math.exp(-0.01))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"confidence": 0.25}', 0.25),
        ('```json\n{"confidence": 1}\n```', 1.0),
        ('{"confidence": 87}', None),
        ('{"confidence": "high"}', None),
        ('{"answer": 4}', None),
        ("no JSON", None),
        ("\ud800", None),
        ("[" * 100_000, None),
    ],
)
def test_a_confidence_that_an_answer_names_is_read_strictly(text: str, value: float | None) -> None:
    assert confidence("confidence", Answer(text), model=None) == value


def test_answers_agree_by_the_number_they_end_in_or_by_their_words() -> None:
    assert agreement(["it is 1,200.50", "1200.5!", "7"]) == (2 / 3, 0)
    assert agreement(["No.", "yes", " YES"]) == (2 / 3, 1)
    assert agreement(["", "", ""]) == (0.0, 0)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (completion("four"), "four"),
        (b'{"content":[{"type":"text","text":"fo"},{"type":"text","text":"ur"}]}', "four"),
        (b'{"output":[{"content":[{"type":"output_text","text":"four"}]}]}', "four"),
        (b'{"choices":[{"index":0,"text":"four"}]}', "four"),
        (b'{"choices":[{"index":0,"message":{"content":null,"tool_calls":[{}]}}]}', ""),
        (b"<html>", ""),
        (b"", ""),
    ],
)
def test_whole_answers_of_every_api_can_be_read(body: bytes, text: str) -> None:
    assert read_answer(body, streamed=False).text == text


@pytest.mark.parametrize(
    "body",
    [
        event("fo") + event("ur") + event(None) + usage_event(USAGE) + DONE,
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":'
        b'{"type":"text_delta","text":"four"}}\n\n',
        b'data: {"type":"response.output_text.delta","delta":"four"}\n\n',
    ],
)
def test_streams_of_every_api_can_be_read(body: bytes) -> None:
    assert read_answer(body, streamed=True).text == "four"


@given(st.binary(max_size=300), st.booleans())
def test_whatever_the_bytes_reading_them_raises_nothing(body: bytes, streamed: bool) -> None:
    read_answer(body, streamed=streamed)


@given(st.text(max_size=300))
def test_a_judge_says_something_from_0_to_1_of_any_text(text: str) -> None:
    model = JudgeModel(weights=(1000.0,) * 12, bias=-1000.0)

    assert len(features(text)) == len(FEATURES)
    assert 0 <= judge(model, text) <= 1
