"""``choose()`` beside what others call a choice, in turns within one run.

Theirs are installed once, pinned, into environments of their own; what does not install is left
out, with a word. Ours chooses with everything on: the decision table, duties, price, capabilities,
and the waits and paces that this client has seen of each model. Theirs have seen nothing yet, which
is their quickest case.
"""

import json
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter_ns

from bench.deciding import a_large_policy
from bench.processes import Unavailable
from bench.rivals import RIVALS, Packages, install
from waypost.client import Waypost
from waypost.client.testing import static_waypost

PROGRAM = Path(__file__).parent / "choosing_rivals.py"
LITELLM = next(rival for rival in RIVALS if rival.name == "LiteLLM")
FLAGS = Packages("flags", "growthbook==4.0.0 openfeature-sdk==0.10.0")
ROUNDS, CALLS = 12, 100
QUESTIONS = [
    f"What is the capital of country {i}, and how many people live there?" for i in range(CALLS)
]

Took = Callable[[], list[int]]


@contextmanager
def _theirs(rival: Packages, what: str) -> Iterator[dict[str, Took]]:
    install(rival)
    with subprocess.Popen(
        [rival.home / "bin/python", PROGRAM, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        asked, told = process.stdin, process.stdout
        if asked is None or told is None:
            raise Unavailable("no pipe")

        def took(name: str) -> list[int]:
            asked.write(f"{name}\n")
            asked.flush()
            times: list[int] = json.loads(told.readline())
            return times

        names = told.readline()
        if not names:
            raise Unavailable(f"{rival.package} does not run")
        yield {name: lambda name=name: took(name) for name in json.loads(names)}  # type: ignore[misc]
        process.terminate()


def _ours(wp: Waypost) -> list[int]:
    took: list[int] = []
    for question in QUESTIONS:
        start = perf_counter_ns()
        wp.choose(question)
        took.append(perf_counter_ns() - start)
    return took


def _client(models: int) -> Waypost:
    """Return a client that has heard from each of so many models, so that each counts."""
    wp = static_waypost(a_large_policy(10, models), tier="pro")
    chosen = wp.choose(QUESTIONS[0])
    if chosen.decision is None or len(chosen.decision.candidates) != models:
        raise RuntimeError("fewer models are chosen from than were meant")
    book = wp._core.models  # to be as after some requests
    for place, model in enumerate(chosen.decision.candidates):
        book.observe(model, 300.0 + 5 * place, expected_ms=300.0, now_s=monotonic())
        book.observe_tpot(model, 1.1, monotonic())
    return wp


def rows() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    result: list[tuple[str, str, str]] = []
    clients = {count: _client(count) for count in (10, 100)}
    for rival, what in ((LITELLM, "litellm"), (FLAGS, "flags")):
        try:
            with _theirs(rival, what) as theirs:
                result += _compared(clients, theirs)
        except Unavailable as why:
            result.append((rival.name, f"skipped: {why}", ""))
    return result


def _compared(
    clients: dict[int, Waypost], theirs: dict[str, Took]
) -> Iterator[tuple[str, str, str]]:
    for name, measure in theirs.items():
        count = 100 if name.endswith("100") else 10
        ours_ns: list[int] = []
        theirs_ns: list[int] = []
        for _ in range(ROUNDS):
            ours_ns += _ours(clients[count])
            theirs_ns += measure()
        ours_us = statistics.median(ours_ns) / 1_000
        their_us = statistics.median(theirs_ns) / 1_000
        kind = "LiteLLM's Router, " if "," in name else ""
        yield (
            f"choose() of {count} models, and {kind}{name}",
            f"{ours_us:.1f} and {their_us:.1f} µs: {their_us / ours_us:.1f} ×",
            "≥ 30 ×" if count == 100 else "≤ 15 µs",
        )
