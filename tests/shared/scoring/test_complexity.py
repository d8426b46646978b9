"""The complexity score: whole numbers, the same everywhere, bounded in time by its window."""

import subprocess
import sys
from base64 import b64encode
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.shared.errors import PolicyError
from waypost.shared.scoring.complexity import (
    BUILT_IN,
    FEATURES,
    WINDOW_CHARS,
    ComplexityModel,
    ComplexityScorer,
    read,
)

NONE = (0,) * len(FEATURES)

# Lone surrogates too: JSON can carry them, UTF-8 cannot.
any_text = st.text(st.characters(), max_size=400)


def a_model(
    *, weights: dict[str, int] | None = None, singles: dict[bytes, int] | None = None
) -> ComplexityModel:
    """Return a model of 256 buckets a table, with these weights for features and for words."""
    buckets = [8] * 768
    for word, weight in (singles or {}).items():
        buckets[crc32(word) & 255] = 8 + weight
    packed = bytes(low | high << 4 for low, high in zip(buckets[::2], buckets[1::2], strict=True))
    return ComplexityModel(
        weights=tuple((weights or {}).get(name, 0) for name in FEATURES),
        knots=(0, 1_000),
        gram_scale=100,
        bucket_bits=8,
        buckets=b64encode(packed).decode(),
    )


TRAINED = a_model(weights={"length": 1}, singles={b"tensor": 7, b"hello": -7})


@given(any_text, st.sampled_from([None, TRAINED]))
def test_any_text_scores_within_0_and_1000_and_the_same_twice(
    text: str, model: ComplexityModel | None
) -> None:
    score = ComplexityScorer(model).score(text)

    assert 0 <= score <= 1_000
    assert ComplexityScorer(model).score(text) == score


@given(
    st.text(st.characters(), min_size=2 * WINDOW_CHARS, max_size=2 * WINDOW_CHARS + 50), any_text
)
def test_nothing_between_the_first_and_last_of_the_window_is_looked_at(
    edges: str, middle: str
) -> None:
    head, tail = edges[:WINDOW_CHARS], edges[-WINDOW_CHARS:]
    other = f"{head}{middle[::-1]}x{tail}"

    mine, others = read(f"{head}{middle}x{tail}"), read(other)

    assert mine == others


@given(st.text(st.characters(), max_size=20_000))
def test_no_prompt_has_more_grams_than_its_window_has_words(text: str) -> None:
    assert sum(map(len, read(text).grams)) <= 3 * (2 * WINDOW_CHARS + 1)


@given(any_text)
def test_every_feature_lies_within_0_and_1000(text: str) -> None:
    assert all(0 <= value <= 1_000 for value in read(text).features)


def test_the_score_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = (
        "from waypost.shared.scoring.complexity import ComplexityScorer, read;"
        "t = 'Prove that √2 is irrational, or explain why not.';"
        "print(ComplexityScorer().score(t), read(t))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }

    assert len(outputs) == 1


def test_a_reading_is_as_the_description_says() -> None:
    reading = read("Why, WHY 12 = Straßenbahnen?")

    words = [b"why", b"why", b"12", "straß".encode()]
    assert reading.grams[0] == [crc32(word) for word in words]
    assert reading.grams[1] == [crc32(b"whywhy"), crc32(b"why12"), crc32(b"12" + words[3])]
    assert reading.grams[2] == [crc32(b"whywhy12"), crc32(b"why12" + words[3])]
    assert dict(zip(FEATURES, reading.features, strict=True)) == {
        "length": 304,  # 28 characters: 64 × 4, and 28/16 − 1 of 64
        "word_length": 232,  # 32 × 29 bytes / 4 words
        "digits": 68,  # 2 of 29 bytes
        "maths": 34,
        "capitals": 172,  # W, WHY, S
        "clauses": 34,
        "code": 0,
        "lines": 0,
        "sentences": 0,
        "variety": 750,
        "questions": 250,
        "asking": 250,
        "reasoning": 250,
        "routine": 0,
        "negation": 0,
    }


def test_a_raw_value_is_as_the_description_says() -> None:
    scorer = ComplexityScorer(a_model(weights={"digits": 3}, singles={b"tensor": 7, b"product": 1}))

    # Two words and their pair: three buckets. "product" is cut to "produc", which weighs nothing.
    assert scorer.raw("tensor product") == 100 * 7 * 256 // 443
    assert scorer.raw("tensor tensor") == 100 * 7 * 256 // 362
    assert scorer.raw("") == 0
    assert scorer.raw("7") == 3_000


def test_a_negative_quotient_is_rounded_down() -> None:
    scorer = ComplexityScorer(a_model(singles={b"hello": -7}))

    assert scorer.raw("hello hello") == -496  # −179,200 / 362 is −495.03


def test_scores_run_straight_between_knots() -> None:
    scorer = ComplexityScorer(ComplexityModel(weights=NONE, knots=(-10, 0, 1, 90)))

    assert [scorer.calibrated(raw) for raw in (-11, -10, -5, 0, 1, 45, 90, 91)] == [
        0,
        0,
        166,
        333,
        666,
        831,
        1_000,
        1_000,
    ]


@given(st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=101, unique=True), st.data())
def test_a_higher_raw_value_never_scores_lower(knots: list[int], data: st.DataObject) -> None:
    scorer = ComplexityScorer(ComplexityModel(weights=NONE, knots=tuple(sorted(knots))))
    low, high = sorted(data.draw(st.tuples(st.integers(), st.integers())))

    assert scorer.calibrated(low) <= scorer.calibrated(high)


def test_work_with_reasons_is_harder_than_work_by_rote_in_the_built_in_heuristic() -> None:
    score = ComplexityScorer().score

    assert (
        score("Translate this list into German and sort it.")
        < score("Which of these three towns is the capital?")
        < score("Analyse these three designs and justify one.")
    )
    assert score("hi") < 100


def test_a_model_survives_the_manifest() -> None:
    for model in (BUILT_IN, TRAINED):
        assert msgspec.json.decode(msgspec.json.encode(model), type=ComplexityModel) == model


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ComplexityModel(weights=(1,), knots=(0, 1)), "weighs 1 features, not 15"),
        (ComplexityModel(weights=NONE, knots=(0,)), "knots"),
        (ComplexityModel(weights=NONE, knots=(0, 5, 5)), "knots do not increase"),
        (ComplexityModel(weights=NONE, knots=(0, 1), buckets="né"), "not base64"),
        (ComplexityModel(weights=NONE, knots=(0, 1), buckets="AAA"), "not base64"),
        (
            ComplexityModel(weights=NONE, knots=(0, 1), buckets="AAAA", bucket_bits=3),
            "6 weights, not 24",
        ),
    ],
)
def test_a_model_that_does_not_fit_together_is_refused(
    wrong: ComplexityModel, message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        ComplexityScorer(wrong)
