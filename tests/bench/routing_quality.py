"""How well the scores that are trained do on public data, and how fast.

The data is not part of the project; where it is missing, the rows say so. Each score is of
prompts that the model had not seen. One partition into folds is worth ±0.025 of APGR, so five
are averaged, with the seeds 0 to 4 and no choice among them.
"""

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from statistics import mean, median
from time import perf_counter_ns

import numpy as np
from msgspec import Struct
from msgspec.json import Decoder

from waypost.edge.training.calibrate import calibrate, fit_judge
from waypost.edge.training.curves import Grade, Outcomes, Prices, grade
from waypost.edge.training.embeddings import compile_embeddings
from waypost.edge.training.labels import Graded, read_labels
from waypost.edge.training.train import train
from waypost.edge.training.utterances import compile_utterances
from waypost.shared.scoring.complexity import ComplexityScorer
from waypost.shared.scoring.embedding import EmbeddingScorer, is_installed
from waypost.shared.scoring.judge import judge
from waypost.shared.scoring.semantic import SemanticScorer

DATA = Path(__file__).parents[3] / "shared" / "routing-quality" / "dev"
PARTITIONS = 5
SAMPLE = 1_500  # of prompts, where each takes milliseconds


class Utterance(Struct, frozen=True):
    text: str
    intent: str
    split: str = ""


def took_us(score: Callable[[str], object], texts: list[str]) -> tuple[float, float]:
    """Return median and 99th percentile of the fastest of three calls for each text."""
    took: list[float] = []
    for text in texts:
        tries: list[int] = []
        for _ in range(3):
            start = perf_counter_ns()
            score(text)
            tries.append(perf_counter_ns() - start)
        took.append(min(tries) / 1_000)
    return median(took), sorted(took)[len(took) * 99 // 100]


def _complexity() -> list[tuple[str, str, str]]:
    labels = read_labels(DATA / "mmlu_indomain.jsonl.gz")
    prompts = [label.prompt for label in labels]
    outcomes = Outcomes(
        np.array([label.weak for label in labels]), np.array([label.strong for label in labels])
    )

    def grades_of(folds: int) -> list[Grade]:
        return [
            grade(train(labels, folds=folds, seed=seed).held_out.astype(float), outcomes, Prices())
            for seed in range(PARTITIONS)
        ]

    def row(name: str, grades: list[Grade], aim: str = "") -> tuple[str, str, str]:
        apgr = [one.apgr for one in grades]
        between = f" ({min(apgr):.2f} to {max(apgr):.2f})" if len(apgr) > 1 else ""
        return (
            f"complexity on MMLU, {name}",
            f"APGR {mean(apgr):.3f}{between}, CPT50 {mean(one.cpt50 for one in grades):.0f} %,"
            f" CPT80 {mean(one.cpt80 for one in grades):.0f} %,"
            f" 95 % of quality for {mean(one.cost for one in grades):.0f} % of the cost",
            aim,
        )

    def by(score: Callable[[str], float]) -> list[Grade]:
        return [grade(np.array([float(score(text)) for text in prompts]), outcomes, Prices())]

    shipped = ComplexityScorer(train(labels, folds=2, seed=0).model)
    middle, slow = took_us(shipped.score, prompts)
    _, largest = took_us(shipped.score, ["a b 1 " * 200_000])
    return [
        row(f"{PARTITIONS} × 5 folds", grades_of(5), "APGR ≥ 0.63"),
        row(f"{PARTITIONS} × 10 folds", grades_of(10), "APGR ≥ 0.63"),
        row("by prompt length", by(len)),
        row("by the built-in heuristic", by(ComplexityScorer().score)),
        ("complexity, time a prompt", f"median {middle:.0f} µs, p99 {slow:.0f} µs", "≤ 60 µs"),
        ("complexity, time for 1.2 MB", f"{largest:.0f} µs", ""),
    ]


def _examples(
    lines: Iterable[Utterance], *, seed: int
) -> tuple[dict[str, list[str]], list[Utterance]]:
    """Return ten utterances of each intent, drawn, and the rest."""
    by_intent: dict[str, list[Utterance]] = {}
    for line in lines:
        by_intent.setdefault(line.intent, []).append(line)
    draw = Random(seed)
    rest: list[Utterance] = []
    for utterances in by_intent.values():
        draw.shuffle(utterances)
        rest += utterances[10:]
    return {name: [line.text for line in own[:10]] for name, own in by_intent.items()}, rest


def _semantic(
    name: str,
    lines: list[Utterance],
    *,
    unseen: list[Utterance],
    out_of_scope: list[Utterance],
    aim: str,
    by_meaning: bool = False,
) -> list[tuple[str, str, str]]:
    name = f"{name} by {'meaning' if by_meaning else 'words'}"
    right: list[float] = []
    result: list[tuple[str, str, str]] = []
    for seed in range(1 if by_meaning else 3):
        examples, rest = _examples(lines, seed=seed)
        scorer = _compiled(examples, by_meaning=by_meaning)
        model = scorer.model
        tested = unseen or rest
        if by_meaning:
            tested = Random(seed).sample(tested, min(len(tested), SAMPLE))
        places = [model.routes[scorer.fit(line.text)[0]] == line.intent for line in tested]
        right.append(mean(places))
        if seed == 0:
            middle, slow = took_us(
                scorer.best, [line.text for line in tested[: 200 if by_meaning else 2_000]]
            )
            kept = mean(scorer.best(line.text)[0] is not None for line in tested)
            turned = "".join(
                f", {mean(scorer.best(line.text)[0] is None for line in lines):.0%} of what is"
                " out of scope turned away"
                for lines in [out_of_scope]
                if lines
            )
            result = [
                (f"semantic routes, {name}", f"{kept:.0%} of prompts taken{turned}", ""),
                (
                    f"semantic routes, {name}",
                    f"median {middle:.0f} µs, p99 {slow:.0f} µs,"
                    f" {len(model.weights) / len(examples) / 1_000:.1f} kB a route",
                    "",
                ),
            ]
    found = f"{mean(right):.3f} ({min(right):.3f} to {max(right):.3f}) right"
    return [(f"semantic routes, {name}, 10 examples each", found, aim), *result]


def _cascade() -> list[tuple[str, str, str]]:
    """How well a judge of the answer knows when to ask the strong model, on MMLU-Pro."""

    class Row(Struct):
        weak: float
        strong: float
        weak_response: str = ""

    with gzip.open(DATA / "mmlupro_new.jsonl.gz") as file:
        lines = Decoder(Row).decode_lines(file.read())
    graded = [
        Graded(weak=line.weak, strong=line.strong, answer=line.weak_response) for line in lines
    ]
    found = [calibrate(graded, within=0.05, prices=Prices(), seed=seed) for seed in range(5)]
    apgr = [one.apgr for one in found]
    chosen = [one.chosen for one in found if one.chosen is not None]
    model = fit_judge(graded[:300])
    middle, slow = took_us(lambda text: judge(model, text), [one.answer or "" for one in graded])
    return [
        (
            "cascade judge on MMLU-Pro, 5 halves",
            f"APGR {mean(apgr):.3f} ({min(apgr):.2f} to {max(apgr):.2f})",
            "",
        ),
        (
            "cascade within 0.05 of the strong model's quality",
            f"{mean(one.cost for one in chosen):.0f} % of the cost at quality"
            f" {mean(one.quality for one in chosen):.3f} of {found[0].strong:.3f}",
            "",
        ),
        ("cascade judge, time an answer", f"median {middle:.0f} µs, p99 {slow:.0f} µs", ""),
        (
            "cascade judge on GSM8K",
            "not measured: what data there is of it has no answers to judge",
            "",
        ),
    ]


def _compiled(
    examples: dict[str, list[str]], *, by_meaning: bool
) -> SemanticScorer | EmbeddingScorer:
    if by_meaning:
        return EmbeddingScorer(compile_embeddings(examples, seed=0))
    return SemanticScorer(compile_utterances(examples, seed=0))


def _lines(name: str) -> list[Utterance]:
    with gzip.open(DATA / name) as file:
        return Decoder(Utterance).decode_lines(file.read())


def rows() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    if not DATA.is_dir():
        return [("quality of routing", "not measured: the public data sets are not here", "")]
    banking = _lines("banking77_train.jsonl.gz")
    clinc = _lines("clinc150_train_val.jsonl.gz")

    def split(*names: str) -> list[Utterance]:
        return [line for line in clinc if line.split in names]

    by_meaning: list[tuple[str, str, str]] = []
    if is_installed():
        by_meaning = [
            *_semantic(
                "BANKING77",
                banking,
                unseen=[],
                out_of_scope=[],
                aim="≥ 0.85",
                by_meaning=True,
            ),
            *_semantic(
                "CLINC150",
                split("train"),
                unseen=split("val"),
                out_of_scope=split("oos_train", "oos_val"),
                aim="≥ 0.90",
                by_meaning=True,
            ),
        ]
    return [
        *by_meaning,
        *_complexity(),
        *_cascade(),
        *_semantic("BANKING77", banking, unseen=[], out_of_scope=[], aim="≥ 0.76"),
        *_semantic(
            "CLINC150",
            split("train"),
            unseen=split("val"),
            out_of_scope=split("oos_train", "oos_val"),
            aim="≥ 0.83",
        ),
    ]
