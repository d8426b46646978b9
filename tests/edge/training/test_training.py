"""Training complexity models: honest grades, and models that any reader can use."""

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from waypost.cli.yamlfile import FileError
from waypost.edge.commands import training_cli
from waypost.edge.training.curves import Outcomes, Prices, grade, grade_random
from waypost.edge.training.labels import Label, read_labels
from waypost.edge.training.train import train
from waypost.shared.scoring.complexity import ComplexityModel, ComplexityScorer

SUBJECTS = (
    "colour of the flag",
    "taste of the soup",
    "integral of the tensor",
    "proof of the lemma",
)


def some_labels(count: int, *, learnable: bool = True) -> list[Label]:
    """Return prompts of equal length; only the strong model can do mathematics, if learnable."""
    draw = random.Random(7)
    made: list[Label] = []
    for number in range(count):
        subject = draw.choice(SUBJECTS)
        hard = subject in SUBJECTS[2:] if learnable else draw.random() < 0.5
        made.append(
            Label(
                prompt=f"What is the {subject:24} {draw.randbytes(6).hex(' ', 2)} {number:06}?",
                weak=float(not hard),
                strong=float(draw.random() < 0.9),
            )
        )
    return made


def outcomes_of(labels: list[Label]) -> Outcomes:
    return Outcomes(
        np.array([label.weak for label in labels]), np.array([label.strong for label in labels])
    )


def write_labels(path: Path, labels: list[Label]) -> Path:
    path.write_bytes(msgspec.json.Encoder().encode_lines(labels))
    return path


def test_what_can_be_learnt_is_learnt_and_carries_over_to_unseen_prompts() -> None:
    labels = some_labels(300)

    trained = train(labels, folds=5, seed=1)

    assert grade(trained.held_out.astype(float), outcomes_of(labels), Prices()).apgr > 0.8
    score = ComplexityScorer(trained.model).score
    assert score("What is the proof of the theorem?") > score("What is the taste of the bread?")


def test_noise_is_not_graded_as_knowledge() -> None:
    labels = some_labels(400, learnable=False)

    trained = train(labels, folds=5, seed=1)

    # 400 coin tosses: the standard error of the APGR is about 0.06.
    assert 0.3 < grade(trained.held_out.astype(float), outcomes_of(labels), Prices()).apgr < 0.7


def test_a_prompt_that_occurs_twice_is_never_in_both_halves() -> None:
    noise = some_labels(200, learnable=False)

    trained = train([*noise, *noise], folds=5, seed=1)

    # A model that had seen the twin would know the answer, and be graded near the oracle.
    twice = [*noise, *noise]
    assert grade(trained.held_out.astype(float), outcomes_of(twice), Prices()).apgr < 0.7


def test_the_score_is_a_share_of_the_traffic() -> None:
    held_out = train(some_labels(500), folds=5, seed=1).held_out

    for tenth in range(1, 10):
        assert abs(float((held_out >= 100 * tenth).mean()) - (1 - tenth / 10)) < 0.03


def test_training_twice_gives_the_same_model() -> None:
    labels = some_labels(150)

    assert train(labels, folds=3, seed=4).model == train(labels, folds=3, seed=4).model


def test_prompts_without_a_word_can_be_trained_on() -> None:
    labels = [
        *some_labels(100),
        Label(prompt="", weak=1, strong=1),
        Label(prompt="!", weak=0, strong=0),
    ]

    model = train(labels, folds=3, seed=1).model

    assert 0 <= ComplexityScorer(model).score("") <= 1_000


# ── the grades ─────────────────────────────────────────────────────────────────────────────────


def test_a_perfect_order_recovers_the_gap_with_the_calls_that_are_needed() -> None:
    # Ten prompts; the strong model is better on the last two, so two calls in ten recover all.
    outcomes = Outcomes(np.array([1.0] * 8 + [0.0] * 2), np.ones(10))

    perfect = grade(np.arange(10.0), outcomes, Prices(weak=1, strong=10))

    assert perfect.cpt50 == pytest.approx(10)
    assert perfect.cpt80 == pytest.approx(16)
    assert perfect.apgr == pytest.approx(0.9)
    assert perfect.cost == pytest.approx(100 * (0.8 * 0.1 + 0.2))


def test_equal_scores_move_together() -> None:
    outcomes = Outcomes(np.array([1.0, 1.0, 0.0, 0.0]), np.ones(4))

    flat = grade(np.array([0.0, 1.0, 1.0, 1.0]), outcomes, Prices(weak=1, strong=100))

    assert flat.cost == pytest.approx(75.25)


def test_a_coin_recovers_half_the_gap_on_average() -> None:
    draw = np.random.default_rng(3)
    outcomes = Outcomes((draw.random(4_000) < 0.5).astype(float), np.ones(4_000))

    tossed = grade(draw.random(4_000), outcomes, Prices())
    expected = grade_random(outcomes, Prices())

    assert tossed.apgr == pytest.approx(expected.apgr, abs=0.03)
    assert tossed.cpt80 == pytest.approx(expected.cpt80, abs=4)
    assert tossed.cost == pytest.approx(expected.cost, abs=4)


# ── the file and the command ───────────────────────────────────────────────────────────────────


def test_each_wrong_line_is_named(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.jsonl", some_labels(100))
    with path.open("ab") as file:
        file.write(b'\n{"prompt": "x", "weak": 2, "strong": 1}\n{"weak": 1}\nnot json\n\xff\n')

    with pytest.raises(FileError) as caught:
        read_labels(path)

    assert [finding.line for finding in caught.value.findings] == [102, 103, 104, 105]
    assert "`float` <= 1.0 - at `$.weak`" in caught.value.findings[0].message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (some_labels(99), "has 99 labels; at least 100 are needed"),
        ([Label(prompt="x", weak=1, strong=0)] * 100, "no better"),
    ],
)
def test_too_little_to_learn_from_is_said(
    tmp_path: Path, labels: list[Label], message: str
) -> None:
    with pytest.raises(FileError, match=message):
        read_labels(write_labels(tmp_path / "labels.jsonl", labels))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        read_labels(tmp_path / "none.jsonl.gz")


@pytest.fixture
def policy_app() -> typer.Typer:
    app = typer.Typer()
    training_cli.register(app)
    app.callback()(lambda: None)
    return app


def test_the_command_prints_the_baselines_and_writes_a_usable_model(
    tmp_path: Path, policy_app: typer.Typer
) -> None:
    labels = write_labels(tmp_path / "labels.jsonl", some_labels(200))
    out = tmp_path / "model.json"

    result = CliRunner().invoke(policy_app, ["train", str(labels), "--out", str(out)])

    assert result.exit_code == 0, result.output
    for name in ("trained", "built-in heuristic", "prompt length", "random", "oracle"):
        assert name in result.output
    assert "prompt's length does as well" not in result.output
    ComplexityScorer(msgspec.json.decode(out.read_bytes(), type=ComplexityModel))


def test_the_command_says_so_when_length_does_as_well(
    tmp_path: Path, policy_app: typer.Typer
) -> None:
    labels = [
        Label(prompt="x" * (20 if hard else 5), weak=0.0 if hard else 1.0, strong=1)
        for hard in (number % 2 == 0 for number in range(200))
    ]

    result = CliRunner().invoke(
        policy_app, ["train", str(write_labels(tmp_path / "labels.jsonl", labels))]
    )

    assert result.exit_code == 0, result.output
    assert "prompt's length does as well" in result.output


def test_the_command_answers_scripts_in_json(tmp_path: Path, policy_app: typer.Typer) -> None:
    labels = write_labels(tmp_path / "labels.jsonl", some_labels(200))

    result = CliRunner().invoke(policy_app, ["train", str(labels), "--json"])

    answer = msgspec.json.decode(result.output)
    assert answer["report"]["grades"]["trained"]["apgr"] > 0.6
    assert answer["median_us"] > 0
