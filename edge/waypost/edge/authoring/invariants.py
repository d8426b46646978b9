"""What must hold of a policy, whoever asks: the authored promises that ``prove`` checks."""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from waypost.shared.contracts import (
    Condition,
    Model,
)
from waypost.shared.money import Usage, bill

__all__ = ["DataHas", "Invariant", "MaxCost", "Size"]


class DataHas(Struct, frozen=True, kw_only=True):
    """The request's data classes, whoever vouches for them, as ``TextHas`` has words."""

    any_of: tuple[str, ...] = ()
    all_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()


class Size(Struct, frozen=True):
    """How long prompt and answer are, in tokens; ``output`` is ``None`` where nobody says."""

    input: int
    output: int | None = None


class MaxCost(Struct, frozen=True):
    """At most ``nusd`` by the estimate, for any request of at most so many tokens."""

    nusd: int
    input_tokens: int
    output_tokens: int

    @property
    def size(self) -> Size:
        return Size(self.input_tokens, self.output_tokens)

    def cost_nusd(self, model: Model, size: tuple[int, int] | None = None) -> int:
        """Return the estimate for input and output of ``size``, or for the longest."""
        tokens_in, tokens_out = size or (self.input_tokens, self.output_tokens)
        return bill(model.price, Usage(input_tokens=tokens_in, output_tokens=tokens_out))

    def dearest(self, model: Model, sizes: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
        """Return which of ``sizes`` costs most, of those spoken of, if that is too much."""
        within = [s for s in sizes if s[0] <= self.input_tokens and s[1] <= self.output_tokens]
        dearest = max(within, key=lambda size: self.cost_nusd(model, size), default=None)
        if dearest is None or self.cost_nusd(model, dearest) <= self.nusd:
            return None
        return dearest


class Invariant(Struct, frozen=True, kw_only=True):
    """For every request that fulfils ``when`` and carries ``data``, all of the rest holds.

    Attributes:
        promises, models, providers, regions: of each model that may be used, be it the policy's
            choice, its fallback or a client's proposal; ``None`` does not bind.
        max_cost: likewise, by the estimate.
        has_fallback: a request that is served at all has a second model to fall back to.
        never_refused: some model may be used.
    """

    name: str
    when: tuple[Condition, ...] = ()
    data: DataHas = DataHas()
    promises: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None
    max_cost: MaxCost | None = None
    has_fallback: bool = False
    never_refused: bool = False

    def broken_by(self, model: Model) -> str:
        """Return what of ``model`` breaks this wherever it may be used; ``""`` if nothing."""
        return next(self._faults(model), "")

    def _faults(self, model: Model) -> Iterator[str]:
        missing = [promise for promise in self.promises if promise not in model.promises]
        if missing:
            yield f"{model.provider} has not promised {' or '.join(missing)}"
        if self.models is not None and model.id not in self.models:
            yield f"it is not one of {', '.join(self.models)}"
        if self.providers is not None and model.provider not in self.providers:
            yield f"its provider {model.provider} is not one of {', '.join(self.providers)}"
        if self.regions is not None and model.region not in self.regions:
            yield f"its region {model.region} is not one of {', '.join(self.regions)}"
