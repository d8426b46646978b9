"""What a policy's rules look for in the newest user message, found the same way everywhere.

Only what some rule asks for is looked for. What cannot be looked for here is left ``None``, and
whoever needs it refuses rather than guesses: regular expressions want RE2 (the extra ``regex``),
whose time is linear in the text whatever the expression, and meaning wants the extra ``semantic``.
"""

import re
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Protocol, TypedDict

from waypost.shared.contracts import Route, TextHas
from waypost.shared.decision.rules import field_of
from waypost.shared.scoring.complexity import ComplexityModel, ComplexityScorer
from waypost.shared.scoring.embedding import EmbeddingModel, EmbeddingScorer, is_installed
from waypost.shared.scoring.semantic import Scorer, SemanticModel, SemanticScorer

__all__ = ["SCAN_CHARS", "Findings", "TextReader", "Vocabulary"]

SCAN_CHARS = 20_000  # keeps the slowest request bounded; the newest text is kept

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Findings(TypedDict, total=False):
    """Fields of ``Measured``; those that no rule asks for are absent."""

    keywords: tuple[str, ...]
    patterns: tuple[str, ...]
    complexity: int
    language: str
    semantic: str


class Vocabulary:
    """Keywords, found as whole words, case folded."""

    def __init__(self, keywords: Iterable[str]) -> None:
        self._words: dict[str, str] = {}
        self._phrases: list[tuple[str, str]] = []
        for keyword in keywords:
            words = _WORD.findall(keyword.casefold())
            if len(words) == 1:
                self._words[words[0]] = keyword
            elif words:
                self._phrases.append((f" {' '.join(words)} ", keyword))
        self._stems = {phrase.split()[0] for phrase, _ in self._phrases} | self._words.keys()

    def find(self, text: str) -> tuple[str, ...]:
        """Return the keywords in ``text``, sorted."""
        folded = text.casefold()
        # Most texts have none, and that shows at a fortieth of the cost of taking them apart.
        if not any(stem in folded for stem in self._stems):
            return ()
        words = _WORD.findall(folded)
        found = {self._words[word] for word in set(words) & self._words.keys()}
        if self._phrases:
            joined = f" {' '.join(words)} "
            found.update(keyword for phrase, keyword in self._phrases if phrase in joined)
        return tuple(sorted(found))


class _Compiled(Protocol):
    def search(self, text: bytes) -> object | None: ...


def _pattern_finder(patterns: Iterable[str]) -> Callable[[str], tuple[str, ...]] | None:
    try:
        re2: Any = import_module("re2")  # ships no types
    except ModuleNotFoundError:
        return None
    # As bytes, since RE2's Python binding otherwise converts each offset.
    compiled: list[tuple[str, _Compiled]] = [(p, re2.compile(p.encode())) for p in patterns]

    def find(text: str) -> tuple[str, ...]:
        raw = text.encode(errors="replace")
        return tuple(pattern for pattern, found in compiled if found.search(raw) is not None)

    return find


class TextReader:
    """Looks for what the rules of one policy ask for."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        complexity: ComplexityModel | None = None,
        semantic: SemanticModel | None = None,
        embedding: EmbeddingModel | None = None,
    ) -> None:
        conditions = [condition for route in routes for condition in route.when]
        asked = {field_of(condition) for condition in conditions}

        def words(field: str) -> list[str]:
            return sorted(
                {
                    word
                    for condition in conditions
                    if isinstance(condition, TextHas) and condition.field == field
                    for word in (*condition.any_of, *condition.all_of, *condition.none_of)
                }
            )

        self._keywords = Vocabulary(words("keywords")).find if "keywords" in asked else None
        self._patterns = _pattern_finder(words("patterns")) if "patterns" in asked else None
        self._complexity = ComplexityScorer(complexity).score if "complexity" in asked else None
        self._language: Callable[[str], str] | None = None
        if "language" in asked:
            # Its alphabets take 2 ms to compile, which an app that starts has better use for.
            from waypost.shared.scoring.language import language_of

            self._language = language_of
        self._semantic: Scorer | None = None
        if "semantic" in asked and semantic is not None:
            self._semantic = SemanticScorer(semantic)
        elif "semantic" in asked and embedding is not None and is_installed():
            self._semantic = EmbeddingScorer(embedding)
        # Takes milliseconds, which a server spends beside its event loop.
        self.is_slow: bool = isinstance(self._semantic, EmbeddingScorer)
        # Most policies ask for little; nothing is joined or cut for those that ask for nothing.
        self.is_idle: bool = not (
            self._keywords or self._patterns or self._complexity or self._language or self._semantic
        )

    def read(self, text: str) -> Findings:
        """Return what was found in the last 20,000 characters of ``text``."""
        text = text[-SCAN_CHARS:]
        findings: Findings = {}
        if self._keywords is not None:
            findings["keywords"] = self._keywords(text)
        if self._patterns is not None:
            findings["patterns"] = self._patterns(text)
        if self._complexity is not None:
            findings["complexity"] = self._complexity(text)
        if self._language is not None:
            findings["language"] = self._language(text)
        if self._semantic is not None:
            findings["semantic"] = self._semantic.best(text)[0] or ""
        return findings
