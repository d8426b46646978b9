"""Finds the manifest, hints included, that a record was decided by."""

from waypost.shared.contracts import decode_hints, decode_policy
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.records import DecisionRecord
from waypost.validator.records.base import RecordStore

__all__ = ["policy_of"]


async def policy_of(store: RecordStore, record: DecisionRecord) -> CompiledPolicy | None:
    """Return the compiled policy; ``None`` if it, or its hints, are not kept."""
    if record.manifest_digest is None:
        return None
    policy = await store.get_policy(record.manifest_digest)
    hints = None if record.hints_digest is None else await store.get_policy(record.hints_digest)
    if policy is None or (hints is None and record.hints_digest is not None):
        return None
    return compile_policy(decode_policy(policy), None if hints is None else decode_hints(hints))
