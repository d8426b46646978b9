"""What an auditor finds, offline, in a log and the records that it seals. Pure.

The log's own head is believed only as far as its signature goes; heads that the auditor kept from
before prove that it was only ever added to.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct

from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.engine import exclusion
from waypost.shared.decision.replay import replay
from waypost.shared.records import DecisionRecord
from waypost.validator.receipts.log import FIRST, Entry
from waypost.validator.receipts.receipt import Receipt, differences
from waypost.validator.receipts.tlog import Checkpoint, LogError, cosigned_at, leaf_hash, root_of

__all__ = [
    "Finding",
    "against_policy",
    "check_log",
    "check_receipt",
    "check_records",
    "find_entry",
    "unwitnessed",
]


class Finding(Struct, frozen=True):
    """Something that is not as it should be: a stable code, and which decision, if one."""

    code: str
    detail: str
    decision: str | None = None


_decode = msgspec.json.Decoder(Entry).decode


def check_log(
    entries: Sequence[bytes], head: Checkpoint, kept: Iterable[Checkpoint]
) -> list[Finding]:
    """Return what is wrong with the log itself.

    Args:
        kept: earlier heads of the same log.
    """
    findings: list[Finding] = []
    leaves = [leaf_hash(entry) for entry in entries]
    if len(entries) != head.size or root_of(leaves) != head.root:
        findings.append(Finding("log_altered", "the entries are not those of the signed head"))
    prev = FIRST
    for place, raw in enumerate(entries):
        try:
            entry = _decode(raw)
        except msgspec.MsgspecError:
            findings.append(Finding("log_malformed", f"entry {place} is no entry"))
            break
        if entry.prev != prev:
            findings.append(
                Finding("chain_broken", f"entry {place} does not follow the one before", entry.id)
            )
        prev = sha256(raw).hexdigest()
    for old in kept:
        if old.size > head.size:
            findings.append(
                Finding("log_shortened", f"it had {old.size} entries and now has {head.size}")
            )
        elif root_of(leaves[: old.size]) != old.root:
            findings.append(
                Finding("log_forked", f"its first {old.size} entries are not what they were")
            )
    return findings


def find_entry(entries: Sequence[bytes], decision: str) -> tuple[int, Entry]:
    """Return a decision's entry and its place; raises LogError (``not_included``)."""
    wanted = decision.encode()
    for place, raw in enumerate(entries):
        if wanted in raw and (entry := _decode(raw)).id == decision:
            return place, entry
    raise LogError("the log has no entry for this decision", code="not_included")


def unwitnessed(notes: Sequence[bytes], witnesses: Iterable[str]) -> list[Finding]:
    """Return a finding for each witness, by its key, that cosigned none of the heads."""
    return [
        Finding("not_witnessed", f"{key.partition('+')[0]} has cosigned no head that is here")
        for key in witnesses
        if all(cosigned_at(note, key) is None for note in notes)
    ]


def check_records(
    entries: Iterable[bytes], digests: Mapping[str, str], *, kept_since_ms: int
) -> list[Finding]:
    """Return where log and records part.

    Args:
        digests: id of each record at hand → SHA-256 of its bytes.
        kept_since_ms: records from before may have been deleted by the operator's own rule.
    """
    findings: list[Finding] = []
    sealed: set[str] = set()
    for raw in entries:
        entry = _decode(raw)
        sealed.add(entry.id)
        found = digests.get(entry.id)
        if found is None:
            if entry.at_ms >= kept_since_ms:
                findings.append(Finding("record_removed", "it is in the log alone", entry.id))
        elif found != entry.record:
            findings.append(Finding("record_altered", "the log has another", entry.id))
    findings += [
        Finding("record_inserted", "the log does not have it", record_id)
        for record_id in digests
        if record_id not in sealed
    ]
    return findings


def against_policy(record: DecisionRecord, policy: CompiledPolicy | None) -> Finding | None:
    """Return a finding if the request did not go where the policy said."""
    if record.facts is None or record.decision_digest is None:
        return None  # refused before anything was decided; nothing was sent
    if policy is None:
        return Finding("manifest_missing", "its manifest is not at hand", record.id)
    if not replay(policy, record.facts, record).is_same:
        return Finding("decision_differs", "the policy decides otherwise", record.id)
    for attempt in record.attempts:
        why = exclusion(policy, attempt.model, record.facts)
        # A row is a preference unless it enforces, so a model beyond it is no breach.
        if why is not None and why.code not in ("not_in_route", "out_of_service"):
            return Finding(
                "against_policy", f"{attempt.model} was not admissible: {why.detail}", record.id
            )
    return None


def check_receipt(receipt: Receipt, record: DecisionRecord | None) -> Finding | None:
    """Return a finding if the record is not what the receipt promised."""
    if record is None:
        return Finding("receipt_without_record", "no record has its id", receipt.jti)
    differ = differences(receipt, record)
    if differ:
        return Finding("receipt_differs", f"the record differs in {', '.join(differ)}", record.id)
    return None
