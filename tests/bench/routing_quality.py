"""How well the trainable scores do on public data: routes saved money by, topics routed by.

The data is not part of the project; where it is missing, the rows say so. Each score is of
prompts that the model had not seen. One partition into folds is worth ±0.025 of APGR, so five
are averaged, with the seeds 0 to 4 and no choice among them.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from time import perf_counter_ns

import numpy as np

from waypost.edge.training.curves import Grade, Outcomes, Prices, grade
from waypost.edge.training.labels import read_labels
from waypost.edge.training.train import train
from waypost.shared.complexity import ComplexityScorer

DATA = Path(__file__).parents[3] / "shared" / "routing-quality" / "dev"
PARTITIONS = 5


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


def rows() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    if not DATA.is_dir():
        return [("quality of routing", "not measured: the public data sets are not here", "")]
    return _complexity()
