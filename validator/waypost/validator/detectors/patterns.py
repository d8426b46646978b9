"""The detectors that come with the validator, behind quick hints."""

from collections.abc import Iterable

from waypost.validator.detectors.checks import Kind
from waypost.validator.detectors.contacts import EMAIL, MRN, PHONE
from waypost.validator.detectors.linear import Pattern
from waypost.validator.detectors.numbers import CARD, IBAN, SSN
from waypost.validator.detectors.secrets import SECRET

__all__ = ["BUILT_IN", "Patterns"]

BUILT_IN = {kind.name: kind for kind in (CARD, EMAIL, IBAN, MRN, PHONE, SECRET, SSN)}


class Patterns:
    """A ``Detector`` of the given built-in kinds."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self.kinds = tuple(sorted(kinds))
        self._by_hint: dict[Pattern, list[Kind]] = {}
        for kind in self.kinds:
            self._by_hint.setdefault(BUILT_IN[kind].hint, []).append(BUILT_IN[kind])

    def find(self, text: str) -> frozenset[str]:
        """Return the kinds in folded ``text``."""
        encoded = text.encode("utf-8", "replace")
        return frozenset(
            [
                kind.name
                for hint, kinds in self._by_hint.items()
                if hint.is_in(encoded)
                for kind in kinds
                if kind.is_in(encoded)
            ]
        )
