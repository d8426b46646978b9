"""Arguments by name: one that nobody knows is told with the one that was meant.

A misspelt class of data would be a duty that nobody has.
"""

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

__all__ = ["check_names", "named", "names_of"]

P = ParamSpec("P")
R = TypeVar("R")


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Have ``function`` say which argument was meant when it is called with an unknown one."""
    known = names_of(function)
    what = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.keys() <= known:
            check_names(f"{what}()", kwargs, known)
        return function(*args, **kwargs)

    return call


def names_of(function: Callable[..., object]) -> frozenset[str]:
    """Return the names of the arguments that ``function`` takes by name."""
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return frozenset(name for name, each in parameters.items() if each.kind in by_name)


def check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise TypeError for the first of ``given`` that is not ``known``."""
    for name in given:
        if name not in known:
            # Late: it is only for mistakes.
            from difflib import get_close_matches

            names = sorted(set(known) - {"self"})
            close = get_close_matches(name, names, n=1, cutoff=0.6)
            mend = f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(names)}"
            raise TypeError(f"{what} has no argument {name!r}; {mend}")
