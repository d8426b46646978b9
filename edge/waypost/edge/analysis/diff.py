"""What a change of policy changes for requests, each change with one as an example. Pure.

For each pair of routes, one of either policy, that a request can take, the sets of admissible
models are compared exactly. So are the orders: at each power of two of input and output, as the
engine compares lengths, and where a route's ``max_cost`` is crossed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal, cast

from msgspec import Struct, structs

from waypost.edge.analysis.cells import Space, View
from waypost.edge.analysis.solver import Clause, Region, region
from waypost.edge.authoring.invariants import Size
from waypost.edge.authoring.load_policy import Authored
from waypost.shared.contracts import Facts, Model, Policy, Proposal, Route
from waypost.shared.decision.costs import cost_bound_nusd
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.money import MTOK, Price, PriceAbove, format_usd

__all__ = ["Change", "Example", "diff", "diff_authored"]

Kind = Literal[
    "allowed", "forbidden", "model", "order", "policy", "price", "refused", "route", "served"
]

# Under ``balanced``, the order of two models depends on the others; all sets of so many are tried.
WEIGHED = 6

# Compared as requests see them; any other field that differs is shown as it is written.
_SEEN_IN_SETS = {"id", "tiers", "promises", "capabilities", "endpoints", "context_tokens"}
_SEEN_IN_ORDER = {"quality", "ttft_prior_ms", "tokens_per_s_prior"}
_SEEN_IN_ROUTES = {"name", "when", "models", "fallback", "optimize", "weights", "enforce"} | {
    "min_quality",
    "max_cost_nusd",
    "max_ttft_ms",
}
_SEEN_IN_POLICY = {"tiers", "models", "routes", "data_classes", "last_resort"} | {
    "default_output_tokens"
}
_OF_PUBLICATION = {"channel", "version", "issued_at", "projection", "must_understand"}


class Example(Struct, frozen=True, kw_only=True):
    """One request under both policies."""

    facts: Facts
    proposal: Proposal | None
    before: Decision
    after: Decision


class Change(Struct, frozen=True, kw_only=True):
    """One change in what requests get.

    Attributes:
        subject: the model, the route, or the field of the policy.
        routes: of the new policy, for whose requests it changes.
        example: ``None`` where no decision shows it, as another address of a validator.
    """

    kind: Kind
    subject: str
    message: str
    routes: tuple[str, ...] = ()
    example: Example | None = None


def diff_authored(before: Authored, after: Authored) -> tuple[Change, ...]:
    """Return what is different for some request, or for what clients get to know of models."""
    was, now = (
        {m.id for m in authored.full.models} - {m.id for m in authored.client.models}
        for authored in (before, after)
    )
    kept = {m.id for m in before.full.models} & {m.id for m in after.full.models}
    turned = [(name, "hidden from") for name in sorted((now - was) & kept)]
    turned += [(name, "shown to") for name in sorted((was - now) & kept)]
    return (
        *diff(before.full, after.full),
        *(
            Change(kind="model", subject=name, message=f"{name} is now {said} clients")
            for name, said in turned
        ),
    )


def diff(before: Policy, after: Policy) -> tuple[Change, ...]:
    """Return what is different for some request, most severe first; nothing if nothing is."""
    return _Comparison(before, after).changes()


class _Side(Struct, frozen=True):
    """A route of one of the policies."""

    view: View
    row: int

    @property
    def route(self) -> Route:
        return self.view.policy.routes[self.row]

    @property
    def within(self) -> tuple[str, ...]:
        return self.view.within(self.row)

    @property
    def named(self) -> set[str]:
        return {*self.route.models, *self.route.fallback, *self.view.policy.last_resort}


class _Pair(Struct, frozen=True):
    """Requests that take one route before and one after."""

    before: _Side
    after: _Side
    requests: Region

    @property
    def sides(self) -> tuple[_Side, _Side]:
        return self.before, self.after


class _Comparison:
    def __init__(self, before: Policy, after: Policy) -> None:
        self._space = Space([before, after], powers=True)
        self._before = View(self._space, before)
        self._after = View(self._space, after)
        self._pairs = list(self._reachable())
        later = self._after.compiled.models
        self._common = [name for name in self._before.compiled.models if name in later]

    def changes(self) -> tuple[Change, ...]:
        """Return all changes."""
        sets: list[Change] = []
        refusals: list[Change] = []
        for pair in self._pairs:
            some = list(self._sets(pair))
            sets += some
            refusals += self._refusals(pair) if some else ()
        return (
            *_grouped(refusals),
            *_grouped(sets),
            *_grouped(self._routes()),
            *_grouped(self._orders()),
            *self._models(),
            *self._rest(),
        )

    def _reachable(self) -> Iterator[_Pair]:
        afters = [self._after.takes(row) for row in range(len(self._after.policy.routes))]
        for old in range(len(self._before.policy.routes)):
            taken = region(self._space.everything, self._before.takes(old))
            for new, takes in enumerate(afters if taken is not None else ()):
                both = region(taken.domains, [*taken.open, *takes]) if taken is not None else None
                if both is not None:
                    yield _Pair(_Side(self._before, old), _Side(self._after, new), both)

    # ── sets ───────────────────────────────────────────────────────────────────────────────────

    def _sets(self, pair: _Pair) -> Iterator[Change]:
        ways: tuple[tuple[Kind, _Side, _Side, str], ...] = (
            ("forbidden", *pair.sides, "may no longer serve some requests that it could serve"),
            (
                "allowed",
                pair.after,
                pair.before,
                "may now serve some requests that it could not serve",
            ),
        )
        for kind, here, there, says in ways:
            for name in here.within:
                found = self._only(pair, name, here, there)
                if found is not None:
                    yield Change(
                        kind=kind,
                        subject=name,
                        message=f"{name} {says}",
                        routes=(pair.after.route.name,),
                        example=self._example(found, Proposal(model=name)),
                    )

    def _only(self, pair: _Pair, name: str, here: _Side, there: _Side) -> list[int] | None:
        """Return a request that ``name`` may serve here and may not there."""
        refuses: list[Clause] = []
        if name in there.within:
            if there.view.serves(name) == here.view.serves(name):
                return None
            refuses = [there.view.refuses(name)]
        return pair.requests.find(here.view.serves(name), refuses)

    def _refusals(self, pair: _Pair) -> Iterator[Change]:
        ways: tuple[tuple[Kind, _Side, _Side], ...] = (
            ("refused", *pair.sides),
            ("served", pair.after, pair.before),
        )
        for kind, here, there in ways:
            none = [there.view.refuses(name) for name in there.within]
            for name in here.within:
                found = pair.requests.find(here.view.serves(name), none)
                if found is not None:
                    yield Change(
                        kind=kind,
                        subject="requests",
                        message=f"some requests are now {kind}",
                        routes=(pair.after.route.name,),
                        example=self._example(found),
                    )
                    break

    def _routes(self) -> Iterator[Change]:
        for pair in self._pairs:
            old, new = pair.before.route, pair.after.route
            messages = [
                f"{field} of route '{new.name}' is {now}, was {was}"
                for field, was, now in _changed(old, new, _SEEN_IN_ROUTES)
            ]
            if old.name != new.name:
                messages.append(f"some requests that took route '{old.name}' take '{new.name}'")
            served = self._served(pair, pair.before.within, pair.after.within) if messages else None
            if served is not None:
                for message in messages:
                    yield Change(
                        kind="route",
                        subject=new.name,
                        message=message,
                        routes=(new.name,),
                        example=self._example(served),
                    )

    def _served(self, pair: _Pair, before: Iterable[str], after: Iterable[str]) -> list[int] | None:
        """Return a request that one of ``before`` may serve before, and one of ``after`` after."""
        serving = (
            pair.requests.find((*self._before.serves(old), *self._after.serves(new)))
            for old in before
            for new in after
        )
        return next((found for found in serving if found is not None), None)

    def _used(self, pair: _Pair, name: str) -> list[int] | None:
        """Return a request that ``name`` may serve before and after."""
        if name in pair.before.within and name in pair.after.within:
            return self._served(pair, (name,), (name,))
        return None

    # ── orders ─────────────────────────────────────────────────────────────────────────────────

    def _orders(self) -> Iterator[Change]:
        for pair in self._pairs:
            if pair.before.route.name != pair.after.route.name:
                continue  # that is what is told of it
            if _ranking(pair.before, self._common) == _ranking(pair.after, self._common):
                continue
            route = pair.after.route.name
            models = [name for name in self._common if self._used(pair, name) is not None]
            weighed = _weighed(pair) & {*models}
            example = self._reordered(pair, models, weighed if len(weighed) <= WEIGHED else ())
            if example is not None:
                was, now = example.before.chain, example.after.chain
                if was == now:
                    was, now = example.before.candidates, example.after.candidates
                yield Change(
                    kind="order",
                    subject=route,
                    message=f"route '{route}' prefers {', '.join(now)}; before, {', '.join(was)}",
                    routes=(route,),
                    example=example,
                )
            elif len(weighed) > WEIGHED:
                # To say that nothing changes would be more than is known.
                yield Change(
                    kind="order",
                    subject=route,
                    message=f"route '{route}' may weigh some of its models otherwise",
                    routes=(route,),
                )

    def _reordered(
        self, pair: _Pair, models: Sequence[str], weighed: Iterable[str]
    ) -> Example | None:
        """Return a request that tries some of ``models`` in another order.

        Left of a chain without some models is their chain: all of them and each two show what
        any of them do, but for those who are ``weighed`` against each other.
        """
        together = _subsets(sorted(weighed), range(WEIGHED, 1, -1))
        some = [tuple(models), *together, *_subsets(models, (2, 1))]
        request = self._space.facts(pair.requests.domains)
        for cell, size in self._lengths(pair):
            sized = self._space.sized(request, size)
            for group in together if self._ranks_alike(pair, models, sized) else some:
                if _plans_differ(pair, group, sized):
                    example = self._ordered(pair, group, cell, size)
                    if example is not None:
                        return example
        return None

    def _ranks_alike(self, pair: _Pair, models: Sequence[str], sized: Facts) -> bool:
        """Return whether all of ``models`` are tried alike, and those that no route names."""
        old, new = ([name for name in models if name not in side.named] for side in pair.sides)
        return (
            old == new
            and not _plans_differ(pair, models, sized)
            and not (old and _plans_differ(pair, old, sized))
        )

    def _ordered(self, pair: _Pair, group: Sequence[str], cell: int, size: Size) -> Example | None:
        """Return a request of ``size`` for which ``group`` is tried in another order."""
        literal = [atom for side in pair.sides for name in group for atom in side.view.serves(name)]
        literal.append((self._space.size, 1 << cell))
        others = [
            side.view.refuses(name)
            for side in pair.sides
            for name in side.within
            if name not in group
        ]
        here = tuple(literal)
        found = pair.requests.find(here, others) or pair.requests.find(here)
        if found is None:
            return None
        facts = self._space.sized(self._space.facts(found), size)
        example = self._show(facts)
        if _outcome(example.before) == _outcome(example.after):
            # Others are admissible as well, and it takes an outage for the order to show.
            down = {name for side in pair.sides for name in side.within} - {*group}
            measured = structs.replace(facts.measured, out_of_service=tuple(sorted(down)))
            example = self._show(structs.replace(facts, measured=measured))
        return example

    def _lengths(self, pair: _Pair) -> Iterator[tuple[int, Size]]:
        """Give the sizes at which an order may turn, each with its cell."""
        seen: set[tuple[int, int]] = set()
        limits = [
            (side.route.max_cost_nusd, side.view.compiled.models[name])
            for side in pair.sides
            for name in side.route.models
            if side.route.max_cost_nusd is not None
        ]
        defaults = {side.view.policy.default_output_tokens for side in pair.sides}
        possible = pair.requests.domains[self._space.size]
        for cell, corners in enumerate(self._space.corners):
            for size in corners if possible >> cell & 1 else ():
                output = -1 if size.output is None else size.output.bit_length()
                lengths = size.input.bit_length(), output
                if limits or lengths not in seen:
                    seen.add(lengths)
                    yield cell, size
        outputs = {size.output for corners in self._space.corners for size in corners}
        for nusd, model in limits:
            for size in _crossings(nusd, model, outputs, defaults):
                cell = self._space.cell_of(size)
                if possible >> cell & 1:
                    yield cell, size

    # ── models and the rest ────────────────────────────────────────────────────────────────────

    def _models(self) -> Iterator[Change]:
        for name in self._common:
            old, new = self._before.compiled.models[name], self._after.compiled.models[name]
            fields = list(_changed(old, new, _SEEN_IN_SETS | _SEEN_IN_ORDER))
            used = (self._used(pair, name) for pair in self._pairs) if fields else iter(())
            found = next((domains for domains in used if domains is not None), None)
            if found is None:
                continue
            facts = self._space.facts(found)
            for field, was, now in fields:
                money = field in {"price", "max_output_tokens"}
                yield Change(
                    kind="price" if money else "model",
                    subject=name,
                    message=f"{field.replace('_', ' ')} of {name} is {now}, was {was}",
                    example=self._show(
                        _poor(facts, old, new) if money else facts, Proposal(model=name)
                    ),
                )

    def _rest(self) -> Iterator[Change]:
        old, new = self._before.policy, self._after.policy
        for field, was, now in _changed(old, new, _SEEN_IN_POLICY | _OF_PUBLICATION):
            yield Change(kind="policy", subject=field, message=f"{field}: {now}, was {was}")

    def _example(self, found: Sequence[int], proposal: Proposal | None = None) -> Example:
        return self._show(self._space.facts(found), proposal)

    def _show(self, facts: Facts, proposal: Proposal | None = None) -> Example:
        return Example(
            facts=facts,
            proposal=proposal,
            before=decide(self._before.compiled, facts, proposal),
            after=decide(self._after.compiled, facts, proposal),
        )


def _outcome(decision: Decision) -> tuple[object, ...]:
    return decision.verdict == "refused", decision.candidates, decision.chain


def _grouped(changes: Iterable[Change]) -> list[Change]:
    """Return each change once, with all routes that it was found under."""
    kept: dict[tuple[str, str, str], Change] = {}
    for change in changes:
        key = change.kind, change.subject, change.message
        first = kept.get(key, change)
        routes = tuple(dict.fromkeys((*first.routes, *change.routes)))
        kept[key] = structs.replace(first, routes=routes)
    return list(kept.values())


def _changed(old: Struct, new: Struct, but: set[str]) -> Iterator[tuple[str, str, str]]:
    for field in old.__struct_fields__:
        was, now = getattr(old, field), getattr(new, field)
        if field not in but and was != now:
            yield field, _said(was), _said(now)


_PRICES = {
    "input_nusd_per_mtok": "in",
    "output_nusd_per_mtok": "out",
    "cached_input_nusd_per_mtok": "cached",
    "cache_write_nusd_per_mtok": "to write the cache",
    "cache_write_1h_nusd_per_mtok": "to write the cache for an hour",
    "image_input_nusd_per_mtok": "image in",
    "audio_input_nusd_per_mtok": "audio in",
    "audio_output_nusd_per_mtok": "audio out",
    "reasoning_nusd_per_mtok": "reasoning",
    "request_nusd": "per request",
}


def _said(value: object) -> str:
    match value:
        case Price() | PriceAbove():
            prices = ((words, getattr(value, field, None)) for field, words in _PRICES.items())
            told = ", ".join(
                f"{format_usd(paid)} {words}"
                for words, paid in prices
                if paid or (paid == 0 and words in ("in", "out"))
            )
            if isinstance(value, PriceAbove):
                return f"above {value.above_input_tokens:,} tokens {told}"
            return "; ".join((told, *map(_said, value.above)))
        case Struct():
            parts = ((name, getattr(value, name)) for name in value.__struct_fields__)
            return ", ".join(f"{name} {_said(part)}" for name, part in parts if part is not None)
        case tuple() | list():
            return "; ".join(map(_said, cast("Sequence[object]", value))) or "nothing"
        case None:
            return "nothing"
        case _:
            return str(value)


def _ranking(side: _Side, common: Sequence[str]) -> tuple[object, ...]:
    """Return all that the order of the ``common`` models depends on, beside the request."""
    policy, models = side.view.policy, side.view.compiled.models
    listed = [models[name] for name in side.route.models]
    return (
        structs.replace(side.route, name="any", when=()),
        {m.id: (m.price, m.ttft_prior_ms, m.tokens_per_s_prior, m.quality) for m in listed},
        {name: models[name].quality for name in common},
        policy.last_resort,
        policy.default_output_tokens,
    )


def _weighed(pair: _Pair) -> set[str]:
    """Return the models whose costs are weighed against each other."""
    return {
        name
        for side in pair.sides
        if side.route.optimize == "balanced"
        for name in side.route.models
    }


def _subsets(names: Sequence[str], sizes: Iterable[int]) -> list[tuple[str, ...]]:
    return [group for count in sizes for group in combinations(names, count)]


def _plans_differ(pair: _Pair, group: Iterable[str], facts: Facts) -> bool:
    """Return whether ``group`` is tried in another order, or other candidates of it are."""
    old, new = (
        side.view.compiled.plan(
            sum(side.view.compiled.bits[name] for name in group), side.row, facts
        )
        for side in pair.sides
    )
    return old != new


def _poor(facts: Facts, old: Model, new: Model) -> Facts:
    """Return ``facts`` with just enough money for the cheaper of the two."""
    bounds = cost_bound_nusd(old, facts), cost_bound_nusd(new, facts)
    measured = structs.replace(facts.measured, affordable_nusd=min(bounds))
    return facts if bounds[0] == bounds[1] else structs.replace(facts, measured=measured)


def _crossings(
    nusd: int, model: Model, outputs: Iterable[int | None], defaults: Iterable[int]
) -> Iterator[Size]:
    """Give the longest inputs that cost at most ``nusd``, and those one longer."""
    price = model.price
    if price.input_nusd_per_mtok == 0:
        return
    left = (nusd - price.request_nusd) * MTOK
    for output in outputs:
        for tokens_out in defaults if output is None else (output,):
            longest = (left - tokens_out * price.output_nusd_per_mtok) // price.input_nusd_per_mtok
            for tokens_in in (longest, longest + 1):
                if tokens_in >= 0:
                    yield Size(tokens_in, output)
