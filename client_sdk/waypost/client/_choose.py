"""Chooses model and endpoint: the engine's set, in the order that this client's latency suggests.

The set is policy, the pick is performance: whatever is learned here only moves a choice within
``decision.candidates``. Pure, but for the book it reads; clock and randomness are arguments.
"""

from collections.abc import Callable
from typing import Literal
from zlib import crc32

from msgspec import Struct, structs

from waypost.client._latency import EJECTED, Book, two_choices
from waypost.shared.contracts import Endpoint, Facts, Route
from waypost.shared.engine import (
    CompiledPolicy,
    Decision,
    cost_estimate_nusd,
    expected_output,
)
from waypost.shared.explain import Explanation, explain
from waypost.shared.money import Usage, bill

__all__ = ["Choice", "ChoiceReason", "Chooser", "Freshness", "base_of", "endpoint_order"]

Freshness = Literal["fresh", "cached", "stale", "none"]

ChoiceReason = Literal["policy_order", "faster", "spread", "others_failing"]

# Waits this close are equal: between them chance spreads the load, beyond them speed decides.
NEAR = 1.25
# The same for ``balanced``, in thousandths of the weights' sum.
NEAR_BALANCED = 50

MEMO_ENTRIES = 1_024

_NO_CHOICE = {
    "no_manifest": "There is no manifest yet, so the validator chooses.",
    "manifest_expired": "The manifest has expired and no newer one came, so the validator chooses.",
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
        predicted_ttft_ms: expected time to first token.
        facts: what was decided on; ``None`` without a manifest.
    """

    reason: str
    freshness: Freshness
    model: str | None = None
    route: str | None = None
    endpoint: str | None = None
    manifest_version: int | None = None
    predicted_ttft_ms: float | None = None
    facts: Facts | None = None
    decision: Decision | None = None
    policy: CompiledPolicy | None = None

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The other admissible models, best first."""
        chain = () if self.decision is None else self.decision.chain
        return tuple(name for name in chain if name != self.model)

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


class _Field:
    """The candidates of one plan, with all that does not depend on the moment."""

    __slots__ = ("answer_ms", "merits", "places", "ttft_ms", "waits")

    def __init__(
        self, policy: CompiledPolicy, route: Route, names: tuple[str, ...], usage: Usage
    ) -> None:
        models = [policy.models[name] for name in names]
        self.places = {name: place for place, name in enumerate(names)}
        self.ttft_ms = [policy.ttft_ms[name] for name in names]
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

    def __init__(self, policy: CompiledPolicy, book: Book, draw: Callable[[], float]) -> None:
        self.policy = policy
        self._book = book
        self._draw = draw
        self._routes = {route.name: route for route in policy.policy.routes}
        self._fields: dict[tuple[str, tuple[str, ...], int, int], _Field] = {}

    def pick(self, decision: Decision, facts: Facts, now_s: float) -> tuple[str, ChoiceReason]:
        """Return which of the decision's models to propose; it must have one.

        Args:
            now_s: monotonic seconds.
        """
        route = self._routes[decision.route or ""]
        names = decision.candidates
        by_speed = route.optimize in ("latency", "balanced") and route.cascade is None
        if len(names) > 1 and by_speed:
            picked = self._fastest(route, names, facts, now_s)
            if picked is not None:
                return picked
        ejected = self._book.is_ejected
        first = decision.chain[0]
        for name in decision.chain:
            if not ejected(name, now_s):
                return name, "policy_order" if name == first else "others_failing"
        # When all are failing, failing tells them apart no longer.
        return first, "policy_order"

    def _fastest(
        self, route: Route, names: tuple[str, ...], facts: Facts, now_s: float
    ) -> tuple[str, ChoiceReason] | None:
        field = self._field(route, names, facts)
        waits = field.waits.copy()
        out = self._book.update(waits, field.places, field.ttft_ms, field.answer_ms, now_s)
        if out == len(names):
            return None
        best = min(waits)
        if route.optimize == "latency":
            limit = best * NEAR
            near = [place for place, wait in enumerate(waits) if wait <= limit]
        else:
            near = _near_balanced(route, field.merits, waits, best)
        picked = two_choices(near, waits, self._draw)
        if picked == 0:
            return names[0], "policy_order"
        if waits[0] == EJECTED:
            return names[picked], "others_failing"
        return names[picked], "faster" if waits[picked] < waits[0] else "spread"

    def _field(self, route: Route, names: tuple[str, ...], facts: Facts) -> _Field:
        # Sizes as powers of two, as in the engine: few fields serve all requests.
        size_in = facts.measured.input_tokens.bit_length()
        size_out = expected_output(self.policy.policy, facts).bit_length()
        key = (route.name, names, size_in, size_out)
        field = self._fields.get(key)
        if field is None:
            if len(self._fields) >= MEMO_ENTRIES:
                self._fields.clear()
            usage = Usage(input_tokens=1 << size_in, output_tokens=1 << size_out)
            field = self._fields[key] = _Field(self.policy, route, names, usage)
        return field

    def ttft_ms(self, model: str, now_s: float) -> float:
        """Return the expected time to first token of ``model``."""
        expected_ms = float(self.policy.ttft_ms[model])
        track = self._book.tracks.get(model)
        return expected_ms if track is None else track.wait_ms(expected_ms, now_s)


def _near_balanced(route: Route, merits: list[float], waits: list[float], best: float) -> list[int]:
    weights = route.weights
    open_ = [place for place, wait in enumerate(waits) if wait != EJECTED]
    span = max(waits[place] for place in open_) - best or 1.0
    scores = {
        place: merits[place] + weights.latency * (waits[place] - best) * 1_000 / span
        for place in open_
    }
    limit = min(scores.values())
    limit += NEAR_BALANCED * (weights.cost + weights.latency + weights.quality)
    return [place for place, score in scores.items() if score <= limit]


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
) -> tuple[str, ...]:
    """Return the endpoints' bases: the caller's region first, by ``seed`` within a region.

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
    return tuple(dict.fromkeys(base for _, _, base in ranked))
