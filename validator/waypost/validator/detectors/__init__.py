"""Which data classes a request has by what its text contains.

A *kind* is something that can be recognised: a card number, an e-mail address. A *data class* is
the operator's word for the duties that come with it, as the policy lists them. ``validator.yaml``
maps one to the other. A detected class only adds duties, as a declared one does.

Other packages add kinds through the entry-point group ``waypost.detectors``: the entry is named
after the kind and points at a class without arguments that is a ``Detector``.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from waypost.validator.config import ConfigError
from waypost.validator.detectors.patterns import BUILT_IN, Patterns
from waypost.validator.detectors.text import fold, json_text

__all__ = ["GROUP", "Detector", "Detectors", "json_text", "load_detectors", "undetected"]

GROUP = "waypost.detectors"

logger = logging.getLogger(__name__)


@runtime_checkable
class Detector(Protocol):
    """Finds some kinds of data. Called for each request, from several threads at once."""

    kinds: tuple[str, ...]

    def find(self, text: str) -> frozenset[str]:
        """Return those of ``kinds`` that ``text`` contains.

        Digits, dashes, spaces and quotes come in ASCII, without invisible characters between.
        Time must be linear in the text. An exception counts as having found all kinds.
        """
        ...


class Detectors:
    """All configured detectors, and the data class that each kind raises."""

    def __init__(self, detectors: Iterable[Detector], classes: Mapping[str, str]) -> None:
        self._detectors = tuple(detectors)
        self._classes = dict(classes)

    def find(self, texts: Iterable[str]) -> frozenset[str]:
        """Return the configured kinds that the texts contain; all of each text is looked at."""
        if not self._detectors:
            return frozenset()
        text = fold("\0".join(texts))
        found: set[str] = set()
        for detector in self._detectors:
            try:
                found |= detector.find(text)
            except Exception as exc:
                # Its words may quote the text, so its type has to do.
                logger.error(
                    "detector %s failed with %s; taken as having found %s",
                    type(detector).__name__,
                    type(exc).__name__,
                    ", ".join(detector.kinds),
                )
                found.update(detector.kinds)
        return frozenset(found & self._classes.keys())

    def classes(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the data classes of the texts, sorted."""
        return tuple(sorted({self._classes[kind] for kind in self.find(texts)}))

    def undefined(self, data_classes: Collection[str]) -> tuple[str, ...]:
        """Return the classes that detectors may raise and a policy does not define, sorted.

        A request in which one of them is found is refused, as any with an unknown class.
        """
        return tuple(sorted({*self._classes.values()} - {*data_classes}))


def undetected(kinds: Iterable[str]) -> dict[str, set[str]]:
    """Return those of ``kinds`` that nothing here detects, each with all that can be."""
    foreign = [kind for kind in kinds if kind not in BUILT_IN]
    known = (
        {*BUILT_IN, *(each.name for each in entry_points(group=GROUP))} if foreign else set[str]()
    )
    return {kind: known for kind in foreign if kind not in known}


def load_detectors(config: Mapping[str, str]) -> Detectors:
    """Return the detectors of the kinds in ``config``: kind → data class.

    Code of another package is imported only if it is named here.

    Raises:
        ConfigError: a kind that nothing detects, or that several do, or whose detector does not
            load.
    """
    offered: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        offered.setdefault(entry.name, []).append(entry)
    built_in: list[str] = []
    others: dict[str, Detector] = {}
    for kind in config:
        entries = offered.get(kind, [])
        if len(entries) + (kind in BUILT_IN) > 1:
            raise ConfigError(
                f"detectors.{kind}: {_origins(entries)} detects what is already detected;"
                " uninstall one"
            )
        if entries:
            value = entries[0].value
            detector = others[value] = others.get(value) or _load(kind, entries[0])
            if kind not in detector.kinds:
                raise ConfigError(f"detectors.{kind}: {value} does not detect this kind")
        elif kind in BUILT_IN:
            built_in.append(kind)
        else:
            known = ", ".join(sorted({*BUILT_IN, *offered}))
            raise ConfigError(f"detectors.{kind}: nothing detects this; known are {known}")
    detectors: list[Detector] = [Patterns(built_in)] if built_in else []
    return Detectors([*detectors, *others.values()], config)


def _origins(entries: Iterable[EntryPoint]) -> str:
    return " and ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in entries))


def _load(kind: str, entry: EntryPoint) -> Detector:
    try:
        detector: object = entry.load()()
    except Exception as exc:
        raise ConfigError(
            f"detectors.{kind}: {entry.value} does not load: {type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(detector, Detector):
        raise ConfigError(f"detectors.{kind}: {entry.value} is no detector: see Detector")
    return detector
