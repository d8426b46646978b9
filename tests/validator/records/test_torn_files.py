"""JSON lines, the log of decisions and small files: cut off, on full disks, killed while written."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.disks import Disk, a_small_disk
from support.recorded import a_record, fill
from support.worlds import NOW
from waypost.shared.errors import StoreError
from waypost.shared.records import Feedback, encode_record
from waypost.validator.receipts.keys import ReceiptKeys, load_keys
from waypost.validator.receipts.log import ReceiptLog, read_entries
from waypost.validator.receipts.tlog import leaf_hash, open_checkpoint, root_of
from waypost.validator.records import RecordFilter
from waypost.validator.records.jsonl import JsonlRecordStore
from waypost.validator.telemetry.workers import Workers
from waypost.validator.whole_files import make_once, replace_file

pytestmark = pytest.mark.anyio

ALL = RecordFilter()
KEYS = ReceiptKeys(b"s" * 32, origin="log.example")


async def _numbers(store: JsonlRecordStore) -> list[int]:
    return sorted(int(one.id[-12:]) for one in await store.list(ALL, limit=10_000))


# ── JSON lines ─────────────────────────────────────────────────────────────────────────────────


@given(st.data())
@settings(max_examples=30)
def test_a_file_that_a_dead_process_cut_off_takes_the_next_records_whole(
    data: st.DataObject,
) -> None:
    async def run(folder: Path) -> None:
        store = JsonlRecordStore(folder, clock=lambda: NOW)
        await fill(store, a_record(1))
        await store.put_feedback(a_record(1), Feedback(at_ms=NOW * 1_000, rating="bad"))
        await fill(store, dropped=3)
        await store.put_feedback(a_record(1), Feedback(at_ms=NOW * 1_000, rating="good"))
        path = _only(folder)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])  # in a container the next process has the same id
        await fill(store, a_record(2))
        assert _complete(whole[:cut]) <= set(path.read_bytes().split(b"\n"))
        assert await store.get(a_record(2).id) == a_record(2)
        first = await store.get(a_record(1).id)
        assert (first is not None) == (cut >= whole.index(b"\n"))
        assert (await store.stats(ALL)).dropped in (0, 3)

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(run(Path(name)))


def _only(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    return path


def _complete(data: bytes) -> set[bytes]:
    return set(data.split(b"\n")[:-1])


async def test_json_lines_on_a_full_disk_are_there_once_when_it_has_room_again(
    tmp_path: Path,
) -> None:
    store, disk = JsonlRecordStore(tmp_path, clock=lambda: NOW), Disk()
    records = [a_record(number) for number in range(20)]
    with patch("waypost.validator.records.spill.os.write", disk.write):
        for room in (5_000, 0, 3_000, 1, 10**9):
            disk.room = room
            with suppress(StoreError):
                await fill(store, *records, dropped=2)
                assert room == 10**9
    path = _only(tmp_path)
    assert all(path.read_bytes().count(encode_record(one) + b"\n") == 1 for one in records)
    assert await _numbers(store) == list(range(20))
    assert (await store.stats(ALL)).dropped == 2


async def test_json_lines_on_a_real_full_disk(tmp_path: Path) -> None:
    with a_small_disk(tmp_path / "disk", kib=128) as disk:
        store = JsonlRecordStore(disk, clock=lambda: NOW)
        (disk / "other").write_bytes(b"x" * 105_000)
        with pytest.raises(StoreError, match="No space left"):
            await fill(store, *(a_record(number) for number in range(40)))
        with pytest.raises(StoreError, match="No space left"):
            await store.put_policy("digest", b"x" * 30_000)
        assert await store.get_policy("digest") is None
        (disk / "other").unlink()
        await fill(store, *(a_record(number) for number in range(40)))
        await store.put_policy("digest", b"x" * 10_000)
        assert await _numbers(store) == list(range(40))
        assert await store.get_policy("digest") == b"x" * 10_000


# ── the log of decisions ───────────────────────────────────────────────────────────────────────


def _sealed(folder: Path) -> list[str]:
    """Return the ids in the log, once it is whole: entries, chain and root."""
    head = open_checkpoint((folder / "checkpoint").read_bytes(), KEYS.public.log)
    entries = list(read_entries(lambda path: (folder / path).read_bytes(), head.size))
    assert head.root == root_of([leaf_hash(entry) for entry in entries])
    return [msgspec.json.decode(entry)["id"] for entry in entries]


@pytest.mark.parametrize("fails_at", range(8))
def test_a_write_that_fails_seals_nothing_and_the_next_try_seals_each_once(
    tmp_path: Path, fails_at: int
) -> None:
    log = ReceiptLog(tmp_path, KEYS)
    first = [a_record(number) for number in range(250)]
    log.append([(record, encode_record(record)) for record in first])
    more = [a_record(number) for number in range(250, 270)]  # a tile becomes full
    writes, whole = [0], Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        writes[0] += 1
        if writes[0] == fails_at:
            whole(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return whole(path, data)

    with patch.object(Path, "write_bytes", write_bytes):
        if fails_at:
            with pytest.raises(StoreError, match="No space left"):
                log.append([(record, encode_record(record)) for record in more])
            assert _sealed(tmp_path) == [record.id for record in first]
        log.append([(record, encode_record(record)) for record in more])
    assert writes[0] > fails_at
    assert _sealed(tmp_path) == [record.id for record in first + more]
    assert not list(tmp_path.rglob("*.new"))


_SEALER = """
import sys
from pathlib import Path
from support.recorded import a_record
from waypost.shared.records import encode_record
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.receipts.log import ReceiptLog
log = ReceiptLog(Path(sys.argv[1]), ReceiptKeys(b"s" * 32, origin="log.example"))
number = int(sys.argv[2])
while True:
    records = [a_record(number + n) for n in range(40)]
    log.append([(record, encode_record(record)) for record in records])
    number += 40
    print(number, flush=True)
"""


def test_a_log_whose_process_is_killed_goes_on_whole(tmp_path: Path) -> None:
    draw, promised = random.Random(9), 0
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for start in (0, 10**6):
        command = [sys.executable, "-c", _SEALER, str(tmp_path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            for _ in range(draw.randrange(2, 20)):
                process.stdout.readline()
                promised += 40
            os.kill(process.pid, signal.SIGKILL)
    log = ReceiptLog(tmp_path, KEYS)
    log.append([(a_record(5 * 10**6), encode_record(a_record(5 * 10**6)))])
    ids = _sealed(tmp_path)
    assert len(ids) == len(set(ids)) > promised


# ── files that are there whole or not at all ───────────────────────────────────────────────────


async def test_small_files_on_a_full_disk_stay_what_they_were_and_leave_no_drafts(
    tmp_path: Path,
) -> None:
    with a_small_disk(tmp_path / "disk", kib=64) as disk:
        replace_file(disk / "kept", b"before")
        siblings = Workers(disk)
        (disk / "other").write_bytes(b"x" * 48_000)
        before = sorted(disk.iterdir())
        tries: list[Any] = [
            lambda: replace_file(disk / "kept", b"y" * 30_000),
            lambda: make_once(disk / "made", b"y" * 30_000),
            lambda: siblings.publish(b"y" * 30_000),
        ]
        for attempt in tries:
            with pytest.raises(OSError, match="No space left"):
                attempt()
        assert sorted(disk.iterdir()) == before
        assert (disk / "kept").read_bytes() == b"before"


def test_a_key_file_is_made_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "receipts.key"
    full = OSError(28, "No space left on device")
    with patch("os.link", side_effect=full), pytest.raises(StoreError, match="No space left"):
        load_keys(path, origin="log.example")
    assert list(tmp_path.iterdir()) == []
    made = load_keys(path, origin="log.example")
    assert load_keys(path, origin="log.example").kid == made.kid
    assert path.stat().st_mode & 0o777 == 0o600
