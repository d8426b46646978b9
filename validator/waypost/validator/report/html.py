"""A report as one HTML file: no script, nothing fetched, fit to print or to send."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from waypost.validator.console.charts import stacked_bars
from waypost.validator.console.words import money, shown
from waypost.validator.report.facts import Report

__all__ = ["as_html"]

_FOLDER = Path(__file__).parent
# Charts are drawn by the console's macros.
_FOLDERS = (_FOLDER, _FOLDER.parent / "console" / "templates")


def as_html(report: Report) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDERS),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    chart = stacked_bars(
        [label for label, _, _ in report.days],
        {
            "spent": [float(spent) for _, spent, _ in report.days],
            "saved": [float(max(saved, 0)) for _, _, saved in report.days],
        },
        say=lambda nusd: money(round(nusd)),
        titles=[
            f"{d}: spent {money(spent)}, saved {money(saved)}" for d, spent, saved in report.days
        ],
    )
    return environment.get_template("report.html").render(report=report, chart=chart)
