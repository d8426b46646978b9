"""A policy made ready for many decisions: which models may serve, and in which order to try them.

Pure: no clock, no I/O, no randomness. What does not depend on the request is worked out once per
manifest:

- The *admissible set* is a bit mask over models. What a tier, a duty, a capability or a context
  allows is a mask beforehand, so that a request only joins them.
- The *order* within it is a plan, and a few plans serve all requests.

A policy that contradicts itself does not compile.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from msgspec import UNSET, structs

from waypost.shared.contracts import (
    SUPPORTED_FEATURES,
    ClockBetween,
    Facts,
    Hint,
    Hints,
    Model,
    Policy,
    Route,
    Zone,
)
from waypost.shared.decision import demands
from waypost.shared.decision.costs import (
    context_need,
    cost_bound_nusd,
    cost_estimate_nusd,
    expected_output,
    is_priced,
    least_output,
    output_bound,
)
from waypost.shared.decision.reading import TextReader
from waypost.shared.decision.rules import DECLARED_FIELDS, RuleTable, describe, field_of
from waypost.shared.errors import PolicyError
from waypost.shared.money import Usage, bill

__all__ = ["CompiledPolicy", "compile_policy"]

# A hint moves an expectation no further than this from the operator's prior, so that a stolen
# hints key can make things slower, never send everything one way for good.
HINT_SHRINK = 4
HINT_GROW = 16

# Where speed decides, a conversation stays where it is if that is at most a quarter slower: what
# is cached need not be read again, by how much nobody says.
STAY_NUMERATOR, STAY_DENOMINATOR = 4, 5

# A model that answers fewer of a hundred requests is tried last; a breaker opens there as well.
UNWELL = 50

MEMO_ENTRIES = 4_096


def _clamped(hint: int | None, prior: int) -> int:
    return prior if not hint else min(max(hint, prior // HINT_SHRINK, 1), prior * HINT_GROW)


class CompiledPolicy:
    """A policy made ready for ``decide``. Immutable in meaning; one per manifest.

    Attributes:
        models: by id.
        ttft_ms, tokens_per_s: expectation per model id, from hints within bounds, else priors.
        reader: finds in a text what its rules look for.
    """

    def __init__(self, policy: Policy, hints: Hints | None = None) -> None:
        _check(policy)
        self.policy = policy
        self.models: dict[str, Model] = {model.id: model for model in policy.models}
        self.reader: TextReader = TextReader(
            policy.routes,
            complexity=policy.complexity,
            semantic=policy.semantic,
            embedding=policy.embedding,
        )
        self.rules: RuleTable = RuleTable(policy.routes)
        self.bits: dict[str, int] = {
            model.id: 1 << place for place, model in enumerate(policy.models)
        }
        self.all: int = (1 << len(policy.models)) - 1

        hint_of = {hint.model: hint for hint in hints.models} if hints is not None else {}
        none = Hint(model="none")
        self.ttft_ms: dict[str, int] = {
            m.id: _clamped(hint_of.get(m.id, none).ttft_ms, m.ttft_prior_ms) for m in policy.models
        }
        self.tokens_per_s: dict[str, int] = {
            m.id: _clamped(hint_of.get(m.id, none).tokens_per_s, m.tokens_per_s_prior)
            for m in policy.models
        }
        self._demoted = {
            hint.model for hint in hint_of.values() if hint.drain or hint.health < UNWELL
        } & self.models.keys()

        self.by_tier: dict[str, int] = {tier: self._mask(tier, "tiers") for tier in policy.tiers}
        self.by_class: dict[str, int] = {
            name: self._all_of(self._mask(promise, "promises") for promise in promises)
            for name, promises in policy.data_classes.items()
        }
        self.by_need: dict[str, int] = {
            need: self._mask(need, "capabilities")
            for need in {need for model in policy.models for need in model.capabilities}
        }
        self.by_endpoint: dict[str, int] = {
            endpoint: self._mask(endpoint, "endpoints")
            for endpoint in {endpoint for model in policy.models for endpoint in model.endpoints}
        }
        # Sorted by window: models from a place onwards are those whose window is large enough.
        windows = sorted((model.context_tokens, self.bits[model.id]) for model in policy.models)
        self.windows: list[int] = [window for window, _ in windows]
        self.by_window: list[int] = [*accumulate((bit for _, bit in reversed(windows)), initial=0)][
            ::-1
        ]
        self.by_row: list[int] = [
            sum(self.bits[name] for name in {*route.models, *route.fallback})
            for route in policy.routes
        ]
        self._best = sorted(policy.models, key=lambda model: (-model.quality, model.id))
        self._plans: dict[tuple[int, int, int, int], tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def _mask(self, name: str, attribute: str) -> int:
        return sum(self.bits[m.id] for m in self.policy.models if name in getattr(m, attribute))

    def _all_of(self, masks: Iterable[int]) -> int:
        result = self.all
        for mask in masks:
            result &= mask
        return result

    def missing(self, facts: Facts) -> tuple[str, ...]:
        """Return the facts that the rules look at and nobody measured."""
        return tuple(
            name for name in self.rules.needs_facts if getattr(facts.measured, name) is None
        )

    def admissible(self, facts: Facts) -> tuple[int, str]:
        """Return the set as bits, and what emptied it (``""`` if it is not empty)."""
        signed, measured, declared = facts.signed, facts.measured, facts.declared
        if self.rules.needs_facts and self.missing(facts):
            # A rule that quietly did not match would be a hole in the policy.
            return 0, "facts_incomplete"
        tier = self.by_tier.get(signed.tier)
        if tier is None:
            return 0, "unknown_tier"
        # Before anything narrows the set: an unknown class is refused whoever asks.
        duties = self.all
        for source in (signed.data_classes, measured.data_classes, declared.data_classes):
            for name in source:
                duty = self.by_class.get(name)
                if duty is None:
                    return 0, "unknown_data_class"
                duties &= duty
        mask = tier
        if not mask:
            return 0, "tier_not_allowed"
        if signed.models is not None:
            named = 0
            for name in signed.models:
                named |= self.bits.get(name, 0)
            mask &= named
            if not mask:
                return 0, "not_in_token"
        mask &= duties
        if not mask:
            return 0, "duty_unmet"
        if measured.demands is not None:
            wrong = demands.unknown(measured.demands, models=self.models)
            if wrong:
                return 0, wrong
            for model in self.policy.models:
                bit = self.bits[model.id]
                if mask & bit and demands.unmet(measured.demands, model):
                    mask &= ~bit
            if not mask:
                return 0, "request_excludes"
        mask &= self.by_endpoint.get(measured.endpoint, 0)
        if not mask:
            return 0, "endpoint_unsupported"
        for need in measured.needs:
            mask &= self.by_need.get(need, 0)
        if not mask:
            return 0, "capability_missing"
        mask &= self.by_window[bisect_left(self.windows, context_need(self.policy, facts))]
        if not mask:
            return 0, "context_too_small"
        if measured.reasoning_tokens is not UNSET:
            mask = self._those(mask, lambda one: output_bound(one, facts) >= least_output(facts))
            if not mask:
                return 0, "output_too_small"
        if measured.extras is not UNSET:
            extras = measured.extras
            mask = self._those(mask, lambda one: all(is_priced(one, each) for each in extras))
            if not mask:
                return 0, "unpriced"
        for name in measured.untranslatable:
            mask &= ~self.bits.get(name, 0)
        if not mask:
            return 0, "untranslatable"
        for name in measured.out_of_service:
            mask &= ~self.bits.get(name, 0)
        if not mask:
            return 0, "out_of_service"
        if measured.affordable_nusd is not None:
            for model in self.policy.models:
                bit = self.bits[model.id]
                if mask & bit and cost_bound_nusd(model, facts) > measured.affordable_nusd:
                    mask &= ~bit
            if not mask:
                return 0, "unaffordable"
        return mask, ""

    def _those(self, mask: int, may: Callable[[Model], bool]) -> int:
        """Return as much of ``mask`` as ``may`` serve."""
        return sum(self.bits[m.id] for m in self.policy.models if self.bits[m.id] & mask and may(m))

    def plan(self, mask: int, row: int, facts: Facts) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the row's candidates within ``mask``, best first, and the whole chain.

        Sizes are compared as powers of two, so that few plans serve all requests of a manifest
        and each is made once; two prices closer together than that are as good as equal.
        """
        route = self.policy.routes[row]
        if facts.measured.demands is not None or facts.declared.session is not None:
            return self._plan_for(mask, route, facts)
        size_in = facts.measured.input_tokens.bit_length()
        size_out = expected_output(self.policy, facts).bit_length()
        if route.max_cost_nusd is not None:
            return self._plan(mask, route, 1 << size_in, 1 << size_out, facts)
        key = (mask, row, size_in, size_out)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MEMO_ENTRIES:
                self._plans.clear()
            plan = self._plans[key] = self._plan(mask, route, 1 << size_in, 1 << size_out, facts)
        return plan

    def _plan_for(
        self, mask: int, route: Route, facts: Facts
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the plan for a request that demands something, or goes on with a conversation."""
        wanted, session = facts.measured.demands, facts.declared.session
        tokens_in, tokens_out = facts.measured.input_tokens, expected_output(self.policy, facts)
        candidates, chain = self._plan(mask, route, tokens_in, tokens_out, facts)
        if session is not None and candidates[:1] == (session.model,):
            # The only one to pick from: among equals, chance would throw the cache away.
            candidates = candidates[:1]
        if wanted is None:
            return candidates, chain
        if wanted.models:
            chain = tuple(name for name in wanted.models if self.bits[name] & mask)
            candidates = chain[:1]
        elif wanted.sort is not None:
            by = self._by(wanted.sort, facts)
            chain = tuple(dict.fromkeys((*sorted(candidates, key=by), *chain)))
            candidates = chain[:1]
        if wanted.provider_order:
            places = {name: place for place, name in enumerate(wanted.provider_order)}
            chain = tuple(
                sorted(chain, key=lambda name: places.get(self.models[name].provider, len(places)))
            )
            candidates = chain[:1]
        return candidates, chain

    def _by(self, sort: str, facts: Facts) -> Callable[[str], int]:
        match sort:
            case "price":
                return lambda name: cost_estimate_nusd(self.policy, self.models[name], facts)
            case "latency":
                return lambda name: self.ttft_ms[name]
            case _:
                return lambda name: -self.tokens_per_s[name]

    def _plan(
        self, mask: int, route: Route, tokens_in: int, tokens_out: int, facts: Facts
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        listed = [self.models[name] for name in route.models if self.bits[name] & mask]
        usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out)
        costs = {model.id: bill(model.price, usage) for model in listed}
        waits = {
            m.id: self.ttft_ms[m.id] + tokens_out * 1_000 // self.tokens_per_s[m.id] for m in listed
        }
        session = facts.declared.session
        if session is not None and session.model in costs:
            cached = structs.replace(usage, cached_tokens=session.cached_tokens)
            costs[session.model] = bill(self.models[session.model].price, cached)
            waits[session.model] = waits[session.model] * STAY_NUMERATOR // STAY_DENOMINATOR

        def rank(model: Model) -> tuple[object, ...]:
            cost, wait = costs[model.id], waits[model.id]
            match route.optimize:
                case "cost":
                    return (cost, wait, -model.quality)
                case "latency":
                    return (wait, cost, -model.quality)
                case "quality":
                    return (-model.quality, cost, wait)
                case "balanced":
                    weights = route.weights
                    return (
                        weights.cost * _scaled(cost, costs.values())
                        + weights.latency * _scaled(wait, waits.values())
                        - weights.quality * model.quality * 10,
                        cost,
                    )

        def meets(model: Model) -> bool:
            return (
                model.quality >= route.min_quality
                and (route.max_ttft_ms is None or self.ttft_ms[model.id] <= route.max_ttft_ms)
                and (
                    route.max_cost_nusd is None
                    or cost_estimate_nusd(self.policy, model, facts) <= route.max_cost_nusd
                )
            )

        # Ties go by id: the order of models in the file means nothing, but in a cascade.
        ranked = (
            sorted(listed, key=lambda model: (*rank(model), model.id))
            if route.cascade is None
            else listed
        )
        good = [m.id for m in ranked if meets(m) and m.id not in self._demoted]
        # What misses a floor, or is being drained, still beats having nothing.
        spare = [m.id for m in ranked if m.id not in good]
        chain = [*good, *(name for name in route.fallback if self.bits[name] & mask), *spare]
        chain += [name for name in self.policy.last_resort if self.bits[name] & mask]
        if route.enforce:
            inside = {*route.models, *route.fallback}
            chain = [name for name in chain if name in inside]
        elif not chain:
            chain = [model.id for model in self._best if self.bits[model.id] & mask]
        chain = sorted(dict.fromkeys(chain), key=lambda name: name in self._demoted)
        return tuple(good or spare), tuple(chain)


def _scaled(value: int, among: Iterable[int]) -> int:
    """Return ``value`` within the range of ``among`` as 0 to 1,000."""
    values = list(among)
    low, high = min(values), max(values)
    return 0 if low == high else (value - low) * 1_000 // (high - low)


def compile_policy(policy: Policy, hints: Hints | None = None) -> CompiledPolicy:
    """Return ``policy`` ready for ``decide``.

    Hints reorder and demote what the policy contains; ids it does not contain are ignored.

    Raises:
        PolicyError: it names what does not exist, has no default, or needs a newer version.
    """
    return CompiledPolicy(policy, hints)


def _check(policy: Policy) -> None:
    unknown = set(policy.must_understand) - SUPPORTED_FEATURES
    if unknown:
        raise PolicyError(f"needs a newer version, for: {', '.join(sorted(unknown))}")
    _unique("model", [model.id for model in policy.models])
    _unique("route", [route.name for route in policy.routes])
    known = {model.id for model in policy.models}
    _known("last_resort", "model", policy.last_resort, known)
    if not policy.routes or policy.routes[-1].when:
        raise PolicyError("the last route must have no conditions, so that every request has one")
    steered = ""
    zones: dict[str, Zone] = {}
    for place, route in enumerate(policy.routes):
        where = f"route '{route.name}'"
        _known(where, "model", (*route.models, *route.fallback), known)
        if not route.when and place < len(policy.routes) - 1:
            raise PolicyError(f"{where} matches everything, so what follows is never reached")
        if not route.models and policy.projection == "full":
            raise PolicyError(f"{where} lists no model")
        for condition in route.when:
            zone = condition.zone if isinstance(condition, ClockBetween) else None
            if zone is not None and zones.setdefault(zone.name, zone) != zone:
                raise PolicyError(f"{where} has another time zone by the name of {zone.name}")
            if field_of(condition) in DECLARED_FIELDS:
                steered = steered or where
                if route.enforce:
                    raise PolicyError(
                        f"{where} enforces on {describe(condition)}, which clients only declare"
                    )
        if route.enforce and steered:
            raise PolicyError(f"{where} enforces, but clients can steer into {steered} before it")
    tiers = set(policy.tiers)
    for model in policy.models:
        _known(f"model '{model.id}'", "tier", model.tiers, tiers)


def _unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise PolicyError(f"there are two {what}s named '{twice}'")


def _known(where: str, what: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise PolicyError(f"{where} names a {what} that does not exist: '{name}'")
