"""What recorded requests would have come to under another policy. Pure.

Each record's facts are decided anew by the engine. Tokens are taken to be what they were, so
that a cost is the recorded usage at the new model's price. A proposal that a client made from
its manifest is left out, since it would make another; a model that a caller named is kept.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Raw, Struct, structs
from msgspec.json import Decoder

from waypost.shared.contracts import Facts, Policy, Proposal, Share, Signed, TextHas
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.costs import cost_estimate_nusd
from waypost.shared.decision.engine import REFUSAL_CODES, decide
from waypost.shared.decision.rules import COHORT_BITS
from waypost.shared.money import Usage, bill

__all__ = ["Flow", "Simulation", "TierChange", "simulate"]

NO_COHORT = -1


class _Signed(Signed, frozen=True, kw_only=True):
    cohort: int = NO_COHORT


class _Facts(Facts, frozen=True, kw_only=True):
    signed: _Signed


class _Record(Struct, frozen=True, kw_only=True):
    """What is looked at in a record; the rest is never decoded."""

    verdict: str
    reason: str
    subject: str = ""
    facts: _Facts | None = None
    proposal: Proposal | None = None
    model: str | None = None
    usage: Usage | None = None
    cost_nusd: int = 0
    ttft_ms: float | None = None
    manifest_digest: str | None = None


class TierChange(Struct, kw_only=True):
    """Requests of one tier, before and after.

    Attributes:
        ttft_before_ms, ttft_after_ms: mean times to the first token, of requests that were
            answered and still would be; ``None`` without any. After: as the model took on
            average in this traffic, or as the policy expects where it did not occur.
    """

    requests: int = 0
    refused_before: int = 0
    refused_after: int = 0
    cost_before_nusd: int = 0
    cost_after_nusd: int = 0
    ttft_before_ms: float | None = None
    ttft_after_ms: float | None = None


class Flow(Struct, frozen=True, kw_only=True):
    """Requests that went to ``before`` and would go to ``after``; ``None``: refused."""

    before: str | None
    after: str | None
    requests: int
    cost_before_nusd: int
    cost_after_nusd: int


class Simulation(Struct, frozen=True, kw_only=True):
    """What came of a simulation.

    Attributes:
        requests: decided anew.
        skipped: records without facts: refused before anything was known of them.
        incomplete: fact that the new rules look at → records that lack it, so that nobody can
            say what would have become of them. They are in no other figure.
        routes: rule → requests that it would decide.
        refusals: reason → requests refused so, before and after.
        flows: most requests first.
        remarks: what these figures cannot know.
    """

    requests: int
    skipped: int
    incomplete: dict[str, int]
    tiers: dict[str, TierChange]
    models: dict[str, tuple[int, int]]
    routes: dict[str, int]
    refusals: dict[str, tuple[int, int]]
    flows: tuple[Flow, ...]
    remarks: tuple[str, ...]

    @property
    def total(self) -> TierChange:
        """All tiers together, times aside."""
        fields = [f for f in TierChange.__struct_fields__ if not f.endswith("_ms")]
        sums: dict[str, Any] = {
            field: sum(getattr(change, field) for change in self.tiers.values()) for field in fields
        }
        return TierChange(**sums)


def simulate(
    policy: CompiledPolicy,
    bodies: Iterable[bytes | str | Raw],
    *,
    before: Mapping[str, Policy] | None = None,
) -> Simulation:
    """Return what the records in ``bodies`` would come to under ``policy``.

    Args:
        before: the manifests that the records were decided by, by digest, as far as known.

    Raises:
        msgspec.MsgspecError: a body is no decision record.
    """
    decode, tally = Decoder(_Record).decode, _Tally(policy)
    for body in bodies:
        tally.add(decode(body))
    return tally.result(before or {})


class _Cell:
    """Requests of one tier that went to one model and would go to one model."""

    __slots__ = ("after_nusd", "before_nusd", "requests", "timed", "ttft_ms")

    def __init__(self) -> None:
        self.requests = 0
        self.before_nusd = 0
        self.after_nusd = 0
        self.timed = 0
        self.ttft_ms = 0.0


# By tier, model before, model after; ``None`` where it was or would be refused.
_Cells = dict[tuple[str, str | None, str | None], _Cell]


class _Tally:
    """Counts records as they go by."""

    def __init__(self, policy: CompiledPolicy) -> None:
        self._policy = policy
        self._prices = {name: model.price for name, model in policy.models.items()}
        self._has_shares = any(
            isinstance(each, Share) for route in policy.policy.routes for each in route.when
        )
        self._cells: _Cells = {}
        self._routes: Counter[str | None] = Counter()
        self._refused_before: Counter[str] = Counter()
        self._refused_after: Counter[str] = Counter()
        self._incomplete: Counter[str] = Counter()
        self._digests: Counter[str | None] = Counter()
        self._found: set[str] = set()
        self._skipped = 0
        self._without_cohort = 0

    def add(self, record: _Record) -> None:
        """Decide one record anew, and count what becomes of it."""
        facts: Facts | None = record.facts
        if facts is None:
            self._skipped += 1
            return
        if self._policy.rules.needs_facts and (missing := self._policy.missing(facts)):
            self._incomplete.update(missing)
            return
        if self._has_shares and facts.signed.cohort == NO_COHORT:
            self._without_cohort += 1
            facts = _with_cohort(facts, record.subject)
        self._digests[record.manifest_digest] += 1
        measured = facts.measured
        if measured.keywords or measured.patterns:
            self._found.update(measured.keywords, measured.patterns or ())
        was = None if record.verdict == "refused" else record.model
        now, cost_nusd = self._decide(record, facts, was)
        key = (facts.signed.tier, was, now)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
        cell.requests += 1
        cell.before_nusd += record.cost_nusd
        cell.after_nusd += cost_nusd
        if record.ttft_ms is not None and was is not None:
            cell.timed += 1
            cell.ttft_ms += record.ttft_ms

    def _decide(self, record: _Record, facts: Facts, was: str | None) -> tuple[str | None, int]:
        """Return the model that would serve the request, and what that would cost."""
        if was is None:
            self._refused_before[record.reason] += 1
            if record.reason not in REFUSAL_CODES:
                # An empty account, or a provider that failed: no policy changes that.
                self._refused_after[record.reason] += 1
                return None, 0
        proposal = record.proposal
        if proposal is not None and proposal.route is not None:
            proposal = None
        decision = decide(self._policy, facts, proposal)
        if decision.route is not None:
            self._routes[decision.route] += 1
        now = decision.model
        if now is None:
            self._refused_after[decision.reason] += 1
            return None, 0
        if record.usage is not None:
            return now, bill(self._prices[now], record.usage)
        if was is not None:
            return now, record.cost_nusd
        return now, cost_estimate_nusd(self._policy.policy, self._policy.models[now], facts)

    def result(self, before: Mapping[str, Policy]) -> Simulation:
        """Return what was counted; ``before`` as ``simulate`` has it."""
        policy, cells = self._policy.policy, self._cells
        reasons = sorted({*self._refused_before, *self._refused_after})
        return Simulation(
            requests=sum(cell.requests for cell in cells.values()),
            skipped=self._skipped,
            incomplete=dict(self._incomplete),
            tiers=_tiers(cells, self._expected_ms()),
            models=_models(cells),
            routes={route.name: self._routes[route.name] for route in policy.routes},
            refusals={r: (self._refused_before[r], self._refused_after[r]) for r in reasons},
            flows=_flows(cells),
            remarks=tuple(
                _remarks(policy, before, self._digests, self._found, self._without_cohort)
            ),
        )

    def _expected_ms(self) -> dict[str, float]:
        """Return the time to first token of each model: as in this traffic, else as written."""
        timed: dict[str, tuple[int, float]] = {}
        for (_, was, _), cell in self._cells.items():
            if was is not None and cell.timed:
                count, total = timed.get(was, (0, 0.0))
                timed[was] = (count + cell.timed, total + cell.ttft_ms)
        expected = {name: float(prior) for name, prior in self._policy.ttft_ms.items()}
        return expected | {name: total / count for name, (count, total) in timed.items()}


def _with_cohort(facts: Facts, subject: str) -> Facts:
    """Return ``facts`` with a place that is the same for each request of one subject."""
    try:
        drawn = int(subject[:8], 16) >> max(0, 4 * len(subject[:8]) - COHORT_BITS)
    except ValueError:
        drawn = 0

    return structs.replace(facts, signed=structs.replace(facts.signed, cohort=drawn))


def _tiers(cells: _Cells, expected_ms: Mapping[str, float]) -> dict[str, TierChange]:
    tiers: dict[str, TierChange] = {}
    # Requests with a time, the sum of those times, and the sum of those expected.
    times: dict[str, tuple[int, float, float]] = {}
    for (tier, was, now), cell in cells.items():
        change = tiers.setdefault(tier, TierChange())
        change.requests += cell.requests
        change.refused_before += cell.requests if was is None else 0
        change.refused_after += cell.requests if now is None else 0
        change.cost_before_nusd += cell.before_nusd
        change.cost_after_nusd += cell.after_nusd
        if now is not None and cell.timed:
            timed, ttft_ms, after_ms = times.get(tier, (0, 0.0, 0.0))
            times[tier] = (
                timed + cell.timed,
                ttft_ms + cell.ttft_ms,
                after_ms + cell.timed * expected_ms[now],
            )
    for tier, (timed, ttft_ms, after_ms) in times.items():
        tiers[tier].ttft_before_ms = ttft_ms / timed
        tiers[tier].ttft_after_ms = after_ms / timed
    return dict(sorted(tiers.items(), key=lambda item: -item[1].requests))


def _models(cells: _Cells) -> dict[str, tuple[int, int]]:
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for (_, was, now), cell in cells.items():
        if was is not None:
            before[was] += cell.requests
        if now is not None:
            after[now] += cell.requests
    mix = {name: (before[name], after[name]) for name in {*before, *after}}
    return dict(sorted(mix.items(), key=lambda item: (-max(item[1]), item[0])))


def _flows(cells: _Cells) -> tuple[Flow, ...]:
    sums: dict[tuple[str | None, str | None], tuple[int, int, int]] = {}
    for (_, was, now), cell in cells.items():
        count, before, after = sums.get((was, now), (0, 0, 0))
        sums[was, now] = (
            count + cell.requests,
            before + cell.before_nusd,
            after + cell.after_nusd,
        )
    flows = [
        Flow(before=was, after=now, requests=count, cost_before_nusd=cost, cost_after_nusd=new_cost)
        for (was, now), (count, cost, new_cost) in sums.items()
    ]
    return tuple(sorted(flows, key=lambda flow: -flow.requests))


def _remarks(
    policy: Policy,
    before: Mapping[str, Policy],
    digests: Mapping[str | None, int],
    found: set[str],
    without_cohort: int,
) -> Iterator[str]:
    if without_cohort:
        yield (
            f"{without_cohort:,} records do not say where their caller stands among the shares:"
            " each caller was given a place, so who is in which share is not who will be"
        )
    wanted = _words(policy)
    unlooked: dict[str, int] = {}
    unknown = 0
    for digest, count in digests.items():
        old = before.get(digest or "")
        unknown += count if old is None else 0
        for word in wanted - (_words(old) if old is not None else wanted):
            unlooked[word] = unlooked.get(word, 0) + count
        if (
            old is not None
            and "complexity" in _asked(policy)
            and old.complexity != policy.complexity
        ):
            yield f"{count:,} records got their complexity from another model than this policy's"
        if old is not None and "semantic" in _asked(policy) and old.semantic != policy.semantic:
            yield f"{count:,} records were told apart by other examples than this policy's"
    for word, count in sorted(unlooked.items()):
        yield f"'{word}' was not looked for in {count:,} records: rules on it did not match them"
    never = sorted(wanted - found - unlooked.keys())
    if unknown and never:
        yield (
            "found in no record, and perhaps never looked for: "
            + ", ".join(f"'{word}'" for word in never)
        )


def _words(policy: Policy) -> set[str]:
    """Return the keywords and patterns that the policy has looked for."""
    return {
        word
        for route in policy.routes
        for each in route.when
        if isinstance(each, TextHas) and each.field in {"keywords", "patterns"}
        for word in (*each.any_of, *each.all_of, *each.none_of)
    }


def _asked(policy: Policy) -> set[str]:
    return {getattr(each, "field", "") for route in policy.routes for each in route.when}
