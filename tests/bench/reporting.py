"""200,000 random reports of usage, and what it costs to read one."""

import random
import time
from timeit import repeat

from msgspec import Raw

from support.reported import try_once
from waypost.validator.dialects.usage import read_anthropic, read_gemini, read_openai

__all__ = ["rows"]

REPORTS = 200_000
READS = 20_000
USUAL = {
    "OpenAI, chat": (
        read_openai,
        b'{"prompt_tokens":20,"completion_tokens":7,"total_tokens":27,"prompt_tokens_details":'
        b'{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":3,'
        b'"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}',
    ),
    "OpenAI, three counts": (
        read_openai,
        b'{"prompt_tokens":20,"completion_tokens":7,"total_tokens":27}',
    ),
    "OpenAI, null": (read_openai, b"null"),
    "Anthropic": (
        read_anthropic,
        b'{"input_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":150,'
        b'"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},'
        b'"output_tokens":1,"service_tier":"standard"}',
    ),
    "Gemini": (
        read_gemini,
        b'{"promptTokenCount":20,"candidatesTokenCount":4,"totalTokenCount":27,'
        b'"thoughtsTokenCount":3}',
    ),
}


def rows() -> list[tuple[str, str, str]]:
    """Return the section's table."""
    seed = int(time.time())
    told, number = 0, 0
    while told < REPORTS:
        number += 1
        told += try_once(random.Random(f"{seed} {number}"))
    rows = [("reports that kept the rules", f"{told:,} of {told:,}, seed {seed}", "all")]
    for name, (read, usage) in USUAL.items():
        raw = Raw(usage)
        best_s = min(repeat(lambda read=read, raw=raw: read(raw), number=READS, repeat=5))  # type: ignore[misc]
        rows.append((f"to read {name}, µs", f"{best_s / READS * 1e6:.2f}", "-"))
    return rows
