"""What a store may be asked to do to the books, as values that can wait in a queue."""

from msgspec import Struct

from waypost.validator.ledger.base import Grant, Hold

__all__ = ["FreeKey", "GrantOp", "Operation", "Release", "Renew", "Reserve", "Settle", "Sweep"]


class Reserve(Struct, frozen=True):
    """See ``Ledger.reserve``."""

    hold: Hold


class Settle(Struct, frozen=True):
    """See ``Ledger.settle``."""

    hold_id: str
    cost_nusd: int
    tokens: int | None = None
    is_confirmed: bool = True


class Release(Struct, frozen=True):
    """See ``Ledger.release``."""

    hold_id: str


class Renew(Struct, frozen=True):
    """See ``Ledger.renew``."""

    hold_ids: tuple[str, ...]
    expires_at: int


class FreeKey(Struct, frozen=True):
    """See ``Ledger.free_key``."""

    digest: str
    request_id: str


class Sweep(Struct, frozen=True):
    """See ``Ledger.sweep``; of at most so many holds."""

    now: int
    at_most: int


class GrantOp(Struct, frozen=True):
    """See ``Ledger.grant``."""

    grant: Grant


Operation = Reserve | Settle | Release | Renew | FreeKey | Sweep | GrantOp
