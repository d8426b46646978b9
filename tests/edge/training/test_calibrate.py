"""Thresholds for cascades: what is promised is kept, and what cannot be promised is not."""

import re
import shlex
from pathlib import Path

import msgspec
import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from support.projects import a_project
from waypost.cli.yamlfile import FileError
from waypost.edge.authoring.load_policy import load_policy
from waypost.edge.commands import calibrate_cli
from waypost.edge.training.calibrate import calibrate, fit_judge
from waypost.edge.training.chart import HEIGHT, chart
from waypost.edge.training.curves import Prices
from waypost.edge.training.labels import Graded, read_graded
from waypost.shared.scoring.judge import JudgeModel, judge


def drawn(count: int, *, seed: int) -> list[Graded]:
    """Answers that are right about as often as they are sure; the strong model nearly always."""
    draw = np.random.default_rng(seed)
    sure = draw.random(count)
    return [
        Graded(
            weak=float(draw.random() < one),
            strong=float(draw.random() < 0.95),
            confidence=float(one),
        )
        for one in sure
    ]


def spoken(count: int) -> list[Graded]:
    """Answers that hedge when they are wrong."""
    draw = np.random.default_rng(3)
    right = draw.random(count) < 0.5
    return [
        Graded(
            weak=float(one),
            strong=1.0,
            answer="The answer is 4." if one else "Maybe 4, perhaps 5, I think",
        )
        for one in right
    ]


def loss_at(threshold: int, graded: list[Graded]) -> float:
    kept = [one for one in graded if (one.confidence or 0) * 1_000 >= threshold]
    return sum(max(0.0, one.strong - one.weak) for one in kept) / len(graded)


def test_over_many_calibrations_no_more_quality_is_given_up_than_promised() -> None:
    within = 0.05
    losses: list[float] = []
    for seed in range(100):
        found = calibrate(drawn(100, seed=seed), within=within, prices=Prices(), seed=0)
        assert found.chosen is not None
        # What ``drawn`` gives up in expectation: the integral of 0.95 (1 - sure) over what is kept.
        losses.append(0.95 * (1 - found.chosen.threshold / 1_000) ** 2 / 2)

    # Three standard errors of a mean of a hundred. Without the correction for n it is 0.06.
    assert np.mean(losses) <= within + 0.004
    assert np.mean(losses) > within / 3  # and not for being timid


@given(st.integers(0, 2**32), st.sampled_from((0.02, 0.05, 0.2)))
@settings(max_examples=15)
def test_the_threshold_is_the_cheapest_that_keeps_the_promise(seed: int, within: float) -> None:
    graded = drawn(100, seed=seed)
    found = calibrate(graded, within=within, prices=Prices(), seed=0)

    def promised(threshold: int) -> bool:
        return (loss_at(threshold, graded) * len(graded) + 1) / (len(graded) + 1) <= within

    if found.chosen is None:
        assert not promised(1_000)
    else:
        assert promised(found.chosen.threshold)
        assert not found.chosen.threshold or not promised(found.chosen.threshold - 1)


def test_too_few_answers_promise_nothing() -> None:
    found = calibrate(drawn(100, seed=1), within=0.005, prices=Prices(), seed=0)

    assert found.chosen is None


def test_a_judge_learns_what_a_wrong_answer_sounds_like() -> None:
    model = fit_judge(spoken(200))

    # A half is a tie: the strong model would have been right as well.
    assert judge(model, "The answer is 4.") > 0.45
    assert judge(model, "Perhaps it is 4, or maybe 5, I guess") < 0.1


def test_the_judge_has_not_seen_the_answers_that_the_threshold_is_set_on() -> None:
    found = calibrate(spoken(400), within=0.05, prices=Prices(), seed=0)

    assert found.answers == 200
    assert found.judge is not None
    assert found.chosen is not None
    assert found.chosen.quality == 1.0
    assert 40 < found.chosen.escalated < 60
    # The weak model is always paid for, the strong one as often as it is asked.
    assert found.chosen.cost == pytest.approx(100 * 0.24 / 24.7 + found.chosen.escalated)


def test_the_chart_shows_the_curve_a_random_mix_and_the_choice() -> None:
    found = calibrate(drawn(300, seed=1), within=0.05, prices=Prices(), seed=0)
    lines = chart(found.curve, found.chosen, weak=found.weak, strong=found.strong).splitlines()

    assert len(lines) == HEIGHT + 3
    assert sum(line.count("◆") for line in lines) == 1
    # In the middle of the chart the curve is above the mix: the same cost buys more.
    middle = [line[8 + 30] if len(line) > 38 else " " for line in lines[: HEIGHT + 1]]
    assert middle.index("●") < middle.index("·")


def write(path: Path, graded: list[Graded]) -> Path:
    path.write_bytes(msgspec.json.Encoder().encode_lines(graded))
    return path


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    calibrate_cli.register(app)
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.output


def test_what_the_command_writes_a_policy_can_use(tmp_path: Path) -> None:
    a_project(tmp_path)
    labels = write(tmp_path / "graded.jsonl", spoken(400))
    code, output = run(str(labels), "--within", "0.05", "--out", str(tmp_path / "judge.json"))
    assert code == 0
    assert "in expectation at most 0.05 worse" in output

    policy = (tmp_path / "policy.yaml").read_text()
    (tmp_path / "policy.yaml").write_text(policy + "\njudge_model: judge.json\n")
    loaded = load_policy(tmp_path / "policy.yaml", channel="prod", version=1, issued_at=1)

    written = msgspec.json.decode((tmp_path / "judge.json").read_bytes(), type=JudgeModel)
    assert loaded.full.judge == written


def test_the_command_of_the_resilience_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs/resilience.md").read_text()
    (line,) = re.findall(r"^\$ waypost policy calibrate (.*)$", page, re.M)
    write(tmp_path / "graded.jsonl", spoken(400))
    monkeypatch.chdir(tmp_path)
    code, _ = run(*shlex.split(line))

    assert code == 0
    assert (tmp_path / "judge.json").exists()


def test_a_promise_that_cannot_be_made_is_a_finding(tmp_path: Path) -> None:
    labels = write(tmp_path / "graded.jsonl", drawn(120, seed=1))
    code, output = run(str(labels), "--within", "0.002")

    assert code == 1
    assert "that takes 500 answers at least" in output


def test_answers_some_of_which_have_no_confidence_are_refused(tmp_path: Path) -> None:
    graded = [*drawn(150, seed=1), Graded(weak=0, strong=1)]

    with pytest.raises(FileError, match="1 lines lack what the others have"):
        read_graded(write(tmp_path / "graded.jsonl", graded))


@pytest.mark.parametrize(
    ("written", "message"),
    [('{"weights": [1], "bias": 0}', "is not what 'waypost policy calibrate --out' writes"), ("", "is not what")],
)  # fmt: skip
def test_a_judge_that_is_none_is_refused_with_its_line(
    tmp_path: Path, written: str, message: str
) -> None:
    a_project(tmp_path)
    (tmp_path / "judge.json").write_text(written)
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy.read_text() + "\njudge_model: judge.json\n")

    with pytest.raises(FileError, match=message):
        load_policy(policy, channel="prod", version=1, issued_at=1)


def test_a_cascade_by_a_judge_that_is_not_there_is_refused(tmp_path: Path) -> None:
    a_project(tmp_path)
    policy = tmp_path / "policy.yaml"
    text = policy.read_text()
    name = text.index("models: [", text.index("routes:"))
    policy.write_text(text[:name] + "cascade: {signal: judge, threshold: 500}\n    " + text[name:])

    with pytest.raises(FileError, match="needs a judge_model"):
        load_policy(policy, channel="prod", version=1, issued_at=1)
