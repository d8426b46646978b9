"""Budgets in whole nano-dollars: reserve before forwarding, settle with the bill."""

from waypost.validator.ledger.base import (
    Balance,
    Crossed,
    Grant,
    Held,
    Hold,
    IdempotencyKey,
    Ledger,
    RateLimit,
    Refusal,
    Repeat,
    Scope,
    Shortfall,
    Throttled,
    lowest,
    scope_of,
)
from waypost.validator.ledger.calendar import Calendar
from waypost.validator.ledger.sqlite import Durability, open_sqlite

__all__ = [
    "Balance",
    "Calendar",
    "Crossed",
    "Durability",
    "Grant",
    "Held",
    "Hold",
    "IdempotencyKey",
    "Ledger",
    "RateLimit",
    "Refusal",
    "Repeat",
    "Scope",
    "Shortfall",
    "Throttled",
    "lowest",
    "open_sqlite",
    "scope_of",
]
