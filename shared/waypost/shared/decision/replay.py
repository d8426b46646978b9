"""Decides recorded requests again, by the manifest they were decided by. Pure.

The same facts, manifest and hints give the same decision, byte for byte; a record keeps a digest
of it, so that a replay can tell.
"""

from functools import lru_cache
from hashlib import sha256

from msgspec import Struct, structs
from msgspec.json import Encoder

from waypost.shared.contracts import Facts
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.records import DecisionRecord

__all__ = ["DOWNGRADE", "Replayed", "decision_digest", "downgraded", "replay"]

DOWNGRADE = "budget_downgrade"

_encode = Encoder().encode


class Replayed(Struct, frozen=True):
    """A decision made again, and whether it is the recorded one to the byte."""

    decision: Decision
    is_same: bool


@lru_cache(maxsize=4_096)  # a policy comes to few decisions
def decision_digest(decision: Decision) -> str:
    """Return the SHA-256 of the decision as JSON, in hex."""
    return sha256(_encode(decision)).hexdigest()


def downgraded(decision: Decision, name: str) -> Decision:
    """Return ``decision`` once the account's means led to another model of its chain."""
    return structs.replace(
        decision,
        verdict="decided" if decision.proposed is None else "overridden",
        reason=DOWNGRADE,
        model=name,
        chain=(name, *(other for other in decision.chain if other != name)),
    )


def replay(policy: CompiledPolicy, facts: Facts, record: DecisionRecord) -> Replayed:
    """Return what ``policy`` decides on the recorded ``facts``, and the recorded proposal.

    What an account could pay is the ledger's word, not the manifest's: of a downgrade, the model
    that was affordable is taken from the record, and everything else is decided again.
    """
    decision = decide(policy, facts, record.proposal)
    if record.is_downgraded and record.chosen is not None:
        if facts.measured.affordable_nusd is not None:
            decision = structs.replace(decision, reason=DOWNGRADE)
        else:
            decision = downgraded(decision, record.chosen)
    return Replayed(decision, decision_digest(decision) == record.decision_digest)
