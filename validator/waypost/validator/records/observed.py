"""What records show of each model's health and speed, as hints that an edge can sign. Pure.

The rule: a model is judged by its provider's doing alone, as its breaker judges it; neither what
callers did wrong nor limits of our rate count, nor what failed for one account alone while others
were served. Of a model that was hardly asked nothing is said.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import median

from waypost.shared.contracts import Hint
from waypost.shared.records import Attempt, AttemptOutcome, DecisionRecord

__all__ = ["hints_of"]

ENOUGH = 5  # as many failures open a breaker, after which a model is hardly asked any more

FASTEST_TOKENS_PER_S = 1_000_000.0  # as hints may say; an answer from a cache comes all at once

_FAILED: frozenset[AttemptOutcome] = frozenset(
    {
        "bad_response",
        "connect_error",
        "cut_short",
        "key_refused",
        "model_not_found",
        "server_error",
        "timeout",
    }
)


class _Seen:
    """Of one model: how attempts went, when answers began, how fast they came."""

    def __init__(self) -> None:
        self.answered = 0
        self._failed: Counter[str | None] = Counter()
        self._accounts: set[str | None] = set()
        self.ttft_ms: list[float] = []
        self.tokens_per_s: list[float] = []

    @property
    def failed(self) -> int:
        """How many failed; where several accounts ask, without the one that met it most."""
        loudest = max(self._failed.values(), default=0) if len(self._accounts) > 1 else 0
        return self._failed.total() - loudest

    def add(self, attempt: Attempt, account: str | None, output_tokens: int | None) -> None:
        self._accounts.add(account)
        self.answered += attempt.outcome == "ok"
        self._failed[account] += attempt.outcome in _FAILED
        if attempt.outcome != "ok" or attempt.ttft_ms is None:
            return
        self.ttft_ms.append(attempt.ttft_ms)
        rest_ms = attempt.duration_ms - attempt.ttft_ms
        if output_tokens and rest_ms > 0:
            self.tokens_per_s.append(min(output_tokens * 1_000 / rest_ms, FASTEST_TOKENS_PER_S))


def hints_of(records: Iterable[DecisionRecord]) -> tuple[Hint, ...]:
    """Return a hint on each model that was asked often enough, by id."""
    seen: defaultdict[str, _Seen] = defaultdict(_Seen)
    for record in records:
        answers = [attempt for attempt in record.attempts if attempt.outcome == "ok"]
        # Usage is known of the answer that was told, so only where there is no other.
        usage = record.usage if len(answers) == 1 else None
        for attempt in record.attempts:
            tokens = None if usage is None else usage.output_tokens
            seen[attempt.model].add(attempt, record.account, tokens)
    return tuple(
        Hint(
            model=model,
            ttft_ms=_middle(one.ttft_ms),
            tokens_per_s=_middle(one.tokens_per_s),
            health=one.answered * 100 // (one.answered + one.failed),
        )
        for model, one in sorted(seen.items())
        if one.answered + one.failed >= ENOUGH
    )


def _middle(values: list[float]) -> int | None:
    return round(median(values)) if len(values) >= ENOUGH else None
