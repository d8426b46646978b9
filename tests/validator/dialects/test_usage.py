"""What providers say that they used, in all the words and places that were seen."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from waypost.shared.money import Usage
from waypost.validator.dialects.usage import (
    NOTHING,
    UsageReport,
    read_anthropic,
    read_anthropic_by_names,
    read_completion,
    read_gemini,
    read_openai,
    read_openai_by_names,
)


def raw(told: object) -> Raw:
    return Raw(json.dumps(told).encode())


READERS = (read_openai, read_anthropic, read_gemini)


@pytest.mark.parametrize(
    "told",
    [None, {}, [], 7, "usage", {"cost": 0.01}, {"prompt_tokens": None}, {"prompt_tokens": -1},
     {"input_tokens": True}, {"promptTokenCount": 1.5}, {"completion_tokens": 2**63}],
)  # fmt: skip
def test_a_usage_without_counts_is_as_good_as_none(told: object) -> None:
    for read in READERS:
        assert read(raw(told)).usage() is None
    for absent in (Raw(), Raw(b"{"), Raw(b"[" * 100_000), Raw(b'{"prompt_tokens":"\xff"}')):
        for read in READERS:
            assert read(absent) == NOTHING


def test_a_total_alone_is_the_input_where_nothing_is_written_and_else_says_too_little() -> None:
    report = read_openai(raw({"total_tokens": 300}))

    assert report.usage(has_output=False) == Usage(input_tokens=300)
    assert report.usage() is None


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        # OpenAI, both of its APIs.
        ({"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27,
          "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 1, "image_tokens": 2},
          "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 1}},
         Usage(input_tokens=20, output_tokens=7, cached_tokens=5, audio_input_tokens=1,
               image_input_tokens=2, reasoning_tokens=3, audio_output_tokens=1)),
        ({"input_tokens": 20, "output_tokens": 7, "total_tokens": 27,
          "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 1},
          "output_tokens_details": {"reasoning_tokens": 3}},
         Usage(input_tokens=20, output_tokens=7, cached_tokens=5, cache_write_tokens=1,
               reasoning_tokens=3)),
        # Details that are null, counts that are floats.
        ({"prompt_tokens": 20.0, "completion_tokens": 7, "prompt_tokens_details": None},
         Usage(input_tokens=20, output_tokens=7)),
        # DeepSeek.
        ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
          "prompt_cache_hit_tokens": 80, "prompt_cache_miss_tokens": 20},
         Usage(input_tokens=100, output_tokens=50, cached_tokens=80)),
        # Moonshot.
        ({"prompt_tokens": 19, "completion_tokens": 13, "total_tokens": 32, "cached_tokens": 9},
         Usage(input_tokens=19, output_tokens=13, cached_tokens=9)),
        # xAI and Google's endpoint in OpenAI's words: what is thought is in the total alone.
        ({"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109},
         Usage(input_tokens=35, output_tokens=74)),
        # Mistral, of spoken input.
        ({"prompt_tokens": 9, "completion_tokens": 248, "total_tokens": 632,
          "prompt_audio_seconds": 12},
         Usage(input_tokens=9, output_tokens=623)),
        # Perplexity's deep research.
        ({"prompt_tokens": 108, "completion_tokens": 3_256, "total_tokens": 3_364,
          "citation_tokens": 7_299, "num_search_queries": 74, "reasoning_tokens": 73_248},
         Usage(input_tokens=7_407, output_tokens=76_504, reasoning_tokens=73_248)),
        # One side and the total.
        ({"prompt_tokens": 20, "total_tokens": 27}, Usage(input_tokens=20, output_tokens=7)),
        ({"completion_tokens": 7, "total_tokens": 27}, Usage(input_tokens=20, output_tokens=7)),
        # A cache that is told beside the prompt, not in it.
        ({"prompt_tokens": 3, "completion_tokens": 1, "cache_read_input_tokens": 1_000},
         Usage(input_tokens=1_003, output_tokens=1, cached_tokens=1_000)),
    ],
)  # fmt: skip
def test_openais_usage_is_read_in_all_its_followers_words(told: Any, usage: Usage) -> None:  # noqa: ANN401
    assert read_openai(raw(told)).usage() == usage
    for whole in ({"choices": [{"usage": told}]}, {"choices": [], "x_groq": {"usage": told}}):
        assert read_completion(json.dumps(whole).encode()).usage() == usage


def test_what_a_cache_keeps_for_an_hour_is_told_apart() -> None:
    told = {
        "input_tokens": 3,
        "output_tokens": 7,
        "cache_creation_input_tokens": 100_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 100_000},
    }

    assert read_anthropic(raw(told)).usage() == Usage(
        input_tokens=100_003,
        output_tokens=7,
        cache_write_tokens=100_000,
        cache_write_1h_tokens=100_000,
    )


def test_iterations_are_added_up_for_the_counts_above_leave_some_out() -> None:
    compaction = {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500}
    message = {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000,
               "cache_creation": {"ephemeral_1h_input_tokens": 10}}  # fmt: skip
    told = {"input_tokens": 23_000, "output_tokens": 1_000, "iterations": [compaction, message]}

    assert read_anthropic(raw(told)).usage() == Usage(
        input_tokens=203_010, output_tokens=4_500, cache_write_tokens=10, cache_write_1h_tokens=10
    )


def test_what_gemini_thinks_and_its_tools_read_is_told_beside() -> None:
    told = {
        "promptTokenCount": 10,
        "toolUsePromptTokenCount": 5,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 20,
        "cachedContentTokenCount": 4,
        "totalTokenCount": 42,
        "promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 2}, {"modality": "TEXT"}, 3],
        "candidatesTokensDetails": None,
    }

    assert read_gemini(raw(told)).usage() == Usage(
        input_tokens=15,
        output_tokens=27,
        cached_tokens=4,
        image_input_tokens=2,
        reasoning_tokens=20,
    )


# ── reports that follow each other ─────────────────────────────────────────────────────────────

START = {
    "input_tokens": 3,
    "cache_read_input_tokens": 150_000,
    "cache_creation_input_tokens": 500,
    "output_tokens": 1,
}


@pytest.mark.parametrize("end", [{"output_tokens": 7}, {"input_tokens": 0, "output_tokens": 7},
                                 {"input_tokens": None, "output_tokens": 7}])  # fmt: skip
def test_a_zero_does_not_take_the_prompt_back(end: object) -> None:
    report = read_anthropic(raw(START)).joined(read_anthropic(raw(end)))

    assert report.usage() == Usage(
        input_tokens=150_503, output_tokens=7, cached_tokens=150_000, cache_write_tokens=500
    )


@pytest.mark.parametrize("later", [{}, {"cost": 0.0115}, {"prompt_tokens": 0},
                                   {"prompt_tokens": 0, "completion_tokens": 0}])  # fmt: skip
def test_a_poorer_report_erases_nothing(later: object) -> None:
    whole = read_openai(raw({"prompt_tokens": 2_000, "completion_tokens": 900}))

    assert whole.joined(read_openai(raw(later))).usage() == Usage(
        input_tokens=2_000, output_tokens=900
    )


counts = st.none() | st.integers(0, 10**7)
reports = st.builds(
    UsageReport,
    **{name: counts for name in UsageReport.__struct_fields__ if name.endswith("_tokens")},
)


def told_tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.output_tokens


@given(st.lists(reports, min_size=1, max_size=5), st.randoms(), st.booleans())
def test_no_order_and_no_repetition_of_reports_matters(
    told: list[UsageReport],
    random: Random,
    has_output: bool,
) -> None:
    def joined(some: list[UsageReport]) -> Usage | None:
        whole = NOTHING
        for one in some:
            whole = whole.joined(one)
        return whole.usage(has_output=has_output)

    again = [*told, *random.choices(told, k=3)]
    random.shuffle(again)

    assert joined(told) == joined(again)


@given(reports, reports, st.booleans())
def test_what_is_told_is_never_less_than_the_richest_report(
    one: UsageReport, other: UsageReport, has_output: bool
) -> None:
    usage = one.joined(other).usage(has_output=has_output)

    for report in (one, other):
        alone = report.usage(has_output=has_output)
        if alone is not None:
            assert usage is not None
            assert told_tokens(usage) >= (report.total_tokens or 0)
            assert usage.input_tokens >= (report.input_tokens or 0)
            assert usage.output_tokens >= (report.output_tokens or 0)


@given(reports, st.booleans())
def test_nothing_is_free_unless_every_count_is_told_as_zero(
    report: UsageReport, has_output: bool
) -> None:
    usage = report.usage(has_output=has_output)
    if usage is not None and not told_tokens(usage):
        told = (getattr(report, name) for name in report.__struct_fields__)
        assert not any(told)


names = st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
     "prompt_tokens_details", "cached_tokens", "iterations", "cache_creation", "usage",
     "ephemeral_1h_input_tokens", "promptTokenCount", "promptTokensDetails", "modality",
     "tokenCount", "candidatesTokenCount"]
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, json_values, max_size=6))
def test_whatever_stands_there_is_counts_or_nothing(told: dict[str, Any]) -> None:
    for read in READERS:
        report = read(raw(told))
        usage = report.usage()
        if usage is not None:
            assert all(value >= 0 for value in (usage.input_tokens, usage.output_tokens))


likely_names = st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
     "prompt_tokens_details", "completion_tokens_details", "cached_tokens", "reasoning_tokens",
     "iterations", "cache_creation", "cache_creation_input_tokens", "cache_read_input_tokens",
     "ephemeral_1h_input_tokens", "audio_tokens", "thinking_tokens", "output_tokens_details",
     "prompt_cache_hit_tokens", "citation_tokens", "service_tier"]
)  # fmt: skip
likely_counts = st.none() | st.integers(0, 2**41) | st.integers(0, 99).map(float) | st.booleans()
likely = st.dictionaries(
    likely_names, likely_counts | st.dictionaries(likely_names, likely_counts, max_size=3)
)


@given(likely | st.dictionaries(names, json_values, max_size=6))
def test_what_is_usual_is_read_quickly_and_no_otherwise(told: dict[str, Any]) -> None:
    whole = {"prompt_tokens": 20, "completion_tokens": 7, "output_tokens": 3}
    for usage in (told, {"prompt_tokens": 20, "completion_tokens": 7, **told}, {**told, **whole}):
        assert read_openai(raw(usage)) == read_openai_by_names(raw(usage))
        assert read_anthropic(raw(usage)) == read_anthropic_by_names(raw(usage))
    message = {"output_tokens": 7, **told}
    assert read_anthropic(raw(message)) == read_anthropic_by_names(raw(message))
