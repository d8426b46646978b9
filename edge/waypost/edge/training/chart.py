"""A curve as text: cost to the right, quality upwards. Pure."""

from collections.abc import Sequence

from waypost.edge.training.calibrate import Point

__all__ = ["chart"]

WIDTH, HEIGHT = 60, 14
CURVE, MIX, CHOSEN = "●", "·", "◆"


def chart(curve: Sequence[Point], chosen: Point | None, *, weak: float, strong: float) -> str:
    """Return the cost-quality curve beside a random mix of the two models, ``·``.

    The chosen threshold is ``◆``. Costs are per cent of the strong model alone.
    """
    costs = [point.cost for point in curve]
    qualities = [weak, strong, *(point.quality for point in curve)]
    left, right = min(0.0, *costs), max(100.0, *costs)
    low, high = min(qualities), max(qualities)
    spread = (high - low) or 1.0
    cells = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]

    def put(cost: float, quality: float, mark: str) -> None:
        across = round((cost - left) / (right - left) * WIDTH)
        up = round((quality - low) / spread * HEIGHT)
        cells[HEIGHT - up][across] = mark

    for step in range(WIDTH + 1):
        share = step / WIDTH
        put(100 * share, weak + share * (strong - weak), MIX)
    for point in curve:
        put(point.cost, point.quality, CURVE)
    if chosen is not None:
        put(chosen.cost, chosen.quality, CHOSEN)
    lines = [
        f"{high - place * spread / HEIGHT:6.3f} ┤{''.join(row).rstrip()}"
        for place, row in enumerate(cells)
    ]
    axis = f"{'':7}└{'─' * (WIDTH + 1)}"
    scale = f"{'':8}{f'{left:.0f} %':<30}{f'cost {right:.0f} %':>31}"
    return "\n".join([*lines, axis, scale])
