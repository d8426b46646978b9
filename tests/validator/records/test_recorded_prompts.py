"""Prompt text in records: only where it is switched on, and then redacted."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.upstream import Upstream
from support.validator import HELLO, Running, running_validator
from waypost.shared.records import encode_record
from waypost.validator.records.prompts import MAX_CHARS, redacted, redactor

DETECTORS = redactor({})
CARD = "4111 1111 1111 1111"


@pytest.mark.anyio
async def test_no_prompt_is_recorded_unless_that_is_switched_on(validator: Running) -> None:
    record = await validator.record(await validator.chat())
    assert record.prompt is None
    assert b"2 + 2?" not in encode_record(record)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "{}"}]}),
        ("/v1/chat/completions",
         {"messages": [{"role": "user", "content": [{"type": "text", "text": "{}"}]}]}),
    ],
)  # fmt: skip
async def test_what_is_switched_on_is_recorded_redacted(
    tmp_path: Path, acme: Upstream, path: str, body: dict[str, Any]
) -> None:
    text = f"Two and two?\nMy card is {CARD}.\nThanks"

    def filled(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict):
            return {name: filled(one) for name, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        return text if value == "{}" else value

    async with running_validator(
        tmp_path, {"acme": acme, "medcloud": acme}, records={"prompts": True}
    ) as validator:
        answer = await validator.client.post(
            path, json={"model": "auto", **filled(body)}, headers=validator.headers()
        )
        record = await validator.record_of(answer.headers["x-request-id"])
    assert record.prompt == "Two and two?\n[redacted: card]\nThanks"
    assert CARD.encode() not in encode_record(record)


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_that_a_detector_finds_stays(before: str, after: str) -> None:
    for secret in (CARD, "anna@example.org", "AKIAIOSFODNN7EXAMPLE1"):
        result = redacted(f"{before} {secret} {after}", DETECTORS)
        assert not DETECTORS.find([result])


def test_what_runs_over_lines_takes_all_of_the_text_with_it() -> None:
    text = "Card: 4111 1111\n1111 1111, please"
    assert DETECTORS.find([text]) == {"card"}
    assert redacted(text, DETECTORS) == "[redacted: card]"


def test_a_long_text_is_cut_and_no_half_of_a_number_is_left() -> None:
    filler = "word " * (MAX_CHARS // 5 - 1)
    result = redacted(filler + "4111111111111111" + " more", DETECTORS)
    assert len(result) <= MAX_CHARS + 10
    assert "4111" not in result


@pytest.mark.anyio
async def test_a_poisoned_request_harms_neither_record_nor_log(
    validator: Running, caplog: pytest.LogCaptureFixture
) -> None:
    evil = "\x1b[2J<script>alert(1)</script>\u202e😀"
    swollen = await validator.chat(headers={"X-Poison": "x" * 60_000})
    odd = await validator.chat(
        {**HELLO, "user": evil, "messages": [{"role": "user", "content": evil}]},
        headers={"Waypost-Facts": 'task="<script>", tags=("x" "--")'},
    )
    for answer in (swollen, odd):
        record = await validator.record(answer)
        assert len(encode_record(record)) < 4_096
    assert "<script>alert" not in encode_record(record).decode()
    assert "\x1b" not in caplog.text
    assert "<script>" not in caplog.text
    assert validator.services.records.dropped == 0
