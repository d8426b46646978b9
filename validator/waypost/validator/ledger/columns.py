"""The books' rows as the columns of SQL tables, in the tables' order. Pure."""

from collections.abc import Sequence
from typing import Any

from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import Grant, WindowSum
from waypost.validator.ledger.rows import HoldRow, KeyRow, RateRow, WindowRow

__all__ = [
    "check_zone",
    "closing_values",
    "grant_values",
    "hold_values",
    "key_values",
    "rate_values",
    "renewing_values",
    "window_sum",
    "window_values",
]


def check_zone(found: str, zone: str) -> None:
    """Raise unless the ledger counts in ``zone``."""
    if found != zone:
        raise StoreError(
            f"this ledger's days and months are those of {found}, not of {zone}; set"
            " budgets.time_zone back, or begin a new ledger",
            code="ledger_zone",
        )


def hold_values(row: HoldRow) -> tuple[Any, ...]:
    """Return the row in the order of the table's columns."""
    return (
        row.id,
        row.scopes,
        row.amount_nusd,
        row.tokens,
        row.backlogs,
        row.at,
        row.expires_at,
        row.state,
        row.cost_nusd,
    )


def closing_values(row: HoldRow) -> tuple[Any, ...]:
    """Return what closing a hold changes, and its id."""
    return (row.state, row.cost_nusd, row.id)


def renewing_values(row: HoldRow) -> tuple[Any, ...]:
    """Return what renewing a hold changes, and its id."""
    return (row.expires_at, row.id)


def window_values(row: WindowRow) -> tuple[Any, ...]:
    """Return the row in the order of the table's columns."""
    return (
        row.scope,
        row.window,
        row.start,
        row.spent_nusd,
        row.debt_nusd,
        row.reserved_nusd,
        row.granted_nusd,
    )


def rate_values(row: RateRow) -> tuple[Any, ...]:
    """Return the row in the order of the table's columns."""
    return (row.scope, row.rate, row.free_at_us)


def key_values(row: KeyRow) -> tuple[Any, ...]:
    """Return the row in the order of the table's columns."""
    return (row.digest, row.body, row.hold_id, row.at)


def grant_values(grant: Grant, amount_nusd: int) -> tuple[Any, ...]:
    """Return the row in the order of the table's columns."""
    return (grant.id, grant.scope, grant.window, grant.at, amount_nusd, grant.by, grant.why)


def window_sum(row: Sequence[Any]) -> WindowSum:
    """Return what the columns of a window's row say."""
    scope, window, start, spent, debt, reserved, granted, *_ = row
    return WindowSum(
        scope=scope,
        window=window,
        start=start,
        spent_nusd=spent,
        debt_nusd=debt,
        reserved_nusd=reserved,
        granted_nusd=granted,
    )
