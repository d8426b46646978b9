"""``waypost receipts``: the operator's public keys, and what an auditor can prove offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import fail, print_json
from waypost.validator.decisions_options import JSON, Config, Database, read, say

if TYPE_CHECKING:
    from waypost.shared.compiled import CompiledPolicy
    from waypost.validator.receipts.audit import Finding
    from waypost.validator.receipts.receipt import Receipt
    from waypost.validator.records import RecordStore

__all__ = ["register"]

PAGE = 2_000
DAY_MS = 86_400_000


def register(app: typer.Typer) -> None:
    """Add ``waypost receipts`` to ``app``."""
    receipts = typer.Typer(help="Prove what was decided, and to whom.", no_args_is_help=True)
    receipts.command("keys")(_keys)
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


def _verify(
    log: Annotated[Path, typer.Argument(help="The log's folder.")],
    keys: Annotated[Path, typer.Option(help="The operator's public keys.")],
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A head of the log that you kept from before.")
    ] = None,
    receipt: Annotated[
        list[Path] | None, typer.Option(help="A file with one receipt in it, or one per line.")
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
    is the operator's and its record says the same.
    """
    import msgspec

    from waypost.validator.receipts.audit import check_log
    from waypost.validator.receipts.keys import PublicKeys
    from waypost.validator.receipts.log import read_entries
    from waypost.validator.receipts.receipt import open_receipt
    from waypost.validator.receipts.tlog import LogError, open_checkpoint

    try:
        public = msgspec.json.decode(keys.read_bytes(), type=PublicKeys)
        head = open_checkpoint((log / "checkpoint").read_bytes(), public.log)
        kept = [open_checkpoint(path.read_bytes(), public.log) for path in checkpoint or ()]
        given = [
            open_receipt(line, public)
            for path in receipt or ()
            for line in path.read_bytes().split()
        ]
        entries = list(read_entries(lambda path: (log / path).read_bytes(), head.size))
    except OSError as exc:
        fail(f"{exc.filename} cannot be read: {exc.strerror}")
    except msgspec.MsgspecError:
        fail(f"{keys} does not hold an operator's public keys")
    except LogError as exc:
        if as_json:
            print_json({"findings": [{"code": exc.code, "detail": str(exc)}]})
        fail(f"{exc.code}: {exc}")
    findings = check_log(entries, head, kept)
    if not findings:
        more = read(db, config, lambda store: _compared(store, entries, given, days=retained_days))
        findings += more
    if as_json:
        print_json({"entries": head.size, "receipts": len(given), "findings": findings})
    else:
        for finding in findings[:50]:
            say(f"{finding.code}: {finding.decision or ''} {finding.detail}")
        say(
            f"{head.size:,} entries and {len(given):,} receipts checked:"
            f" {len(findings):,} findings."
            if findings
            else f"{head.size:,} entries and {len(given):,} receipts checked. Nothing was altered,"
            " inserted or removed, and every request went where the policy said."
        )
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
