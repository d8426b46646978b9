"""Attacks on the proof of what was decided: whoever holds records or log, but not the key."""

import asyncio
import base64
import hashlib
import json
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs
from typer.testing import CliRunner

from support.recorded import a_record
from support.tokens import App
from support.upstream import running_upstream
from support.validator import HELLO, running_validator
from waypost.shared.records import decode_record, encode_record
from waypost.validator.commands import receipts_cli
from waypost.validator.receipts.audit import check_records
from waypost.validator.receipts.keys import load_keys
from waypost.validator.receipts.log import ReceiptLog, read_entries
from waypost.validator.receipts.proof import format_proof, parse_proof
from waypost.validator.receipts.receipt import open_receipt, sign_receipt
from waypost.validator.records import RecordFilter, SqliteRecordStore

pytestmark = pytest.mark.anyio


class World:
    """A validator that has answered a few requests and stopped, and what it left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "state/log"
        self.records = folder / "state/records.sqlite"
        self.keys = folder / "keys.json"
        self.kept = folder / "checkpoint.kept"
        self.receipts: list[bytes] = []
        self.as_token: list[int] = []

    async def run(self) -> None:
        proof = {"origin": "validator.example/decisions"}
        async with (
            running_upstream() as acme,
            running_validator(
                self.folder, {"acme": acme, "medcloud": acme}, receipts=proof
            ) as validator,
        ):
            for body, wishes in (
                (HELLO, {}),
                ({**HELLO, "model": "frontier"}, {}),
                ({**HELLO, "stream": True}, {}),
                (HELLO, {"tier": "gold"}),
            ):
                answer = await validator.chat(body, **wishes)  # type: ignore[arg-type]
                await validator.record(answer)
                self.receipts.append(answer.headers["waypost-receipt"].encode())
                if body is not HELLO and not self.kept.exists():
                    await asyncio.sleep(0.1)  # until the batch is sealed
                    shutil.copy(self.log / "checkpoint", self.kept)
            as_token = {"Authorization": f"Bearer {self.receipts[0].decode()}"}
            refused = await validator.client.post(
                "/v1/chat/completions", json=HELLO, headers=as_token
            )
            self.as_token.append(refused.status_code)
        shutil.copy(self.log / "keys.json", self.keys)

    def verify(self, *options: str) -> tuple[int, list[str]]:
        app = typer.Typer()
        receipts_cli.register(app)
        app.command("other")(lambda: None)
        command = ["receipts", "verify", str(self.log), "--keys", str(self.keys), "--json",
                   "--db", str(self.records), *options]  # fmt: skip
        done = CliRunner().invoke(app, command)
        found = json.loads(done.stdout)["findings"] if done.stdout else []
        return done.exit_code, [finding["code"] for finding in found]

    def prove(self, place: int, *options: str) -> Path:
        """Write the proof of a decision into a folder of its own; nothing else is there."""
        alone = self.folder / "auditor"
        alone.mkdir(exist_ok=True)
        shutil.copy(self.keys, alone)
        decision = decode_record(self.bodies()[place]).id
        app = typer.Typer()
        receipts_cli.register(app)
        app.command("other")(lambda: None)
        command = ["receipts", "prove", decision, str(self.log), "--db", str(self.records),
                   "--out", str(alone / "proof"), *options]  # fmt: skip
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        self.log, self.keys, self.records = alone / "proof", alone / "keys.json", alone / "none"
        return alone / "proof"

    def receipt(self, token: bytes) -> tuple[int, list[str]]:
        path = self.folder / "receipt"
        path.write_bytes(token)
        return self.verify("--receipt", str(path))

    def sql(self, statement: str, *values: Any) -> None:  # noqa: ANN401
        with closing(sqlite3.connect(self.records)) as db, db:
            db.execute(statement, values)

    def bodies(self) -> list[bytes]:
        async def read() -> list[bytes]:
            store = SqliteRecordStore.open(self.records)
            try:
                return list(await store.bodies(RecordFilter(), limit=99))
            finally:
                await store.close()

        return asyncio.run(read())


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("left"))
    asyncio.run(world.run())
    return world


@pytest.fixture
def world(left_behind: World, tmp_path: Path) -> World:
    shutil.copytree(left_behind.folder, tmp_path / "world")
    mine = World(tmp_path / "world")
    mine.receipts, mine.as_token = left_behind.receipts, left_behind.as_token
    return mine


def test_what_nobody_touched_is_proved(world: World) -> None:
    path = world.folder / "receipts"
    path.write_bytes(b"\n".join(world.receipts))
    assert world.verify("--checkpoint", str(world.kept), "--receipt", str(path)) == (0, [])


def test_an_altered_record_is_found(world: World) -> None:
    altered = world.bodies()[0].replace(b'"model":"small"', b'"model":"large"')
    world.sql("UPDATE bodies SET body = ? WHERE seq = 1", altered)
    code, found = world.verify()
    assert code == 1
    assert "record_altered" in found


def test_an_inserted_record_is_found(world: World) -> None:
    forged = a_record(7, facts=None)
    world.sql(
        "INSERT INTO records SELECT 99, ?, at_ms, account, route, model, verdict, reason, tier,"
        " tenant, failed, abandoned, retried, repeated, cost_nusd, saved_nusd, input_tokens,"
        " output_tokens, ttft_bucket, duration_bucket FROM records WHERE seq = 1",
        forged.id,
    )
    world.sql("INSERT INTO bodies VALUES (99, ?)", encode_record(forged))
    assert world.verify() == (1, ["record_inserted"])


def test_a_removed_record_is_found(world: World) -> None:
    for table in ("records", "bodies"):
        world.sql(f"DELETE FROM {table} WHERE seq = 2")  # noqa: S608
    assert world.verify() == (1, ["record_removed"])


def test_what_the_operators_own_rule_deletes_is_no_finding(world: World) -> None:
    entries = list(read_entries(lambda path: (world.log / path).read_bytes(), 5))
    later = int(time.time() * 1_000) + 1_000
    assert check_records(entries, {}, kept_since_ms=later) == []
    assert len(check_records(entries, {}, kept_since_ms=0)) == 5


def test_an_entry_changed_in_the_log_is_found(world: World) -> None:
    (path,) = world.log.glob("tile/entries/000.p/*")
    path.write_bytes(path.read_bytes().replace(b'"at_ms":1', b'"at_ms":2', 1))
    code, found = world.verify()
    assert code == 1
    assert found[0] == "log_altered"


def _rewritten(world: World, records: int) -> None:
    """Begin the log anew with the operator's own key, as a dishonest operator would."""
    keys = load_keys(world.folder / "state/receipts.key", origin="validator.example/decisions")
    shutil.rmtree(world.log)
    log = ReceiptLog(world.log, keys)
    kept = [(decode_record(body), body) for body in world.bodies()]
    log.append(kept[::-1][:records])


def test_a_log_that_its_own_operator_forked_is_found_by_an_earlier_head(world: World) -> None:
    _rewritten(world, 5)
    assert world.verify() == (0, [])  # consistent in itself …
    assert world.verify("--checkpoint", str(world.kept)) == (1, ["log_forked"])


def test_a_log_that_was_cut_short_is_found_by_an_earlier_head(world: World) -> None:
    _rewritten(world, 1)
    code, found = world.verify("--checkpoint", str(world.kept))
    assert code == 1
    assert "log_shortened" in found


def test_a_head_signed_by_somebody_else_is_refused(world: World) -> None:
    stranger = load_keys(world.folder / "stranger.key", origin="validator.example/decisions")
    shutil.rmtree(world.log)
    ReceiptLog(world.log, stranger).append([])
    assert world.verify() == (1, ["checkpoint_forged"])


def test_a_receipt_is_no_access_token(world: World) -> None:
    assert world.as_token == [401]


def test_an_access_token_is_no_receipt_and_neither_is_a_checkpoint_key_s_signature(
    world: World,
) -> None:
    assert world.receipt(App().mint().encode())[1] == ["receipt_malformed"]
    keys = load_keys(world.folder / "state/receipts.key", origin="validator.example/decisions")
    mine = open_receipt(world.receipts[0], keys.public)
    keys.receipt = keys.log
    assert world.receipt(sign_receipt(mine, keys))[1] == ["receipt_forged"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda token: token[:-4] + b"AAAA", "receipt_forged"),
        (lambda token: b"." + token.split(b".", 1)[1], "receipt_malformed"),
        (lambda token: b"x" * 9_000, "receipt_malformed"),
    ],
)
def test_a_receipt_that_was_tampered_with_is_refused(world: World, change: Any, code: str) -> None:  # noqa: ANN401
    assert world.receipt(change(world.receipts[0]))[1] == [code]


def test_a_receipt_whose_record_says_otherwise_is_found(world: World) -> None:
    keys = load_keys(world.folder / "state/receipts.key", origin="validator.example/decisions")
    mine = open_receipt(world.receipts[0], keys.public)
    elsewhere = sign_receipt(structs.replace(mine, model="large"), keys)
    assert world.receipt(elsewhere) == (1, ["receipt_differs"])
    lost = sign_receipt(structs.replace(mine, jti=a_record(9).id), keys)
    assert world.receipt(lost) == (1, ["receipt_without_record"])


def test_a_request_that_went_where_the_policy_did_not_say_is_found(world: World) -> None:
    """By an operator who signs whatever they like: the record still convicts them."""
    body = world.bodies()[0].replace(b'[{"model":"small"', b'[{"model":"frontier"')
    world.sql("UPDATE bodies SET body = ? WHERE seq = 1", body)
    _rewritten(world, 5)
    assert world.verify() == (1, ["against_policy"])


def test_the_secret_is_its_owner_s_alone(world: World) -> None:
    assert (world.folder / "state/receipts.key").stat().st_mode & 0o777 == 0o600


# ── one decision, proved by itself ─────────────────────────────────────────────────────────────


def test_a_proof_needs_neither_log_nor_records(world: World) -> None:
    tokens = world.receipts
    proof = world.prove(1)
    assert world.verify() == (0, [])
    assert world.receipt(tokens[1]) == (0, [])
    assert world.receipt(tokens[0]) == (1, ["receipt_without_record"])
    assert proof.read_bytes().startswith(b"c2sp.org/tlog-proof@v1\nextra ")


def test_a_record_altered_in_its_proof_is_found(world: World) -> None:
    proof = world.prove(0)
    parsed = parse_proof(proof.read_bytes())
    assert parsed.record is not None
    forged = parsed.record.replace(b'"model":"small"', b'"model":"large"')
    proof.write_bytes(format_proof(structs.replace(parsed, record=forged)))
    assert world.verify() == (1, ["record_altered"])


def test_a_proof_of_another_log_is_found(world: World) -> None:
    proof = world.prove(0, "--without-record")
    assert parse_proof(proof.read_bytes()).record is None
    assert world.verify() == (0, [])
    others = load_keys(world.folder / "other.key", origin="validator.example/decisions")
    world.keys.write_bytes(msgspec.json.encode(others.public))
    assert world.verify() == (1, ["checkpoint_forged"])


def test_a_head_that_no_witness_saw_is_found(world: World) -> None:
    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    key_id = hashlib.sha256(b"witness.example\n\x04" + public).digest()[:4]
    key = world.folder / "witness"
    key.write_text(
        f"witness.example+{key_id.hex()}+{base64.b64encode(b'%c' % 4 + public).decode()}"
    )
    kept = ("--checkpoint", str(world.kept))
    assert world.verify(*kept, "--witness", str(key)) == (1, ["not_witnessed"])
    world.prove(0, *kept)  # entry 0 of the head that was kept
    assert world.verify() == (0, [])
    assert world.verify("--witness", str(key)) == (1, ["not_witnessed"])
