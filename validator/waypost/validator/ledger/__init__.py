"""Budgets in whole nano-dollars: reserve before forwarding, settle with the bill."""

from waypost.validator.ledger.base import Balance, Hold, Ledger, Shortfall, lowest, resets_at
from waypost.validator.ledger.sqlite import Durability, SqliteLedger

__all__ = [
    "Balance",
    "Durability",
    "Hold",
    "Ledger",
    "Shortfall",
    "SqliteLedger",
    "lowest",
    "resets_at",
]
