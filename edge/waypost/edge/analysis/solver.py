"""Finds facts that fulfil a set of demands, or shows that there are none. Exact, pure.

A variable takes one of a few cells, and a set of cells is the bits of an integer. This is
satisfiability with unit propagation (Davis, Putnam, Logemann and Loveland), over variables of
more than two values; policies make small and easy instances of it.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

__all__ = ["Atom", "Clause", "Domains", "Literal", "Region", "narrow", "region", "solve"]

Atom = tuple[int, int]
"""A variable, and the cells it must be in."""
Literal = tuple[Atom, ...]
"""All of them hold; without any it is always true."""
Clause = tuple[Literal, ...]
"""At least one of them holds; without any it is never true."""
Domains = Sequence[int]
"""The cells that each variable may still be in."""


def narrow(domains: Domains, literal: Literal) -> list[int] | None:
    """Return ``domains`` where ``literal`` holds, ``None`` if it cannot."""
    narrowed = list(domains)
    for variable, cells in literal:
        narrowed[variable] &= cells
        if not narrowed[variable]:
            return None
    return narrowed


def solve(domains: Domains, clauses: Iterable[Clause]) -> list[int] | None:
    """Return domains any choice from which fulfils every clause, ``None`` if there is none."""
    propagated = propagate(domains, clauses)
    if propagated is None:
        return None
    narrowed, open_clauses = propagated
    if not open_clauses:
        return narrowed
    shortest = min(open_clauses, key=len)
    for literal in shortest:
        branch = narrow(narrowed, literal)
        if branch is not None:
            found = solve(branch, open_clauses)
            if found is not None:
                return found
        if len(literal) == 1:
            # Where it holds there is nothing, so the other branches need not look there again.
            variable, cells = literal[0]
            narrowed[variable] &= ~cells
            if not narrowed[variable]:
                return None
    return None


class Region(Struct, frozen=True):
    """What fulfils some demands, made simple once to be searched many times."""

    domains: list[int]
    open: list[Clause]

    def find(self, literal: Literal = (), clauses: Iterable[Clause] = ()) -> list[int] | None:
        """Return what lies in here and fulfils these as well, ``None`` if nothing does."""
        domains = narrow(self.domains, literal)
        return None if domains is None else solve(domains, [*clauses, *self.open])


def region(domains: Domains, clauses: Iterable[Clause]) -> Region | None:
    """Return what fulfils ``clauses``, ``None`` if nothing does."""
    propagated = propagate(domains, clauses)
    if propagated is None or solve(*propagated) is None:
        return None
    return Region(*propagated)


def propagate(domains: Domains, clauses: Iterable[Clause]) -> tuple[list[int], list[Clause]] | None:
    """Return the same demands, simpler: what is left without an alternative is asserted.

    ``None`` if that shows them to contradict each other; else narrower domains, and the clauses
    that they leave open.
    """
    narrowed = list(domains)
    waiting = list(clauses)
    while True:
        still: list[Clause] = []
        asserted = False
        for clause in waiting:
            possible: list[Literal] = []
            for literal in clause:
                certain = True
                for variable, cells in literal:
                    domain = narrowed[variable]
                    if not domain & cells:
                        break
                    if domain & ~cells:
                        certain = False
                else:
                    if certain:
                        break
                    possible.append(literal)
            else:
                if not possible:
                    return None
                if len(possible) > 1:
                    still.append(tuple(possible))
                    continue
                for variable, cells in possible[0]:
                    narrowed[variable] &= cells
                asserted = True
        if not asserted:
            return narrowed, still
        waiting = still
