"""``waypost policy train``: a complexity model from outcomes, graded beside what costs nothing."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from waypost.cli.output import console, fail, print_json, table
from waypost.edge.project.atomic_write import write_file
from waypost.shared.scoring.complexity import ComplexityScorer

if TYPE_CHECKING:
    from waypost.edge.training.report import Report

__all__ = ["register"]


def register(policy_app: typer.Typer) -> None:
    """Add ``train`` to the ``waypost policy`` group."""
    policy_app.command("train")(train)


def train(
    labels: Annotated[
        Path,
        typer.Argument(help="JSON lines of prompt, weak and strong: how good each answer was."),
    ],
    out: Annotated[Path | None, typer.Option(help="Write the model here.")] = None,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the partition into folds.")] = 0,
    weak_price: Annotated[float, typer.Option(min=1e-6, help="Dollars per million.")] = 0.24,
    strong_price: Annotated[float, typer.Option(min=1e-6, help="Dollars per million.")] = 24.7,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")] = False,
) -> None:
    """Fit what ``complexity`` conditions score by, and grade it on prompts it has not seen."""
    # The matrices are sparse; idle BLAS threads only spin (15 s became 1 s on a busy machine).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from waypost.edge.training.curves import Prices
        from waypost.edge.training.labels import read_labels
        from waypost.edge.training.report import make_report
        from waypost.edge.training.train import train as train_model
    except ModuleNotFoundError as exc:
        if exc.name not in {"numpy", "scipy"}:
            raise
        fail("training needs an extra: pip install 'waypost[train]'", exit_code=2)

    rows = read_labels(labels)
    trained = train_model(rows, folds=folds, seed=seed)
    report = make_report(rows, trained, Prices(weak=weak_price, strong=strong_price), seed=seed)
    took_us = _took_us(ComplexityScorer(trained.model).score, [row.prompt for row in rows[:2_000]])
    if out is not None:
        write_file(out, msgspec.json.encode(trained.model))
    if as_json:
        print_json({"report": report, "median_us": took_us[0], "p99_us": took_us[1]})
        return
    _show(report, folds)
    console.print(
        f"{took_us[0]:.0f} µs a prompt in the median, {took_us[1]:.0f} µs at the 99th percentile;"
        f" {len(msgspec.json.encode(trained.model)) / 1_000:.0f} kB in the manifest.",
        highlight=False,
    )
    if out is not None:
        console.print(f"wrote {out}", highlight=False, markup=False)


def _show(report: "Report", folds: int) -> None:
    console.print(
        f"{report.prompts} prompts; quality {report.weak:.3f} with the weak model,"
        f" {report.strong:.3f} with the strong. Each prompt is scored by a model fitted to"
        f" the other {folds - 1} of {folds} folds.",
        highlight=False,
    )
    rows: list[tuple[str, ...]] = []
    for name, grade in report.grades.items():
        between = report.intervals.get(name)
        rows.append(
            (
                name,
                f"{grade.apgr:.3f}"
                + (f" ({between[0]:.2f} to {between[1]:.2f})" if between else ""),
                f"{grade.cpt50:.0f} %",
                f"{grade.cpt80:.0f} %",
                f"{grade.cost:.0f} %",
            )
        )
    columns = ("order by", "APGR (95 % within)", "CPT50", "CPT80", "cost at 95 % quality")
    console.print(table(columns, rows))
    console.print(
        table(
            ("complexity at least", "strong calls", "quality", "cost", "gain of a call there"),
            [
                (
                    str(row.at_least),
                    f"{row.calls:.0f} %",
                    f"{row.quality:.3f}",
                    f"{row.cost:.0f} %",
                    f"{row.gain:+.3f}",
                )
                for row in report.thresholds
            ],
        )
    )
    if report.is_beaten_by_length:
        console.print(
            "The prompt's length does as well: a rule on input_tokens needs no model.",
            style="yellow",
        )


def _took_us(score: Callable[[str], int], prompts: list[str]) -> tuple[float, float]:
    """Return median and 99th percentile, after one round to warm up."""
    for prompt in prompts:
        score(prompt)
    took: list[float] = []
    for prompt in prompts:
        start = time.perf_counter_ns()
        score(prompt)
        took.append((time.perf_counter_ns() - start) / 1_000)
    return median(took), sorted(took)[len(took) * 99 // 100]
