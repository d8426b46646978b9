"""Routes by example: whole numbers, the same everywhere, and none where nothing fits."""

import subprocess
import sys
from base64 import b64decode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from waypost.edge.training.utterances import compile_utterances
from waypost.shared.errors import PolicyError
from waypost.shared.scoring.semantic import WINDOW_CHARS, SemanticModel, SemanticScorer, hashes

EXAMPLES = {
    "refund": [
        "I want my money back",
        "how do I get a refund",
        "please refund my last order",
        "the refund has not arrived",
        "refund me for the broken lamp",
        "can I return this and be paid back",
    ],
    "delivery": [
        "where is my parcel",
        "when will the delivery arrive",
        "track the delivery of my order",
        "the courier never came",
        "my parcel is late",
        "has the package been shipped yet",
    ],
    "password": [
        "I forgot my password",
        "reset my password please",
        "I cannot log in",
        "the login page rejects me",
        "send me a new password",
        "change the password of my account",
    ],
}

# A model takes a fraction of a second to compile, so all tests share one.
MODEL = compile_utterances(EXAMPLES, seed=0)

any_text = st.text(st.characters(), max_size=300)


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("refunding my order?", "refund"),
        ("My PARCELS never came!", "delivery"),
        ("forgot pasword", "password"),
    ],
)
def test_other_words_of_the_same_kind_find_the_route(text: str, route: str) -> None:
    assert SemanticScorer(MODEL).best(text)[0] == route


@pytest.mark.parametrize("text", ["", "?!", "数独を解いて", "0 1 1 2 3 5 8"])
def test_what_fits_no_example_belongs_to_no_route(text: str) -> None:
    name, score = SemanticScorer(MODEL).best(text)

    assert name is None
    assert score < MODEL.accept_at


@given(any_text)
def test_any_text_is_answered_within_0_and_1000_and_alike_twice(text: str) -> None:
    scorer = SemanticScorer(MODEL)
    name, score = scorer.best(text)

    assert 0 <= score <= 1_000
    assert name is None or name in EXAMPLES
    assert (name is not None) == (score >= MODEL.accept_at)
    assert scorer.best(text) == (name, score)


@given(any_text)
def test_adding_all_routes_at_once_is_adding_each_by_itself(text: str) -> None:
    scorer = SemanticScorer(MODEL)
    # The same weights, read the slow way: route by route, half byte by half byte.
    plain = [half for octet in b64decode(MODEL.weights) for half in (octet & 15, octet >> 4)]
    buckets = {value % 2**MODEL.bucket_bits for value in hashes(text)}
    count = len(MODEL.routes)
    sums = [sum(plain[count * bucket + place] for bucket in buckets) for place in range(count)]

    assert scorer.fit(text)[0] == sums.index(max(sums))


@given(st.text(st.characters(), max_size=5_000))
def test_no_prompt_has_more_grams_than_a_lane_holds(text: str) -> None:
    # Four bytes a character at most, a run of three and of four at each, words and pairs.
    assert len(hashes(text)) * 15 < 2**16


def test_the_longest_possible_prompt_does_not_overflow_a_lane() -> None:
    # As many different bytes as the window lets through: 2,049 of them.
    widest = "".join(map(chr, range(0x10000, 0x10000 + 2 * WINDOW_CHARS)))
    words = " ".join(f"{number:x}" for number in range(2_000))

    for text in (widest, words):
        assert len(hashes(text)) * 15 < 2**16


def test_the_answer_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = (
        "import sys, msgspec;"
        "from waypost.shared.scoring.semantic import SemanticModel, SemanticScorer;"
        "s = SemanticScorer(msgspec.json.decode(sys.stdin.buffer.read(), type=SemanticModel));"
        "print(s.best('my parcel was returned'), s.fit('my parcel was returned'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            input=msgspec.json.encode(MODEL),
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }

    assert len(outputs) == 1


def test_a_route_knows_its_own_examples() -> None:
    best = SemanticScorer(MODEL).best

    assert all(best(text)[0] == name for name, texts in EXAMPLES.items() for text in texts)


def test_of_routes_that_fit_alike_the_first_named_is_taken() -> None:
    model = SemanticModel(
        routes=("b", "a"), bucket_bits=1, weights="mZk=", knots=(0, 1), accept_at=0
    )

    assert SemanticScorer(model).fit("hello")[0] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "!"}, "not base64"),
        ({"weights": MODEL.weights[:-4]}, "weights, not 12288"),
        ({"routes": ("a", "b")}, "12288 weights, not 8192"),
        ({"routes": ("a", "b", "a")}, "names a route twice"),
        ({"knots": (3, 3)}, "do not increase"),
    ],
)
def test_a_model_that_does_not_fit_together_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        SemanticScorer(structs.replace(MODEL, **change))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"refund": EXAMPLES["refund"]}, "at least two"),
        ({**EXAMPLES, "other": ["a"] * 9}, "'other' has 1 different examples; at least 5"),
        ({**EXAMPLES, "back": EXAMPLES["refund"]}, "'refund' and 'back' share an example"),
    ],
)
def test_examples_that_cannot_tell_routes_apart_are_refused(
    examples: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        compile_utterances(examples, seed=0)


def test_examples_that_differ_in_nothing_that_is_looked_at_still_compile() -> None:
    blank = {
        name: [mark * count for count in range(1, 6)] for name, mark in (("a", "!"), ("b", "?"))
    }

    assert SemanticScorer(compile_utterances(blank, seed=0)).best("hello")[1] >= 0


def test_compiling_twice_gives_the_same_model() -> None:
    assert compile_utterances(EXAMPLES, seed=0) == MODEL
