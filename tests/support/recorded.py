"""Decision records to fill a store with."""

import hashlib
from collections.abc import Sequence

import msgspec

from support.worlds import NOW, a_policy, some_facts
from waypost.shared.contracts import Proposal
from waypost.shared.errors import StoreError
from waypost.shared.money import Usage
from waypost.shared.records import Attempt, DecisionRecord, encode_record
from waypost.validator.records import Encoded, RecordStore, SqliteRecordStore

POLICY = msgspec.json.encode(a_policy())
DIGEST = hashlib.sha256(POLICY).hexdigest()


def a_record(number: int = 0, **changes: object) -> DecisionRecord:
    """A short chat that the policy of ``support.worlds`` gave to ``small``, one per second."""
    fields: dict[str, object] = {
        "id": f"0199f000-0000-7000-8000-{number:012d}",
        "at_ms": (NOW + number) * 1_000,
        "verdict": "accepted",
        "reason": "proposal_allowed",
        "http_status": 200,
        "subject": "5f2b",
        "tenant": "north",
        "tier": "free",
        "account": "acme",
        "manifest_version": 42,
        "manifest_digest": DIGEST,
        "facts": some_facts(now=NOW + number),
        "proposal": Proposal(model="small"),
        "route": "short-chat",
        "chosen": "small",
        "model": "small",
        "attempts": (
            Attempt(model="small", provider="acme", outcome="ok", ttft_ms=90.0, duration_ms=400.0),
        ),
        "usage": Usage(input_tokens=41, output_tokens=100),
        "cost_nusd": 66_150,
        "baseline_cost_nusd": 1_102_500,
        "ttft_ms": 90.0,
        "duration_ms": 400.0,
    }
    return DecisionRecord(**{**fields, **changes})  # type: ignore[arg-type]


async def fill(store: RecordStore, *records: DecisionRecord, dropped: int = 0) -> None:
    await store.append([(record, encode_record(record)) for record in records], dropped=dropped)


class Fickle(SqliteRecordStore):
    """A store that is down while ``is_down``."""

    is_down = False

    async def append(self, records: Sequence[Encoded], *, dropped: int = 0) -> None:
        if self.is_down:
            raise StoreError("down", code="records_unavailable")
        await super().append(records, dropped=dropped)
