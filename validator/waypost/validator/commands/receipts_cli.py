"""``waypost receipts``: the operator's public keys, and what an auditor can prove offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import fail, print_json
from waypost.validator.commands.decisions_options import JSON, Config, Database, read, say

if TYPE_CHECKING:
    from waypost.shared.decision.compiled import CompiledPolicy
    from waypost.validator.receipts.audit import Finding
    from waypost.validator.receipts.keys import PublicKeys
    from waypost.validator.receipts.log import Entry
    from waypost.validator.receipts.receipt import Receipt
    from waypost.validator.records import RecordStore

__all__ = ["register"]

PAGE = 2_000
DAY_MS = 86_400_000


def register(app: typer.Typer) -> None:
    """Add ``waypost receipts`` to ``app``."""
    receipts = typer.Typer(help="Prove what was decided, and to whom.", no_args_is_help=True)
    receipts.command("keys")(_keys)
    receipts.command("prove")(_prove)
    receipts.command("verify")(_verify)
    app.add_typer(receipts, name="receipts")


def _keys(config: Config = Path("validator.yaml")) -> None:
    """Show the public keys that auditors need; publish them by a way that auditors trust."""
    from waypost.validator.config import load_config
    from waypost.validator.receipts.keys import load_keys

    receipts = load_config(config).receipts
    if receipts is None:
        fail(f"{config} has no section receipts")
    print_json(load_keys(receipts.key, origin=receipts.origin).public)


def _prove(
    decision: Annotated[str, typer.Argument(help="The decision's id.")],
    log: Annotated[Path, typer.Argument(help="The log's folder.")],
    out: Annotated[Path | None, typer.Option(help="Left out: ID.tlog-proof.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A head that was kept, as one that witnesses cosigned.")
    ] = None,
    without_record: Annotated[
        bool, typer.Option("--without-record", help="Leave the record out of the proof.")
    ] = False,
    db: Database = None,
    config: Config = Path("validator.yaml"),
) -> None:
    """Write a proof that a decision is in the log, for somebody to check who has nothing else.

    The record goes along: what the caller's pseudonym, facts and attempts were, nothing of others.
    """
    from hashlib import sha256

    from waypost.validator.receipts.audit import find_entry
    from waypost.validator.receipts.log import read_entries
    from waypost.validator.receipts.proof import Proof, format_proof, inclusion
    from waypost.validator.receipts.tlog import LogError, leaf_hash, size_of

    try:
        newest = (log / "checkpoint").read_bytes()
        note = newest if checkpoint is None else checkpoint.read_bytes()
        entries = list(read_entries(lambda path: (log / path).read_bytes(), size_of(newest)))
        entries = entries[: size_of(note)]
        index, entry = find_entry(entries, decision)
    except OSError as exc:
        fail(f"{exc.filename} cannot be read: {exc.strerror}")
    except LogError as exc:
        fail(f"{exc.code}: {exc}")
    record: bytes | None = None
    if not without_record:
        record = read(db, config, lambda store: _as_written(store, entry))
        if record is None:
            fail("its record is no longer kept; prove it --without-record")
        if sha256(record).hexdigest() != entry.record:
            fail("record_altered: the record is not the one that the log seals")
    proof = Proof(
        index=index,
        path=inclusion([leaf_hash(one) for one in entries], index),
        checkpoint=note,
        entry=entries[index],
        record=record,
    )
    target = out or Path(f"{decision}.tlog-proof")
    target.write_bytes(format_proof(proof))
    say(f"Written to {target}. Check it with: waypost receipts verify {target} --keys keys.json")


async def _as_written(store: "RecordStore", entry: "Entry") -> bytes | None:
    """Return the bytes of the record; made anew they might not be the same."""
    from waypost.shared.records import decode_record
    from waypost.validator.records import RecordFilter

    at_once = RecordFilter(since_ms=entry.at_ms, until_ms=entry.at_ms + 1)
    for body in await store.bodies(at_once, limit=PAGE):
        if decode_record(body).id == entry.id:
            return body
    return None


def _verify(
    log: Annotated[Path, typer.Argument(help="The log's folder, or a proof.")],
    keys: Annotated[Path, typer.Option(help="The operator's public keys.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A head of the log that you kept from before.")
    ] = None,
    receipt: Annotated[
        list[Path] | None, typer.Option(help="A file with one receipt in it, or one per line.")
    ] = None,
    witness: Annotated[
        list[Path] | None, typer.Option(help="A witness's public key: it must have cosigned.")
    ] = None,
    retained_days: Annotated[
        int | None, typer.Option(min=1, help="How long records are kept; left out: for ever.")
    ] = None,
    db: Database = None,
    config: Config = Path("validator.yaml"),
    as_json: JSON = False,
) -> None:
    """Check log, records and receipts against each other and the policy. Needs no network.

    That no record was altered, inserted or removed; that the log was only ever added to since
    each checkpoint you kept; that each request went where the policy said; and that each receipt
    is the operator's and its record says the same. Of a proof: that its record is in the log. Of
    witnesses: that each cosigned the proof's head, or one that you kept.
    """
    import msgspec

    from waypost.validator.receipts.audit import check_log, unwitnessed
    from waypost.validator.receipts.keys import PublicKeys
    from waypost.validator.receipts.log import read_entries
    from waypost.validator.receipts.receipt import open_receipt
    from waypost.validator.receipts.tlog import LogError, open_checkpoint

    if log.is_file() and checkpoint:
        raise typer.BadParameter("a proof has its own checkpoint; give the log's folder with one")
    try:
        public = msgspec.json.decode(keys.read_bytes(), type=PublicKeys)
        witnesses = [path.read_text() for path in witness or ()]
        given = [
            open_receipt(line, public)
            for path in receipt or ()
            for line in path.read_bytes().split()
        ]
        if log.is_file():
            _verify_proof(log.read_bytes(), public, given, witnesses, as_json)
            return
        notes = [path.read_bytes() for path in checkpoint or ()]
        head = open_checkpoint((log / "checkpoint").read_bytes(), public.log)
        kept = [open_checkpoint(note, public.log) for note in notes]
        entries = list(read_entries(lambda path: (log / path).read_bytes(), head.size))
        findings = check_log(entries, head, kept) + unwitnessed(notes, witnesses)
    except OSError as exc:
        fail(f"{exc.filename} cannot be read: {exc.strerror}")
    except msgspec.MsgspecError:
        fail(f"{keys} does not hold an operator's public keys")
    except LogError as exc:
        if as_json:
            print_json({"findings": [{"code": exc.code, "detail": str(exc)}]})
        fail(f"{exc.code}: {exc}")
    if not findings:
        more = read(db, config, lambda store: _compared(store, entries, given, days=retained_days))
        findings += more
    _tell(
        findings,
        {"entries": head.size, "receipts": len(given)},
        f"{head.size:,} entries and {len(given):,} receipts checked.",
        "Nothing was altered, inserted or removed, and every request went where the policy said.",
        as_json=as_json,
    )


def _verify_proof(
    data: bytes, public: "PublicKeys", given: "list[Receipt]", witnesses: list[str], as_json: bool
) -> None:
    from waypost.validator.receipts.audit import check_receipt, unwitnessed
    from waypost.validator.receipts.proof import check_proof, parse_proof

    proof = parse_proof(data)
    proven = check_proof(proof, public.log)
    findings = unwitnessed([proof.checkpoint], witnesses)
    for one in given:
        is_this = proven.record is not None and proven.record.id == one.jti
        finding = check_receipt(one, proven.record if is_this else None)
        findings += [] if finding is None else [finding]
    _tell(
        findings,
        {"decision": proven.entry.id, "index": proof.index, "entries": proven.size},
        f"Decision {proven.entry.id} is entry {proof.index:,} of the {proven.size:,} in the log of"
        f" {public.origin}.",
        "Its record is the one that the log seals." if proven.record else "Its record is not here.",
        as_json=as_json,
    )


def _tell(
    findings: "list[Finding]", facts: dict[str, object], what: str, if_none: str, *, as_json: bool
) -> None:
    if as_json:
        print_json({**facts, "findings": findings})
    else:
        for finding in findings[:50]:
            say(f"{finding.code}: {finding.decision or ''} {finding.detail}")
        say(f"{what} {f'{len(findings):,} findings.' if findings else if_none}")
    if findings:
        raise SystemExit(1)


async def _compared(
    store: "RecordStore", entries: list[bytes], given: "list[Receipt]", *, days: int | None
) -> "list[Finding]":
    import time
    from hashlib import sha256

    from waypost.shared.records import decode_record
    from waypost.validator.receipts.audit import against_policy, check_receipt, check_records
    from waypost.validator.records import RecordFilter
    from waypost.validator.records.policies import policy_of

    digests: dict[str, str] = {}
    findings: list[Finding] = []
    policies: dict[tuple[str | None, str | None], CompiledPolicy | None] = {}
    promised = {receipt.jti: receipt for receipt in given}
    after: str | None = None
    while page := await store.bodies(RecordFilter(), limit=PAGE, after=after):
        for body in page:
            record = decode_record(body)
            after = record.id
            digests[record.id] = sha256(body).hexdigest()
            key = (record.manifest_digest, record.hints_digest)
            if key not in policies:
                policies[key] = await policy_of(store, record)
            finding = against_policy(record, policies[key])
            receipt = promised.pop(record.id, None)
            unkept = None if receipt is None else check_receipt(receipt, record)
            findings += [one for one in (finding, unkept) if one is not None]
    since_ms = 0 if days is None else int(time.time() * 1_000) - days * DAY_MS
    findings += check_records(entries, digests, kept_since_ms=since_ms)
    missing = [check_receipt(receipt, None) for receipt in promised.values()]
    return findings + [one for one in missing if one is not None]
