"""Where the bars and lines of a chart go. Pure geometry; the templates draw it as SVG.

Charts are drawn on the server: no script has to run, no style has to be allowed, and the same
picture goes into a report. The drawing stretches to the room there is; what is written stands
beside it as text, so that it is as large on a phone. What a chart shows is told in words too.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log10

from msgspec import Struct

__all__ = ["Bar", "Chart", "Label", "Line", "lines", "nice_top", "stacked_bars"]

WIDTH, HEIGHT = 1_000, 100  # units, not pixels
LABELS = 8  # below a chart; half as many where there is little room


class Label(Struct, frozen=True):
    """What stands below a step: often nothing; ``is_extra``, it goes where room is scarce."""

    text: str = ""
    is_extra: bool = False


class Bar(Struct, frozen=True):
    """A rectangle; ``name`` is its series, ``title`` what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    name: str
    title: str


class Line(Struct, frozen=True):
    """A series as an SVG path; it breaks where there is no value."""

    name: str
    path: str


class Chart(Struct, frozen=True, kw_only=True):
    """Everything of a chart but its colours. ``y_labels`` are from the top: end, half, nought."""

    width: int = WIDTH
    height: int = HEIGHT
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    x_labels: tuple[Label, ...] = ()
    y_labels: tuple[str, ...] = ()


def nice_top(value: float) -> float:
    """Return the end of an axis that holds ``value``: a round number, with a round half."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(
        step * power
        for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10)
        if value <= step * power * 1.000_001
    )


def stacked_bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    say: Callable[[float], str],
    titles: Sequence[str],
) -> Chart:
    """Return one bar per label, its series stacked in their order, the first at the bottom.

    Args:
        say: names a value on the axis.
        titles: per bar, what it says when pointed at.
    """
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    top = nice_top(max(totals, default=0))
    step = WIDTH / max(1, len(labels))
    bars: list[Bar] = []
    for place in range(len(labels)):
        y = float(HEIGHT)
        for name, values in series.items():
            if values[place] <= 0:
                continue
            # A few among very many must not vanish.
            height = max(values[place] * HEIGHT / top, 1.2)
            y -= height
            x, width = round((place + 0.12) * step, 2), round(step * 0.76, 2)
            bars.append(Bar(x, round(y, 2), width, round(height, 2), name, titles[place]))
    return Chart(bars=tuple(bars), x_labels=_x_labels(labels), y_labels=_y_labels(top, say))


def lines(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    say: Callable[[float], str],
) -> Chart:
    """Return one line per series over ``labels``."""
    known = [v for values in series.values() for v in values if v is not None]
    top = nice_top(max(known, default=0))
    step = WIDTH / max(1, len(labels))
    drawn = [
        Line(name, "".join(_stroke(part, step, HEIGHT / top) for part in _runs(values)))
        for name, values in series.items()
    ]
    return Chart(lines=tuple(drawn), x_labels=_x_labels(labels), y_labels=_y_labels(top, say))


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Return the stretches of ``values`` that are known, each value with its place."""
    runs: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is not None:
            runs[-1].append((place, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _stroke(run: Sequence[tuple[int, float]], step: float, scale: float) -> str:
    points = [((place + 0.5) * step, HEIGHT - value * scale) for place, value in run]
    if len(points) == 1:
        # One value between two gaps is a dash, as a point would not be seen.
        ((x, y),) = points
        points = [(x - 0.3 * step, y), (x + 0.3 * step, y)]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _x_labels(labels: Sequence[str]) -> tuple[Label, ...]:
    every = max(1, ceil(len(labels) / LABELS))
    return tuple(
        Label(text, place % (2 * every) != 0) if place % every == 0 else Label()
        for place, text in enumerate(labels)
    )


def _y_labels(top: float, say: Callable[[float], str]) -> tuple[str, ...]:
    return tuple(say(top * share) for share in (1, 0.5, 0))
