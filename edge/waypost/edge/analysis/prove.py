"""Proves what must hold of a policy, or finds a request of which it does not. Exact, pure.

An invariant speaks of everything that may happen, not of what is preferred: a client may
propose any admissible model, and an outage may make it the one.
"""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from waypost.edge.analysis.cells import Space, View
from waypost.edge.analysis.solver import Clause, Domains, narrow, solve
from waypost.edge.authoring.invariants import Invariant, MaxCost, Size
from waypost.edge.authoring.load_policy import Authored
from waypost.shared.contracts import Facts, Policy, Proposal
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.decision.explain import explain
from waypost.shared.errors import PolicyError
from waypost.shared.money import format_usd

__all__ = ["Broken", "Proof", "prove", "prove_all", "refuse_broken"]


class Broken(Struct, frozen=True, kw_only=True):
    """A request that breaks an invariant.

    Attributes:
        because: what is wrong, as the end of a sentence.
        proposal: what the client proposes, if the policy's own choice would not break it.
        decision: what ``decide`` makes of it; ``sentence`` is the engine's own explanation.
    """

    because: str
    facts: Facts
    proposal: Proposal | None
    decision: Decision
    sentence: str


class Proof(Struct, frozen=True, kw_only=True):
    """What came of one invariant.

    Attributes:
        cells: how many combinations of facts it was decided for.
        applies: some request that it speaks of is served; without one it says nothing.
        broken: ``None`` if it holds.
    """

    name: str
    cells: int
    applies: bool
    broken: Broken | None = None


def prove_all(authored: Authored) -> tuple[Proof, ...]:
    """Return what comes of each invariant written in the policy."""
    return tuple(prove(authored.full, invariant) for invariant in authored.invariants)


def refuse_broken(authored: Authored) -> None:
    """Check the policy against its invariants.

    Raises:
        PolicyError: ``invariant_broken``, with a request that breaks it.
    """
    for proof in prove_all(authored):
        if proof.broken is not None:
            raise PolicyError(
                f"the policy breaks its invariant '{proof.name}': {proof.broken.because};"
                " waypost policy prove shows the request",
                code="invariant_broken",
            )


def prove(policy: Policy, invariant: Invariant) -> Proof:
    """Return whether ``invariant`` holds for every request there can be, or one that breaks it.

    Args:
        policy: as validators have it, so that models hidden from clients count.
    """
    sizes = [] if invariant.max_cost is None else [invariant.max_cost.size]
    space = Space([policy], conditions=invariant.when, sizes=sizes)
    view = View(space, policy)
    when = [clause for condition in invariant.when for clause in space.fulfils(condition)]
    when += space.carries(invariant.data)
    spoken_of = solve(space.everything, when)
    if spoken_of is None:
        return Proof(name=invariant.name, cells=space.cells, applies=False)
    search = _Search(space, view, when)
    return Proof(
        name=invariant.name,
        cells=space.cells,
        applies=any(search.use(model.id) is not None for model in policy.models),
        broken=next(_counter_examples(search, invariant), None),
    )


class _Search:
    """Looks for requests among those that an invariant speaks of."""

    def __init__(self, space: Space, view: View, when: Sequence[Clause]) -> None:
        self.space = space
        self.view = view
        self._when = when
        self._rows = [view.takes(row) for row in range(len(view.policy.routes))]

    def find(self, row: int, clauses: Sequence[Clause], within: Domains) -> list[int] | None:
        """Return a request that takes ``row`` and fulfils ``clauses``."""
        return solve(within, [*self._when, *clauses, *self._rows[row]])

    def use(self, model: str, sizes: int | None = None) -> list[int] | None:
        """Return a request that ``model`` may be used for, in one of the cells ``sizes``."""
        domains = narrow(self.space.everything, self.view.serves(model))
        if domains is not None and sizes is not None:
            domains = narrow(domains, ((self.space.size, sizes),))
        # Most models are ruled out by the invariant's own conditions, whatever the row.
        if domains is None or solve(domains, self._when) is None:
            return None
        # The default first: most requests take it.
        for row in reversed(range(len(self._rows))):
            if model in self.view.within(row):
                found = self.find(row, (), domains)
                if found is not None:
                    return found
        return None


def _counter_examples(search: _Search, invariant: Invariant) -> Iterator[Broken]:
    for model in search.view.policy.models:
        because = invariant.broken_by(model)
        if because and (found := search.use(model.id)) is not None:
            yield _broken(search, search.space.facts(found), f"{model.id}: {because}", model.id)
    if invariant.max_cost is not None:
        yield from _too_dear(search, invariant.max_cost)
    if invariant.never_refused:
        yield from _refused(search)
    if invariant.has_fallback:
        yield from _alone(search)


def _too_dear(search: _Search, limit: MaxCost) -> Iterator[Broken]:
    default = search.view.policy.default_output_tokens
    corners = [
        [(size.input, default if size.output is None else size.output) for size in sizes]
        for sizes in search.space.corners
    ]
    models = search.view.policy.models
    for model in sorted(models, key=limit.cost_nusd, reverse=True):
        dear = {
            cell: dearest
            for cell, sizes in enumerate(corners)
            if (dearest := limit.dearest(model, sizes)) is not None
        }
        found = search.use(model.id, sum(1 << cell for cell in dear)) if dear else None
        if found is not None:
            tokens_in, tokens_out = dear[search.space.cell(found, search.space.size)]
            cost = format_usd(limit.cost_nusd(model, (tokens_in, tokens_out)))
            size = Size(tokens_in, tokens_out)
            facts = search.space.sized(search.space.facts(found), size)
            because = (
                f"{model.id} costs {cost} for {tokens_in} tokens in and"
                f" {tokens_out} out, more than {format_usd(limit.nusd)}"
            )
            yield _broken(search, facts, because, model.id)


def _refused(search: _Search) -> Iterator[Broken]:
    view = search.view
    for row in range(len(view.policy.routes)):
        none = [view.refuses(model) for model in view.within(row)]
        found = search.find(row, none, search.space.everything)
        if found is not None:
            yield _broken(search, search.space.facts(found), "no model may serve it", None)


def _alone(search: _Search) -> Iterator[Broken]:
    """Find requests whose chain is one model long."""
    view = search.view
    for row, route in enumerate(view.policy.routes):
        within = view.within(row)
        named = {*route.models, *route.fallback, *view.policy.last_resort} & {*within}
        # Where none of the named may be used, all others are tried.
        others = [model for model in within if model not in named]
        for tried, idle in ((sorted(named), ()), (others, sorted(named))):
            for model in tried:
                domains = narrow(search.space.everything, view.serves(model))
                rest = [view.refuses(other) for other in (*tried, *idle) if other != model]
                found = None if domains is None else search.find(row, rest, domains)
                if found is not None:
                    because = f"{model} alone may serve it"
                    yield _broken(search, search.space.facts(found), because, None)


def _broken(search: _Search, facts: Facts, because: str, model: str | None) -> Broken:
    compiled = search.view.compiled
    decision = decide(compiled, facts)
    proposal = None
    if model is not None and decision.model != model:
        proposal = Proposal(model=model)
        decision = decide(compiled, facts, proposal)
    return Broken(
        because=because,
        facts=facts,
        proposal=proposal,
        decision=decision,
        sentence=explain(compiled, facts, decision).sentence,
    )
