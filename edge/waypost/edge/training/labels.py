"""Reads outcomes: how well a weak and a strong model did on the same prompts."""

import gzip
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from waypost.cli.yamlfile import FileError, Finding

__all__ = ["Label", "read_labels"]

Quality = Annotated[float, Meta(ge=0, le=1)]

MIN_LABELS = 100  # fewer, and an APGR of 0.5 looks like anything from 0.2 to 0.8


class Label(Struct, frozen=True, kw_only=True):
    """One prompt and how good each model's answer to it was, from 0 to 1 (wrong, right)."""

    prompt: str
    weak: Quality
    strong: Quality


_decode = msgspec.json.Decoder(Label).decode


def read_labels(path: Path) -> list[Label]:
    """Return the labels in ``path``: JSON lines, gzipped if the name ends in ``.gz``.

    Raises:
        FileError: every line that does not hold; or too few of them, or nothing to learn.
    """

    def wrong(line: int, message: str) -> Finding:
        return Finding(file=path.name, line=line, path="", message=message)

    labels: list[Label] = []
    findings: list[Finding] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    if line.strip():
                        labels.append(_decode(line))
                except msgspec.DecodeError as exc:
                    findings.append(wrong(number, f"{exc}; want prompt, weak and strong"))
                except UnicodeDecodeError:
                    findings.append(wrong(number, "is not UTF-8"))
    except (OSError, EOFError) as exc:
        raise FileError([wrong(0, f"cannot be read: {exc}")]) from exc
    if not findings and len(labels) < MIN_LABELS:
        findings.append(wrong(0, f"has {len(labels)} labels; at least {MIN_LABELS} are needed"))
    if not findings and sum(label.strong - label.weak for label in labels) <= 0:
        findings.append(wrong(0, "the strong model is no better on these prompts than the weak"))
    if findings:
        raise FileError(findings)
    return labels
