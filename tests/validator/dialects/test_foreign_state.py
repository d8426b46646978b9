"""What only its maker can read, taken out of a request."""

import json
from typing import Any

from waypost.validator.dialects.passthrough.state import without_state

THOUGHT: dict[str, Any] = {"type": "thinking", "thinking": "Hm.", "signature": "Eq=="}
CALL: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "42"}


def stripped(endpoint: str, **fields: Any) -> Any:  # noqa: ANN401
    body = without_state(endpoint, json.dumps(fields).encode())
    return None if body is None else json.loads(body)


def test_thinking_is_left_out_and_the_rest_stays() -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Hello."}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
        {"role": "user", "content": "and now?"},
    ]
    left = stripped("messages", messages=messages, thinking={"type": "enabled"}, x=1)

    assert [message["content"] for message in left["messages"]] == [
        "hi",
        [{"type": "text", "text": "Hello."}],
        "and now?",
    ]
    assert (left["thinking"], left["x"]) == ({"type": "enabled"}, 1)


def test_a_tools_result_without_the_thinking_before_it_is_answered_without_thinking() -> None:
    edits = [{"type": "clear_thinking_20251015"}, {"type": "clear_tool_uses_20250919"}]
    left = stripped(
        "messages",
        messages=[
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [THOUGHT, CALL]},
            {"role": "user", "content": [RESULT]},
        ],
        thinking={"type": "enabled", "budget_tokens": 2_000},
        context_management={"edits": edits},
    )

    assert "thinking" not in left
    assert left["context_management"] == {"edits": edits[1:]}


def test_what_cannot_be_left_out_is_not() -> None:
    compacted = {"type": "compaction", "encrypted_content": "gAAA"}
    asked = {"role": "user", "content": "go on"}

    assert stripped("responses", input=[compacted, asked]) is None
    assert stripped("responses", input=[asked]) is None
    assert stripped("messages", messages=[{"role": "assistant", "content": [THOUGHT]}]) is None
    assert without_state("messages", b'{"signature"') is None
    assert stripped("chat.completions", messages=[asked], signature="x") is None
