"""Reads outcomes: how well a weak and a strong model did on the same prompts."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from waypost.cli.yamlfile import FileError, Finding

__all__ = ["Graded", "Label", "read_graded", "read_labels"]

T = TypeVar("T", bound="Label | Graded")

Quality = Annotated[float, Meta(ge=0, le=1)]

MIN_LABELS = 100  # fewer, and an APGR of 0.5 looks like anything from 0.2 to 0.8


class Label(Struct, frozen=True, kw_only=True):
    """One prompt and how good each model's answer to it was, from 0 to 1 (wrong, right)."""

    prompt: str
    weak: Quality
    strong: Quality


class Graded(Struct, frozen=True, kw_only=True):
    """One answer of the weak model, how good it was, and how good the strong model's was.

    Attributes:
        answer: what the weak model wrote; or else
        confidence: how sure it was, as a record says it, 0 to 1.
    """

    weak: Quality
    strong: Quality
    answer: str | None = None
    confidence: Quality | None = None


_decode_label = msgspec.json.Decoder(Label).decode
_decode_graded = msgspec.json.Decoder(Graded).decode


def read_labels(path: Path) -> list[Label]:
    """Return the labels in ``path``: JSON lines, gzipped if the name ends in ``.gz``.

    Raises:
        FileError: every line that does not hold; or too few of them, or nothing to learn.
    """
    return _read(path, _decode_label, "prompt, weak and strong")


def read_graded(path: Path) -> list[Graded]:
    """Return the graded answers in ``path``, as ``read_labels`` does.

    Raises:
        FileError: likewise; or some have neither confidence nor answer.
    """
    graded = _read(path, _decode_graded, "weak, strong, and answer or confidence")
    lacking = {
        field: sum(getattr(one, field) is None for one in graded)
        for field in ("answer", "confidence")
    }
    if min(lacking.values()):
        message = f"{min(lacking.values())} lines lack what the others have: answer or confidence"
        raise FileError([Finding(file=path.name, line=0, path="", message=message)])
    return graded


def _read(path: Path, decode: Callable[[bytes], T], wanted: str) -> list[T]:
    def wrong(line: int, message: str) -> Finding:
        return Finding(file=path.name, line=line, path="", message=message)

    labels: list[T] = []
    findings: list[Finding] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    if line.strip():
                        labels.append(decode(line))
                except msgspec.DecodeError as exc:
                    findings.append(wrong(number, f"{exc}; want {wanted}"))
                except UnicodeDecodeError:
                    findings.append(wrong(number, "is not UTF-8"))
                except RecursionError:
                    findings.append(wrong(number, f"is nested too deep; want {wanted}"))
    except (OSError, EOFError, zlib.error) as exc:
        raise FileError([wrong(0, f"cannot be read: {exc}")]) from exc
    if not findings and len(labels) < MIN_LABELS:
        findings.append(wrong(0, f"has {len(labels)} labels; at least {MIN_LABELS} are needed"))
    if not findings and sum(label.strong - label.weak for label in labels) <= 0:
        findings.append(wrong(0, "the strong model is no better on these prompts than the weak"))
    if findings:
        raise FileError(findings)
    return labels
