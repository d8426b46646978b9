"""The picture of one request: client → validator → attempts, the manifest above, with times.

Pure geometry, twice: wide for a desk, tall for a phone. The templates draw it.
"""

from typing import Literal

from msgspec import Struct

from waypost.shared.money import format_usd
from waypost.shared.records import Attempt, DecisionRecord
from waypost.validator.console.words import decimal_ms

__all__ = ["Arrow", "Box", "Flow", "Step", "flow_of", "steps_of"]

Tone = Literal["plain", "accepted", "decided", "overridden", "refused", "muted"]

WIDTH, GAP = 250, 84
LINE, HEAD, PAD = 19, 30, 14
MARGIN = 2
STACK_GAP = 18
MAX_ATTEMPTS = 6


class Box(Struct, frozen=True, kw_only=True):
    """One station: a title and lines of text, each a pair: left, right."""

    x: int
    y: int
    width: int
    height: int
    title: str
    tone: Tone
    lines: tuple[tuple[str, str], ...]


class Arrow(Struct, frozen=True, kw_only=True):
    """From one box to the next; ``is_dashed`` for what does not carry the request."""

    path: str
    is_dashed: bool = False


class Flow(Struct, frozen=True, kw_only=True):
    """A picture and its size."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


class Step(Struct, frozen=True, kw_only=True):
    """One stretch of the request's time, in milliseconds and in per cent of the whole."""

    name: str
    duration_ms: float
    start: float
    width: float
    tone: Tone = "plain"


_OUTCOMES: dict[str, Tone] = {"ok": "accepted", "cancelled": "muted", "client_error": "overridden"}


def _stations(record: DecisionRecord) -> tuple[tuple[str, Tone, tuple[tuple[str, str], ...]], ...]:
    """Return client, manifest, validator and attempts: title, tone, lines."""
    declared = None if record.facts is None else record.facts.declared
    proposal = record.proposal
    client = [
        ("tier", record.tier or "unknown"),
        ("proposed", "nothing" if proposal is None else proposal.model),
    ]
    if declared is not None:
        client.append(("waits", "yes" if declared.interactive else "no, background"))
    manifest = [
        (
            "version",
            "unknown" if record.manifest_version is None else f"v{record.manifest_version}",
        ),
        ("route", record.route or "none"),
    ]
    validator = [
        (name, decimal_ms(ms)) for name, ms in record.steps_ms.items() if name != "forward"
    ]
    validator.append(("verdict", record.verdict))
    return (
        ("Client", "plain", tuple(client)),
        ("Signed manifest", "muted", tuple(manifest)),
        ("Validator", record.verdict, tuple(validator)),
        *map(_attempt, record.attempts[:MAX_ATTEMPTS]),
    )


def _attempt(attempt: Attempt) -> tuple[str, Tone, tuple[tuple[str, str], ...]]:
    lines = [
        ("at", attempt.provider),
        ("outcome", attempt.outcome.replace("_", " ")),
        ("took", decimal_ms(attempt.duration_ms)),
    ]
    if attempt.ttft_ms is not None:
        lines.append(("first token", decimal_ms(attempt.ttft_ms)))
    if attempt.cost_nusd:
        lines.append(("cost", format_usd(attempt.cost_nusd)))
    return attempt.model, _OUTCOMES.get(attempt.outcome, "refused"), tuple(lines)


def _height(lines: tuple[tuple[str, str], ...]) -> int:
    return HEAD + LINE * len(lines) + PAD


def flow_of(record: DecisionRecord, *, is_tall: bool) -> Flow:
    """Return the picture of ``record``."""
    return (_tall if is_tall else _wide)(_stations(record))


def _box(
    station: tuple[str, Tone, tuple[tuple[str, str], ...]], x: int, y: int, width: int = WIDTH
) -> Box:
    title, tone, lines = station
    return Box(
        x=x, y=y, width=width, height=_height(lines), title=title[:28], tone=tone, lines=lines
    )


def _wide(stations: tuple[tuple[str, Tone, tuple[tuple[str, str], ...]], ...]) -> Flow:
    client, manifest, validator, *attempts = stations
    middle = MARGIN + WIDTH + GAP
    right = middle + WIDTH + GAP
    top = _box(manifest, middle, MARGIN)
    centre = _box(validator, middle, top.y + top.height + 44)
    heart = centre.y + centre.height // 2
    tallness = sum(_height(a[2]) for a in attempts) + STACK_GAP * max(0, len(attempts) - 1)
    stack: list[Box] = []
    y = max(MARGIN, heart - tallness // 2)
    for attempt in attempts:
        stack.append(_box(attempt, right, y))
        y += stack[-1].height + STACK_GAP
    height = max(centre.y + centre.height, y - STACK_GAP if stack else 0) + MARGIN
    first = _box(client, MARGIN, heart - _height(client[2]) // 2)
    arrows = [
        Arrow(path=f"M{first.x + WIDTH} {first.y + first.height // 2}H{centre.x - 7}"),
        Arrow(path=f"M{middle + WIDTH // 2} {top.y + top.height}V{centre.y - 7}", is_dashed=True),
        Arrow(
            path=f"M{middle} {top.y + top.height // 2}H{MARGIN + WIDTH // 2}V{first.y - 7}",
            is_dashed=True,
        ),
    ]
    for box in stack:
        end = box.y + box.height // 2
        half = centre.x + WIDTH + GAP // 2
        arrows.append(Arrow(path=f"M{centre.x + WIDTH} {heart}H{half}V{end}H{right - 7}"))
    return Flow(
        width=(right if stack else middle) + WIDTH + MARGIN,
        height=height,
        boxes=(first, top, centre, *stack),
        arrows=tuple(arrows),
    )


def _tall(stations: tuple[tuple[str, Tone, tuple[tuple[str, str], ...]], ...]) -> Flow:
    boxes: list[Box] = []
    arrows: list[Arrow] = []
    y = MARGIN
    for place, station in enumerate(stations):
        box = _box(station, MARGIN, y, 300)
        boxes.append(box)
        y += box.height + 30
        if place < len(stations) - 1:
            arrows.append(
                Arrow(path=f"M{MARGIN + 150} {box.y + box.height}v23", is_dashed=place == 1)
            )
    return Flow(
        width=300 + 2 * MARGIN, height=y - 30 + MARGIN, boxes=tuple(boxes), arrows=tuple(arrows)
    )


def steps_of(record: DecisionRecord) -> tuple[Step, ...]:
    """Return where the request's time went, in order: the validator's steps, then each attempt.

    An attempt stands in the place of ``forward``, beginning when it began.
    """
    whole = max(record.duration_ms, sum(record.steps_ms.values()), 0.001)
    steps: list[Step] = []
    at = 0.0
    for name, ms in record.steps_ms.items():
        if name != "forward" or not record.attempts:
            steps.append(_step(name, at, ms, whole, "plain"))
        else:
            begin = at
            for attempt in record.attempts:
                begin = attempt.started_ms or begin
                tone = _OUTCOMES.get(attempt.outcome, "refused")
                steps.append(_step(attempt.model, begin, attempt.duration_ms, whole, tone))
                begin += attempt.duration_ms
        at += ms
    return tuple(steps)


def _step(name: str, at: float, ms: float, whole: float, tone: Tone) -> Step:
    start = min(100 * at / whole, 99.4)
    return Step(
        name=name,
        duration_ms=ms,
        start=round(start, 2),
        width=round(min(max(100 * ms / whole, 0.6), 100 - start), 2),
        tone=tone,
    )
