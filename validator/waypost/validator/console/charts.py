"""Where the bars and lines of a chart go. Pure geometry; the templates draw it as SVG.

Charts are drawn on the server: no script has to run, no style has to be allowed, and the same
picture goes into a report. What a chart shows stands beside it as a table.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log10

from msgspec import Struct

__all__ = ["Bar", "Chart", "Line", "Tick", "lines", "nice_top", "stacked_bars"]

WIDTH, HEIGHT = 960, 168
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 22


class Tick(Struct, frozen=True):
    """A mark on an axis: where, and what it says."""

    at: float
    label: str


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
    """Everything of a chart but its colours."""

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()


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
    scale = (HEIGHT - TOP - BOTTOM) / top
    step = (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    bars: list[Bar] = []
    for place in range(len(labels)):
        y = float(HEIGHT - BOTTOM)
        for name, values in series.items():
            height = values[place] * scale
            if height > 0:
                # A few among very many must not vanish.
                height = max(height, 1.5)
                y -= height
                bars.append(
                    Bar(
                        round(LEFT + place * step + step * 0.12, 2),
                        round(y, 2),
                        round(step * 0.76, 2),
                        round(height, 2),
                        name,
                        titles[place],
                    )
                )
    return Chart(bars=tuple(bars), x_ticks=_x_ticks(labels, step), y_ticks=_y_ticks(top, say))


def lines(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    say: Callable[[float], str],
) -> Chart:
    """Return one line per series over ``labels``."""
    known = [v for values in series.values() for v in values if v is not None]
    top = nice_top(max(known, default=0))
    scale = (HEIGHT - TOP - BOTTOM) / top
    step = (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    drawn: list[Line] = []
    for name, values in series.items():
        path: list[str] = []
        is_down = False
        for place, value in enumerate(values):
            if value is None:
                is_down = False
                continue
            x, y = LEFT + (place + 0.5) * step, HEIGHT - BOTTOM - value * scale
            # A point alone between two gaps is a stroke of no length, which round caps show.
            path.append(f"{'L' if is_down else 'M'}{x:.1f} {y:.1f}" + ("" if is_down else "h0"))
            is_down = True
        drawn.append(Line(name, "".join(path)))
    return Chart(lines=tuple(drawn), x_ticks=_x_ticks(labels, step), y_ticks=_y_ticks(top, say))


def _x_ticks(labels: Sequence[str], step: float) -> tuple[Tick, ...]:
    every = max(1, ceil(len(labels) / 8))
    return tuple(
        Tick(round(LEFT + (place + 0.5) * step, 1), labels[place])
        for place in range(0, len(labels), every)
    )


def _y_ticks(top: float, say: Callable[[float], str]) -> tuple[Tick, ...]:
    room = HEIGHT - TOP - BOTTOM
    return tuple(
        Tick(round(HEIGHT - BOTTOM - room * share, 1), say(top * share)) for share in (0, 0.5, 1)
    )
