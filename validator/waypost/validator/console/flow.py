"""The picture of one request: client → validator → attempts, the edge above, with times.

Pure geometry, twice: wide for a desk, tall for a phone. The templates draw it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from waypost.shared.money import format_usd
from waypost.shared.records import Attempt, AttemptKind, AttemptOutcome, DecisionRecord
from waypost.validator.console.reasons import outcome_in_words
from waypost.validator.console.words import decimal_ms

__all__ = ["Arrow", "Box", "Flow", "Step", "flow_of", "steps_of"]

Tone = Literal["plain", "accepted", "decided", "overridden", "refused", "muted"]

WIDTH, TALL_WIDTH, GAP = 250, 300, 84
LINE, HEAD, PAD = 19, 30, 14
MARGIN = 2
STACK_GAP, TALL_GAP, EDGE_GAP = 18, 30, 44
TIP = 7  # what an arrow's head takes
MAX_ATTEMPTS = 6


class Box(Struct, frozen=True, kw_only=True):
    """One station: a title, a word beside it, and lines of text, each a pair: left, right."""

    x: int
    y: int
    width: int
    height: int
    title: str
    aside: str
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
    aside: str = ""
    duration_ms: float
    start: float
    width: float
    tone: Tone = "plain"


class Station(NamedTuple):
    """A box without its place."""

    title: str
    tone: Tone
    lines: tuple[tuple[str, str], ...]
    aside: str = ""

    @property
    def height(self) -> int:
        """Of its box."""
        return HEAD + LINE * len(self.lines) + PAD


_TONES: dict[AttemptOutcome, Tone] = {
    "ok": "accepted",
    "cancelled": "muted",
    "client_error": "overridden",
}
_KINDS: dict[AttemptKind, str] = {
    "first": "first try",
    "retry": "retry",
    "fallback": "fallback",
    "hedge": "hedge",
    "escalation": "escalated to",
    "sample": "sample",
}


def _stations(record: DecisionRecord) -> tuple[Station, Station, Station, tuple[Station, ...]]:
    """Return client, edge, validator and attempts."""
    declared = None if record.facts is None else record.facts.declared
    proposal = record.proposal
    client = [
        ("tier", record.tier or "unknown"),
        ("proposed", "nothing" if proposal is None else proposal.model),
    ]
    if declared is not None:
        client.append(("waits", "yes" if declared.interactive else "no, background"))
    version = record.manifest_version
    edge = [
        ("signed manifest", "unknown" if version is None else f"v{version}"),
        ("route", record.route or "none"),
    ]
    validator = [
        (name, decimal_ms(ms)) for name, ms in record.steps_ms.items() if name != "forward"
    ]
    attempts = [_attempt(attempt) for attempt in record.attempts[:MAX_ATTEMPTS]]
    if more := record.attempts[MAX_ATTEMPTS:]:
        attempts.append(Station(f"{len(more)} more", "muted", (("see", "the table below"),)))
    return (
        Station("Client", "plain", tuple(client)),
        Station("Edge", "muted", tuple(edge)),
        Station("Validator", record.verdict, tuple(validator), record.verdict),
        tuple(attempts),
    )


def _attempt(attempt: Attempt) -> Station:
    outcome = outcome_in_words(attempt.outcome)
    status = attempt.http_status
    lines = [
        ("at", attempt.provider),
        ("outcome", outcome if status in (None, 200) else f"{outcome}, {status}"),
    ]
    if attempt.kind != "first":
        lines.append(("began after", decimal_ms(attempt.started_ms)))
    if attempt.ttft_ms is not None:
        lines.append(("first token", decimal_ms(attempt.ttft_ms)))
    lines.append(("took", decimal_ms(attempt.duration_ms)))
    if attempt.confidence is not None:
        lines.append(("confidence", f"{attempt.confidence:.2f}"))
    if attempt.cost_nusd:
        lines.append(("cost", format_usd(attempt.cost_nusd)))
    return Station(
        attempt.model,
        _TONES.get(attempt.outcome, "refused"),
        tuple(lines),
        _KINDS[attempt.kind],
    )


def flow_of(record: DecisionRecord, *, is_tall: bool) -> Flow:
    """Return the picture of ``record``."""
    return (_tall if is_tall else _wide)(*_stations(record))


def _box(station: Station, x: int, y: int, width: int = WIDTH) -> Box:
    return Box(
        x=x,
        y=y,
        width=width,
        height=station.height,
        title=station.title if len(station.title) <= 20 else f"{station.title[:19]}…",
        aside=station.aside,
        tone=station.tone,
        lines=station.lines,
    )


def _wide(client: Station, edge: Station, validator: Station, attempts: Sequence[Station]) -> Flow:
    middle = MARGIN + WIDTH + GAP
    right = middle + WIDTH + GAP
    stacked = sum(one.height + STACK_GAP for one in attempts) - STACK_GAP
    # Client, validator and the middle of the attempts are on one line, and none sticks out above.
    heart = max(
        MARGIN + edge.height + EDGE_GAP + max(validator.height, client.height) // 2,
        MARGIN + stacked // 2,
    )
    centre = _box(validator, middle, heart - validator.height // 2)
    above = _box(edge, middle, centre.y - EDGE_GAP - edge.height)
    first = _box(client, MARGIN, heart - client.height // 2)
    stack: list[Box] = []
    y = heart - stacked // 2
    for attempt in attempts:
        stack.append(_box(attempt, right, y))
        y += stack[-1].height + STACK_GAP
    boxes = (first, above, centre, *stack)
    down = f"M{middle + WIDTH // 2} {above.y + above.height}V{centre.y - TIP}"
    around = f"M{middle} {above.y + above.height // 2}H{MARGIN + WIDTH // 2}V{first.y - TIP}"
    half = right - GAP // 2
    return Flow(
        width=max(box.x for box in boxes) + WIDTH + MARGIN,
        height=max(box.y + box.height for box in boxes) + MARGIN,
        boxes=boxes,
        arrows=(
            Arrow(path=f"M{first.x + WIDTH} {heart}H{middle - TIP}"),
            Arrow(path=down, is_dashed=True),
            Arrow(path=around, is_dashed=True),
            *(
                Arrow(
                    path=f"M{middle + WIDTH} {heart}H{half}V{box.y + box.height // 2}H{right - TIP}"
                )
                for box in stack
            ),
        ),
    )


def _tall(client: Station, edge: Station, validator: Station, attempts: Sequence[Station]) -> Flow:
    boxes: list[Box] = []
    arrows: list[Arrow] = []
    y = MARGIN
    # The edge first: what it gave was there before the request was.
    for station in (edge, client, validator, *attempts):
        if boxes:
            top = boxes[-1].y + boxes[-1].height
            path = f"M{MARGIN + TALL_WIDTH // 2} {top}V{y - TIP}"
            arrows.append(Arrow(path=path, is_dashed=len(boxes) == 1))
        boxes.append(_box(station, MARGIN, y, TALL_WIDTH))
        y += station.height + TALL_GAP
    return Flow(
        width=TALL_WIDTH + 2 * MARGIN,
        height=y - TALL_GAP + MARGIN,
        boxes=tuple(boxes),
        arrows=tuple(arrows),
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
                tone = _TONES.get(attempt.outcome, "refused")
                took = attempt.duration_ms
                steps.append(_step(attempt.model, begin, took, whole, tone, _KINDS[attempt.kind]))
                begin += took
        at += ms
    return tuple(steps)


def _step(name: str, at: float, ms: float, whole: float, tone: Tone, aside: str = "") -> Step:
    start = min(100 * at / whole, 99.4)
    return Step(
        name=name,
        aside=aside,
        duration_ms=ms,
        start=round(start, 2),
        width=round(min(max(100 * ms / whole, 0.6), 100 - start), 2),
        tone=tone,
    )
