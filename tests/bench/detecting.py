"""What detecting data classes costs, and how often it is right on the labelled cases."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from timeit import repeat

from msgspec import Struct
from msgspec.json import Decoder

from waypost.validator.detectors import Detectors, json_text, load_detectors
from waypost.validator.detectors.patterns import BUILT_IN

FOLDER = Path(__file__).parent.parent / "validator" / "detectors" / "cases"
CHAT_CHARS = 1_500


class Case(Struct, frozen=True):
    """A text, and all kinds of data that it contains."""

    kinds: tuple[str, ...]
    lang: str
    text: str


class Accuracy(Struct, frozen=True):
    """How the findings of one kind compare with the labels."""

    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float:
        return self.right / ((self.right + self.wrong) or 1)

    @property
    def recall(self) -> float:
        return self.right / ((self.right + self.missed) or 1)


_decode = Decoder(Case).decode


def load_cases() -> list[Case]:
    """Return the labelled cases.

    A credential is written with ``¦`` in it, so that scanners of repositories pass it by.
    """
    return [
        _decode(line.replace("¦", ""))
        for file in sorted(FOLDER.glob("*.jsonl"))
        for line in file.read_text("utf-8").splitlines()
    ]


def accuracy(detectors: Detectors, cases: Iterable[Case]) -> dict[str, Accuracy]:
    """Return the accuracy per kind; every case counts for every kind."""
    right, wrong, missed = Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        found = detectors.find([case.text])
        right.update(found.intersection(case.kinds))
        wrong.update(found.difference(case.kinds))
        missed.update(set(case.kinds) - found)
    return {kind: Accuracy(right[kind], wrong[kind], missed[kind]) for kind in BUILT_IN}


def _row(what: str, text: str, find: Callable[[], object], aim: str = "") -> tuple[str, str, str]:
    number = max(1, 200_000 // len(text))
    us = min(repeat(find, number=number, repeat=9)) / number * 1e6
    return f"detect, {what}", f"{us:,.1f} µs ({us * 1_000 / len(text):.1f} µs/kB)", aim


def rows() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    detectors = load_detectors({kind: kind for kind in BUILT_IN})
    cases = load_cases()
    chat = (
        "Please summarise these notes for the support team and list every open question, with an"
        " owner and a date.\nIn 2024 we shipped 14 releases; tickets fell from 1,240 to 873. " * 10
    )[:CHAT_CHARS]
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": chat}]}).encode()
    texts = [
        ("German chat, 1.5 kB", ("Bitte kürzen Sie den Vertrag für Köln. " * 40)[:CHAT_CHARS]),
        ("nothing but near misses", " ".join([case.text for case in cases if not case.kinds])),
        ("1 MB of broken card numbers", "4111 1111 1111 1112\n" * 50_000),
        ("1 MB of digits and zero-width spaces", "4\u200b" * 500_000),
    ]
    return [
        _row("English chat, 1.5 kB", chat, lambda: detectors.classes([chat]), "≤ 30 µs"),
        _row(
            "the same as a JSON body", chat, lambda: detectors.classes([json_text(body)]), "≤ 30 µs"
        ),
        *(_row(what, text, partial(detectors.classes, [text])) for what, text in texts),
        *(
            (
                f"detect {kind}, precision and recall",
                f"{found.precision:.2f} {found.recall:.2f}",
                "",
            )
            for kind, found in accuracy(detectors, cases).items()
        ),
    ]
