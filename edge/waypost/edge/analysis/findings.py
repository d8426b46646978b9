"""What is doubtful about a policy that compiles: rows, models and prices that do nothing good.

Where a finding says *never*, every request there can be was looked at, cell by cell.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from waypost.edge.analysis.cells import Space, View
from waypost.edge.analysis.prices import SOURCE, differences, is_known
from waypost.edge.analysis.prove import prove_all
from waypost.edge.analysis.solver import Region, region
from waypost.edge.authoring.load_policy import Authored
from waypost.shared.contracts import Facts, Model, Route
from waypost.shared.money import NUSD_PER_USD, format_usd

__all__ = ["Problem", "find_problems"]

Severity = Literal["error", "warning", "note"]
Place = tuple[str, ...]

# Dollars per million tokens beyond which someone mixed up tokens, thousands and millions: the
# dearest models on the market cost some 600, the cheapest 0.01.
DEAREST_NUSD = 2_000 * NUSD_PER_USD
CHEAPEST_NUSD = NUSD_PER_USD // 1_000

# Pairs of rows are compared for overlaps up to here; a longer table would give a list nobody reads.
OVERLAPPING_ROWS = 200


class Problem(Struct, frozen=True, kw_only=True):
    """One finding, with its mend.

    Attributes:
        code: stable, for scripts.
        place: section, then the name of an entry in it, then a field of that.
        facts: a request that shows it, if one does.
    """

    severity: Severity
    code: str
    place: Place
    message: str
    facts: Facts | None = None


def find_problems(authored: Authored, *, now: int) -> tuple[Problem, ...]:
    """Return all findings, errors first.

    Args:
        now: Unix seconds; what prices are compared for.
    """
    policy = authored.full
    space = Space([policy])
    finder = _Finder(space, View(space, policy))
    found = [
        *_invariants(authored),
        *finder.rows(),
        *finder.routes(),
        *finder.models(),
        *finder.reach(),
        *(problem for model in policy.models for problem in _prices(model, now=now)),
        *finder.overlaps(),
    ]
    order: Sequence[Severity] = ("error", "warning", "note")
    return tuple(sorted(found, key=lambda problem: order.index(problem.severity)))


class _Finder:
    def __init__(self, space: Space, view: View) -> None:
        self._space = space
        self._view = view
        self._routes = view.policy.routes
        self._taken = [
            region(space.everything, view.takes(row)) for row in range(len(self._routes))
        ]

    def rows(self) -> Iterator[Problem]:
        """Give the routes that no request ever takes."""
        for row, route in enumerate(self._routes):
            if self._taken[row] is not None:
                continue
            above = self._shadows(row)
            yield _error(
                "contradiction" if not above else "shadowed",
                ("routes", route.name, "when"),
                "no request can fulfil all of these conditions; correct one of them"
                if not above
                else f"every request that '{route.name}' would match is taken by"
                f" {_named(above)} above it; move it up, or delete it",
            )

    def _shadows(self, row: int) -> list[str]:
        """Return the fewest routes above that leave nothing to ``row``; none if it needs none."""
        above = [place for place in range(row) if self._meet(place, row)]
        for place in list(above):
            rest = [other for other in above if other != place]
            misses = (self._view.misses(other) for other in rest)
            if region(self._space.everything, [*self._view.applies(row), *misses]) is None:
                above = rest
        return [self._routes[place].name for place in above]

    def _meet(self, above: int, row: int) -> bool:
        """Return whether a request fulfils the conditions of both, and may take the first."""
        both = [*self._view.applies(above), *self._view.applies(row)]
        return self._taken[above] is not None and region(self._space.everything, both) is not None

    def overlaps(self) -> Iterator[Problem]:
        """Give the routes some of whose requests are taken by routes above."""
        rows = len(self._routes) - 1  # the default overlaps with all, and is meant to
        if rows > OVERLAPPING_ROWS:
            yield _note("overlap", ("routes",), f"overlaps of {rows} routes are not listed")
            return
        for row in (row for row in range(rows) if self._taken[row] is not None):
            above = [self._routes[other].name for other in range(row) if self._meet(other, row)]
            if above:
                yield _note(
                    "overlap",
                    ("routes", self._routes[row].name),
                    f"where {_named(above)} above match too, they are taken; order decides",
                )

    def routes(self) -> Iterator[Problem]:
        """Give the routes that do not do what their models promise."""
        for row, route in enumerate(self._routes):
            taken = self._taken[row]
            if taken is not None:
                yield from self._for_tiers(row, taken)
                yield from self._emptied(row, taken)
            yield from _no_ops(route, self._view.compiled.models)

    def _for_tiers(self, row: int, taken: Region) -> Iterator[Problem]:
        route = self._routes[row]
        own = dict.fromkeys((*route.models, *route.fallback))
        for tier in self._view.policy.tiers:
            of_tier = self._space.is_one_of("tier", (tier,))
            found = taken.find((of_tier,))
            if found is not None and not any(
                taken.find((of_tier, *self._view.serves(model))) for model in own
            ):
                then = "is refused" if route.enforce else "always falls to the last resort"
                yield _warning(
                    "route_without_model",
                    ("routes", route.name, "models"),
                    f"tier '{tier}' can take '{route.name}' and may use none of {_named(own)}, so"
                    f" it {then}; keep the tier out by 'when', or add a model that is open to it",
                    self._space.facts(found),
                )

    def _emptied(self, row: int, taken: Region) -> Iterator[Problem]:
        """Find requests refused only because the route enforces."""
        within = self._view.within(row)
        if not self._routes[row].enforce:
            return
        none = [self._view.refuses(model) for model in within]
        for model in self._view.policy.models:
            if model.id in within:
                continue
            found = taken.find(self._view.serves(model.id), none)
            if found is not None:
                facts = self._space.facts(found)
                yield _note(
                    "enforced_refusal",
                    ("routes", self._routes[row].name, "enforce"),
                    f"some requests are refused here that {model.id} could serve: {_short(facts)};"
                    " add a fallback if that is not meant",
                    facts,
                )
                return

    def models(self) -> Iterator[Problem]:
        """Give the models that no chain ever has."""
        for model in self._view.policy.models:
            if self._is_tried(model.id):
                continue
            if self._is_used(model.id):
                yield _warning(
                    "dead_model",
                    ("models", model.id),
                    "no route ever tries it, and it is used only if a client proposes it or a"
                    " body's models or provider ask for it; add it to a route or to last_resort,"
                    " or delete it",
                )
            else:
                yield _warning(
                    "dead_model", ("models", model.id), "no request can ever use it; delete it"
                )

    def _is_tried(self, model: str) -> bool:
        for row, taken in reversed([*enumerate(self._taken)]):
            route, within = self._routes[row], self._view.within(row)
            if taken is None or model not in within:
                continue
            named = {*route.models, *route.fallback, *self._view.policy.last_resort} & {*within}
            # Whom nobody names is tried where none of those named may be.
            others = [] if model in named else [self._view.refuses(name) for name in named]
            if taken.find(self._view.serves(model), others) is not None:
                return True
        return False

    def _is_used(self, model: str) -> bool:
        return any(
            taken is not None
            and model in self._view.within(row)
            and taken.find(self._view.serves(model)) is not None
            for row, taken in enumerate(self._taken)
        )

    def reach(self) -> Iterator[Problem]:
        """Give the tiers and data classes that some or all models are closed to."""
        policy = self._view.policy
        served = dict.fromkeys(name for model in policy.models for name in model.endpoints)
        for tier in policy.tiers:
            open_to = [model for model in policy.models if tier in model.tiers]
            for endpoint in served:
                if not any(endpoint in model.endpoints for model in open_to):
                    yield _note(
                        "tier_without_api",
                        ("tiers",),
                        f"tier '{tier}' has no model for {endpoint}, which others have",
                    )
        for name, promises in policy.data_classes.items():
            may = [model for model in policy.models if {*promises} <= {*model.promises}]
            if not may:
                yield _warning(
                    "unseen_data",
                    ("data_classes", name),
                    f"no provider has promised {' and '.join(promises)}, so every request with"
                    f" {name} data is refused; add a model that may see it, if that is not meant",
                )
                continue
            for tier in policy.tiers:
                if not any(tier in model.tiers for model in may):
                    yield _note(
                        "tier_without_data",
                        ("data_classes", name),
                        f"tier '{tier}' may use no model that may see {name} data: refused",
                    )


def _no_ops(route: Route, models: dict[str, Model]) -> Iterator[Problem]:
    floors = route.min_quality or route.max_cost_nusd is not None or route.max_ttft_ms is not None
    twice = [name for name in route.fallback if name in route.models]
    if twice and not floors:
        yield _warning(
            "fallback_twice",
            ("routes", route.name, "fallback"),
            f"{_named(twice)} is a candidate of '{route.name}' already, and tried before its"
            " fallback; name another model",
        )
    if route.min_quality and all(models[m].quality < route.min_quality for m in route.models):
        yield _warning(
            "floor_without_model",
            ("routes", route.name, "min_quality"),
            f"no candidate is rated {route.min_quality}, so the floor prefers none; lower it",
        )
    if route.max_ttft_ms is not None and all(
        models[m].ttft_prior_ms > route.max_ttft_ms for m in route.models
    ):
        yield _warning(
            "floor_without_model",
            ("routes", route.name, "max_ttft_ms"),
            f"no candidate is expected within {route.max_ttft_ms} ms, so the ceiling prefers none;"
            " raise it",
        )


def _prices(model: Model, *, now: int) -> Iterator[Problem]:
    price = model.price
    into, out = price.input_nusd_per_mtok, price.output_nusd_per_mtok
    place = ("models", model.id, "price")
    if out < into and "embeddings" not in model.endpoints:
        yield _warning(
            "odd_price",
            place,
            f"an answer costs less than a prompt ({format_usd(out)} against {format_usd(into)});"
            " are they the wrong way round?",
        )
    if (price.cached_input_nusd_per_mtok or 0) > into:
        yield _warning("odd_price", place, "cached input costs more than input; check both")
    if max(into, out) > DEAREST_NUSD or 0 < min(into, out) < CHEAPEST_NUSD:
        yield _warning(
            "odd_price",
            place,
            f"{format_usd(into)} and {format_usd(out)} per million tokens; is it per thousand, or"
            " per token?",
        )
    for field, said in differences(model, at=datetime.fromtimestamp(now, UTC)):
        yield _warning(
            "stale_price" if field.startswith("price") else "stale_window",
            ("models", model.id, *field.split(".")),
            f"{said}; correct it, unless your contract says so",
        )
    if not is_known(model):
        yield _note(
            "unknown_price", place, f"{SOURCE} does not have {model.provider}'s '{model.name}'"
        )


def _invariants(authored: Authored) -> Iterator[Problem]:
    for proof in prove_all(authored):
        place = ("invariants", proof.name)
        if proof.broken is not None:
            yield _error(
                "invariant_broken",
                place,
                f"'{proof.name}' does not hold: {proof.broken.because}; waypost policy prove shows"
                " a request",
                proof.broken.facts,
            )
        elif not proof.applies:
            yield _warning(
                "invariant_void",
                place,
                f"'{proof.name}' speaks of no request that is ever served; check its 'when'",
            )


def _short(facts: Facts) -> str:
    classes = f", {' and '.join(d)} data" if (d := facts.declared.data_classes) else ""
    needs = f", needs {' and '.join(n)}" if (n := facts.measured.needs) else ""
    size = f"{facts.measured.input_tokens} tokens by {facts.measured.endpoint}"
    return f"tier {facts.signed.tier}, {size}{classes}{needs}"


def _named(names: Iterable[str]) -> str:
    *some, last = (f"'{name}'" for name in names)
    return f"{', '.join(some)} and {last}" if some else last


def _error(code: str, place: Place, message: str, facts: Facts | None = None) -> Problem:
    return Problem(severity="error", code=code, place=place, message=message, facts=facts)


def _warning(code: str, place: Place, message: str, facts: Facts | None = None) -> Problem:
    return Problem(severity="warning", code=code, place=place, message=message, facts=facts)


def _note(code: str, place: Place, message: str, facts: Facts | None = None) -> Problem:
    return Problem(severity="note", code=code, place=place, message=message, facts=facts)
