"""Chooses model and endpoint: the engine's set, in the order that this client's latency suggests.

The set is policy, the pick is performance: whatever is learned here only moves a choice within
``decision.candidates``. Pure, but for the book it reads; clock and randomness are arguments.
"""

from collections.abc import Callable, Mapping
from typing import Literal
from zlib import crc32

from msgspec import Struct, structs

from waypost.client._latency import EJECTED, LatencyTracker, two_choices
from waypost.shared.contracts import Endpoint, Facts, Route
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.costs import cost_estimate_nusd, expected_output
from waypost.shared.decision.engine import Decision
from waypost.shared.decision.explain import Explanation, explain
from waypost.shared.money import Usage, bill

__all__ = ["Choice", "ChoiceReason", "Chooser", "Freshness", "base_of", "endpoint_order"]

Freshness = Literal["fresh", "cached", "stale", "none"]

ChoiceReason = Literal["policy_order", "faster", "spread", "others_failing"]

# Waits this close are near enough for chance to spread the load between them, the faster ones
# more often; what is beyond is not proposed. bench/latency_world compares others.
NEAR = 1.35
# The same for ``balanced``, in thousandths of the weights' sum.
NEAR_BALANCED = 50

MEMO_ENTRIES = 1_024

_NO_CHOICE = {
    "no_manifest": "There is no manifest yet, so the validator chooses.",
    "manifest_expired": "The manifest has expired and no newer one came, so the validator chooses."
    " Publish again: waypost publish; last_error says more.",
    "no_token": "There is no access token yet to say whose request this is.",
    "token_unreadable": "The access token's claims cannot be read, so the validator chooses.",
}

_INSTEAD = {
    "faster": "{first} is slower at the moment, so {model} is proposed.",
    "spread": "{model} is about as fast, and to spread the load it is proposed.",
    "others_failing": "{first} is failing at the moment, so {model} is proposed.",
}


class Choice(Struct, frozen=True, kw_only=True, eq=False):
    """What to propose for one request, and why.

    Attributes:
        model: ``None`` when there is nothing to propose; the request is then sent as ``auto``.
        reason: ``policy_order``, or why not the first in that order: ``faster``, ``spread``
            (about as fast) or ``others_failing``. Without a model ``no_manifest``,
            ``manifest_expired``, ``no_token``, ``token_unreadable``, or the code with which the
            policy refuses.
        route: row of the policy's decision table that matched.
        endpoint: base URL of the validator to send to, ending in ``/v1``; ``None`` if none is
            known.
        freshness: of the manifest: ``fresh`` (confirmed by the network), ``cached`` (from disk,
            not yet confirmed), ``stale`` (the last refresh failed), ``none``.
        otherwise: second choice, of another provider where there is one: the validator tries it
            next. ``None`` leaves that to the policy's order.
        predicted_ttft_ms: expected time to first token.
        predicted_ms: expected time to last token, by the length that is expected of the answer.
        facts: what was decided on; ``None`` without a manifest.
    """

    reason: str
    freshness: Freshness
    model: str | None = None
    route: str | None = None
    endpoint: str | None = None
    manifest_version: int | None = None
    otherwise: str | None = None
    predicted_ttft_ms: float | None = None
    predicted_ms: float | None = None
    facts: Facts | None = None
    decision: Decision | None = None
    policy: CompiledPolicy | None = None

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The other admissible models, best first."""
        chain = () if self.decision is None else self.decision.chain
        ranked = chain if self.otherwise is None else (self.otherwise, *chain)
        return tuple(dict.fromkeys(name for name in ranked if name != self.model))

    @property
    def cost_nusd(self) -> int | None:
        """What the request will probably cost, in nano-dollars."""
        if self.policy is None or self.facts is None or self.model is None:
            return None
        return cost_estimate_nusd(self.policy.policy, self.policy.models[self.model], self.facts)

    @property
    def sentence(self) -> str:
        """Why, for a person."""
        return self.explain().sentence

    @property
    def exclusions(self) -> dict[str, str]:
        """Model → why it may not serve this request. Admissible models are absent."""
        return {name: why.detail for name, why in self.explain().exclusions.items()}

    def explain(self) -> Explanation:
        """Return the sentence, the trace behind it, and each model's exclusion."""
        if self.policy is None or self.facts is None or self.decision is None:
            sentence = _NO_CHOICE.get(self.reason, self.reason)
            return Explanation(sentence=sentence, trace=(), exclusions={})
        explanation = explain(self.policy, self.facts, self.decision)
        clause = _INSTEAD.get(self.reason)
        if clause is None:
            return explanation
        clause = clause.format(first=self.decision.chain[0], model=self.model)
        return structs.replace(explanation, sentence=f"{explanation.sentence} {clause}")

    def __repr__(self) -> str:
        """Short; the facts and the policy behind a choice fill pages."""
        return (
            f"Choice(model={self.model!r}, route={self.route!r}, reason={self.reason!r},"
            f" freshness={self.freshness!r})"
        )


class _CandidateStats:
    """The candidates of one plan, with all that does not depend on the moment."""

    __slots__ = ("answer_ms", "indices", "merits", "providers", "ttft_ms", "waits")

    def __init__(
        self,
        policy: CompiledPolicy,
        route: Route,
        names: tuple[str, ...],
        usage: Usage,
        rtts_ms: Mapping[str, float],
    ) -> None:
        models = [policy.models[name] for name in names]
        self.providers = [model.provider for model in models]
        self.indices = {name: index for index, name in enumerate(names)}
        self.ttft_ms = [policy.ttft_ms[model.id] + rtts_ms[model.region] for model in models]
        self.answer_ms = [usage.output_tokens * 1_000 / policy.tokens_per_s[name] for name in names]
        self.waits = [a + b for a, b in zip(self.ttft_ms, self.answer_ms, strict=True)]
        costs = [bill(model.price, usage) for model in models]
        low, span = min(costs), max(costs) - min(costs) or 1
        # What ``balanced`` weighs besides latency, on the engine's scale; lower is better.
        self.merits = [
            route.weights.cost * (cost - low) * 1_000 / span
            - route.weights.quality * model.quality * 10
            for cost, model in zip(costs, models, strict=True)
        ]


class Chooser:
    """One manifest, ready to choose from."""

    def __init__(
        self, policy: CompiledPolicy, tracker: LatencyTracker, rng: Callable[[], float]
    ) -> None:
        self.policy = policy
        self._tracker = tracker
        self._rng = rng
        self._routes = {route.name: route for route in policy.policy.routes}
        self._stats: dict[tuple[object, ...], _CandidateStats] = {}
        self._rtts: dict[str | None, tuple[int, dict[str, float], tuple[float, ...]]] = {}
        self._regions = sorted({model.region for model in policy.policy.models})

    def pick(
        self, decision: Decision, facts: Facts, now_s: float
    ) -> tuple[str, str | None, ChoiceReason]:
        """Return which of the decision's models to propose, which otherwise, and why.

        Args:
            decision: one that has a model.
            now_s: monotonic seconds.
        """
        route = self._routes[decision.route or ""]
        names = decision.candidates
        by_speed = route.optimize in ("latency", "balanced") and route.cascade is None
        if len(names) > 1 and by_speed:
            picked = self._fastest(route, names, facts, now_s)
            if picked is not None:
                return picked
        ejected = self._tracker.is_ejected
        first = decision.chain[0]
        good = [name for name in decision.chain if not ejected(name, now_s)]
        if good:
            # The policy's order names the next by itself, unless that one is failing too.
            skips = len(good) > 1 and len(good) < len(decision.chain)
            reason: ChoiceReason = "policy_order" if good[0] == first else "others_failing"
            return good[0], good[1] if skips else None, reason
        # When all are failing, failing tells them apart no longer.
        return first, None, "policy_order"

    def _fastest(
        self, route: Route, names: tuple[str, ...], facts: Facts, now_s: float
    ) -> tuple[str, str | None, ChoiceReason] | None:
        stats = self._stats_of(route, names, facts)
        waits = stats.waits.copy()
        out = self._tracker.update(waits, stats.indices, stats.ttft_ms, stats.answer_ms, now_s)
        if out == len(names):
            return None
        best = min(waits)
        if route.optimize == "latency":
            limit = best * NEAR
            near = [index for index, wait in enumerate(waits) if wait <= limit]
        else:
            near = _near_balanced(route, stats.merits, waits, best)
        picked, other = two_choices(near, waits, stats.waits, stats.providers, self._rng)
        second = None if other is None else names[other]
        if picked == 0:
            return names[0], second, "policy_order"
        if waits[0] == EJECTED:
            return names[picked], second, "others_failing"
        return names[picked], second, "faster" if waits[picked] < waits[0] else "spread"

    def _stats_of(self, route: Route, names: tuple[str, ...], facts: Facts) -> _CandidateStats:
        # Sizes as powers of two, as in the engine: few fields serve all requests.
        size_in = _roughly(facts.measured.input_tokens)
        size_out = _roughly(expected_output(self.policy.policy, facts))
        region = facts.signed.region
        learnt, rtts_ms, rtts = self._rtts.get(region) or self._look_at_rtts(region)
        if learnt != self._tracker.rtts_learnt:
            _, rtts_ms, rtts = self._look_at_rtts(region)
        key = (route.name, names, size_in, size_out, rtts)
        stats = self._stats.get(key)
        if stats is None:
            if len(self._stats) >= MEMO_ENTRIES:
                self._stats.clear()
            usage = Usage(input_tokens=size_in, output_tokens=size_out)
            stats = self._stats[key] = _CandidateStats(self.policy, route, names, usage, rtts_ms)
        return stats

    def _look_at_rtts(self, region: str | None) -> tuple[int, dict[str, float], tuple[float, ...]]:
        learnt, rtt_ms = self._tracker.rtts_learnt, self._tracker.rtt_ms
        rtts_ms = {there: rtt_ms(region, there) for there in self._regions}
        found = self._rtts[region] = (learnt, rtts_ms, tuple(rtts_ms.values()))
        return found

    # ── what to expect, and what came of it ────────────────────────────────────────────────────

    def expected_ttft_ms(self, model: str, region: str | None) -> float:
        """Return the time to first token of ``model`` from ``region``, but for its last waits."""
        there = self.policy.models[model].region
        return self.policy.ttft_ms[model] + self._tracker.rtt_ms(region, there)

    def predicted_ms(self, model: str, facts: Facts, now_s: float) -> tuple[float, float]:
        """Return the times to expect until the first and until the last token of ``model``."""
        expected_ms = self.expected_ttft_ms(model, facts.signed.region)
        estimate = self._tracker.estimates.get(model)
        answer_ms = self._answer_ms(model, expected_output(self.policy.policy, facts))
        if estimate is None:
            return expected_ms, expected_ms + answer_ms
        ttft_ms = estimate.ttft_ms(expected_ms, now_s)
        return ttft_ms, ttft_ms + answer_ms * estimate.tpot_ratio_now(now_s)

    def _answer_ms(self, model: str, tokens: int) -> float:
        return tokens * 1_000 / self.policy.tokens_per_s[model]

    def waited(self, model: str, ms: float, *, region: str | None, now_s: float) -> None:
        """Learn the time to first token of ``model``, as seen from ``region``."""
        expected_ms = self.expected_ttft_ms(model, region)
        self._tracker.observe(model, ms, expected_ms=expected_ms, now_s=now_s)
        self._tracker.observe_rtt(self.policy.models[model].region, ms - self.policy.ttft_ms[model])

    def took(
        self,
        model: str,
        *,
        tokens: int,
        ttft_ms: float | None,
        ms: float,
        region: str | None,
        now_s: float,
    ) -> None:
        """Learn how long an answer of ``tokens`` took.

        Args:
            ttft_ms: when its first token came; ``None`` if it came as a whole.
            ms: when it ended.
        """
        answer_ms = self._answer_ms(model, tokens)
        if ttft_ms is not None:
            self._tracker.observe_tpot(model, (ms - ttft_ms) / answer_ms, now_s)
            return
        # One time for two unknowns: both were as much slower as the whole was.
        expected_ms = self.expected_ttft_ms(model, region)
        ratio = ms / (expected_ms + answer_ms)
        self._tracker.observe(model, expected_ms * ratio, expected_ms=expected_ms, now_s=now_s)
        self._tracker.observe_tpot(model, ratio, now_s)


def _roughly(tokens: int) -> int:
    """Return ``tokens`` within an eighth, so that few fields serve all requests."""
    dropped = max(0, tokens.bit_length() - 3)
    return ((tokens >> dropped << 1) + 1 << dropped) >> 1


def _near_balanced(route: Route, merits: list[float], waits: list[float], best: float) -> list[int]:
    weights = route.weights
    open_ = [index for index, wait in enumerate(waits) if wait != EJECTED]
    span = max(waits[index] for index in open_) - best or 1.0
    scores = {
        index: merits[index] + weights.latency * (waits[index] - best) * 1_000 / span
        for index in open_
    }
    limit = min(scores.values())
    limit += NEAR_BALANCED * (weights.cost + weights.latency + weights.quality)
    return [index for index, score in scores.items() if score <= limit]


# ── endpoints ──────────────────────────────────────────────────────────────────────────────────


def base_of(url: str) -> str:
    """Return what an API path is appended to: ``url`` without ``/v1``, spelled as httpx does."""
    scheme, _, rest = url.rstrip("/").removesuffix("/v1").partition("://")
    host, slash, path = rest.partition("/")
    scheme = scheme.lower()
    host = host.lower().removesuffix({"https": ":443", "http": ":80"}.get(scheme, "/"))
    return f"{scheme}://{host}{slash}{path}"


def endpoint_order(
    endpoints: tuple[Endpoint, ...], *, region: str | None, seed: str
) -> tuple[tuple[int, str], ...]:
    """Return rank and base of each: 0 in the caller's region, else 1; by ``seed`` within a rank.

    A client keeps its seed, so its connections are reused; clients have different ones, so
    that they spread.
    """
    ranked = sorted(
        (
            0 if endpoint.region in (region, "global") else 1,
            crc32(f"{seed}{endpoint.id}".encode()),
            base_of(endpoint.url),
        )
        for endpoint in endpoints
    )
    ranks: dict[str, int] = {}
    for rank, _, base in ranked:
        ranks.setdefault(base, rank)
    return tuple((rank, base) for base, rank in ranks.items())
