"""``waypost policy calibrate``: a cascade's threshold, with a promise about quality."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from waypost.cli.output import console, fail, print_json
from waypost.edge.project.atomic_write import write_file

if TYPE_CHECKING:
    from waypost.edge.training.calibrate import Calibration

__all__ = ["register"]


def register(policy_app: typer.Typer) -> None:
    """Add ``calibrate`` to the ``waypost policy`` group."""
    policy_app.command("calibrate")(calibrate)


def calibrate(
    graded: Annotated[
        Path,
        typer.Argument(
            help="JSON lines of weak and strong, how good each answer was, and of the weak one"
            " its answer or its confidence."
        ),
    ],
    within: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="How much quality may be given up.")
    ] = 0.02,
    out: Annotated[Path | None, typer.Option(help="Write the judge here.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the partition into halves.")] = 0,
    weak_price: Annotated[float, typer.Option(min=1e-6, help="Dollars per million.")] = 0.24,
    strong_price: Annotated[float, typer.Option(min=1e-6, help="Dollars per million.")] = 24.7,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")] = False,
) -> None:
    """Set a cascade's threshold so that quality stays within a distance of the strong model's."""
    try:
        from waypost.edge.training.calibrate import calibrate as set_threshold
        from waypost.edge.training.curves import Prices
        from waypost.edge.training.labels import read_graded
    except ModuleNotFoundError as exc:
        if exc.name not in {"numpy", "scipy"}:
            raise
        fail("calibrating needs an extra: pip install 'waypost[train]'", exit_code=2)

    found = set_threshold(
        read_graded(graded),
        within=within,
        prices=Prices(weak=weak_price, strong=strong_price),
        seed=seed,
    )
    if out is not None and found.judge is not None:
        write_file(out, msgspec.json.encode(found.judge))
    if as_json:
        print_json(found)
    else:
        _show(found, out)
    if found.chosen is None:
        raise typer.Exit(1)


def _show(found: "Calibration", out: Path | None) -> None:
    from waypost.edge.training.chart import chart

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    fitted = "" if found.judge is None else ", and as many others that the judge was fitted to"
    say(
        f"{found.answers} answers{fitted}. Quality {found.weak:.3f} with the weak model,"
        f" {found.strong:.3f} with the strong; APGR by confidence {found.apgr:.2f}"
        f" ({found.apgr_between[0]:.2f} to {found.apgr_between[1]:.2f})."
    )
    say("")
    say(chart(found.curve, found.chosen, weak=found.weak, strong=found.strong))
    say("")
    chosen = found.chosen
    if chosen is None:
        say(
            f"No threshold promises {found.within:g}: that takes {round(1 / found.within)} answers"
            " at least, and more where the weak model is sure of what it has wrong."
        )
        return
    signal = "judge" if found.judge is not None else "…"
    say(f"cascade: {{signal: {signal}, threshold: {chosen.threshold}}}")
    if out is not None and found.judge is not None:
        say(f"judge_model: {out.name}")
    say(
        f"escalates {chosen.escalated:.0f} % of requests, for {chosen.cost:.0f} % of the cost, at"
        f" quality {chosen.quality:.3f}."
    )
    say(
        f"Promised: for requests like these, the answers are in expectation at most"
        f" {found.within:g} worse than the strong model's (conformal risk control)."
    )
