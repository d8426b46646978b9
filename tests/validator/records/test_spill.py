"""The spill on a disk that becomes full, with lines cut off, and in processes that are killed."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.disks import Disk, a_small_disk
from support.ledgers import until
from support.recorded import Fickle, a_record
from waypost.shared.records import encode_record
from waypost.validator.records import RecordFilter, RecordSink
from waypost.validator.records.spill import Spill

pytestmark = pytest.mark.anyio

ALL = RecordFilter()
MIB = 2**20


@pytest.fixture
async def fickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fickle]:
    monkeypatch.setattr("waypost.validator.records.sink.LAST_RETRY_S", 0.01)
    made = Fickle.open(tmp_path / "records.sqlite")
    yield made
    await made.close()


async def _numbers(store: Fickle) -> list[int]:
    return sorted(int(one.id[-12:]) for one in await store.list(ALL, limit=10_000))


def _drain(spill: Spill) -> list[bytes]:
    found: list[bytes] = []
    while lines := spill.read(4_096):
        found += lines
        spill.done()
    return found


# ── half a line ────────────────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.tuples(st.lists(st.binary(min_size=1, max_size=40)), st.integers(0, 99))),
    st.integers(1, 60),
)
def test_files_cut_off_anywhere_never_keep_others_waiting(
    files: list[tuple[list[bytes], int]], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, whole = Path(name), list[bytes]()
        for number, (bodies, cut) in enumerate(files):
            lines = [body.replace(b"\n", b"") + b"\n" for body in bodies]
            data = b"".join(lines)
            data = data[: max(0, len(data) - cut)]
            (folder / f"{number:03d}.jsonl").write_bytes(data)
            whole += data.split(b"\n")[:-1]
        spill = Spill(folder, max_bytes=MIB)
        assert spill.waiting_bytes == sum(len(line) + 1 for line in whole)
        assert spill.add([b"the newest"])
        found = list[bytes]()
        while lines := spill.read(limit):
            assert lines == spill.read(limit)  # until it is done
            found += lines
            spill.done()
        assert found == [*whole, b"the newest"]
        assert spill.waiting_bytes == 0
        assert list(folder.iterdir()) == []
        spill.close()


async def test_half_a_record_in_the_oldest_file_lets_the_others_into_the_store(
    fickle: Fickle, tmp_path: Path
) -> None:
    folder = tmp_path / "spill"
    folder.mkdir()
    (folder / "0.jsonl").write_bytes(encode_record(a_record(99))[:77])
    (folder / "1.jsonl").write_bytes(encode_record(a_record(1)) + b"\n" + b"{damaged\n")
    (folder / "2.jsonl").write_bytes(encode_record(a_record(2)) + b"\n")
    sink = RecordSink(fickle, spill=Spill(folder, max_bytes=MIB))
    sink.resume()
    await until(lambda: not sink.spilled_bytes, pause_s=0.01)
    await sink.close()
    assert await _numbers(fickle) == [1, 2]
    assert dict(sink.lost) == {"damaged": 1}


async def test_a_file_that_cannot_be_read_is_left_and_the_others_are_not(
    fickle: Fickle, tmp_path: Path
) -> None:
    folder = tmp_path / "spill"
    (folder / "0.jsonl").mkdir(parents=True)  # a folder cannot be opened to be written
    (folder / "1.jsonl").write_bytes(encode_record(a_record(1)) + b"\n")
    (folder / "2.jsonl").symlink_to(folder / "gone")
    spill = Spill(folder, max_bytes=MIB)
    assert _drain(spill) == [encode_record(a_record(1))]
    spill.close()


# ── full disks ─────────────────────────────────────────────────────────────────────────────────


class _Ops:
    """What may happen to a spill, in any order; what was said to be kept must come back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, Disk()
        self.spill = Spill(folder, max_bytes=3_000)
        self.kept: set[bytes] = set()
        self.count = 0

    def add(self, size: int) -> None:
        bodies = [b"%06d" % (self.count + n) + b"x" * (size % 50) for n in range(1 + size % 7)]
        self.count += len(bodies)
        try:
            if self.spill.add(bodies):
                self.kept.update(bodies)
        except OSError:
            pass

    def take(self, limit: int) -> None:
        if lines := self.spill.read(limit):
            self.spill.done()
            self.kept.difference_update(lines)

    def restart(self, size: int) -> None:
        self.spill.close()
        self.spill = Spill(self.folder, max_bytes=3_000 + size)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("add", "add", "take", "restart", "room", "break")),
            st.integers(1, 400),
        ),
        max_size=40,
    )
)
def test_what_was_said_to_be_kept_comes_back_whatever_the_disk_does(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        ops = _Ops(Path(name))
        with (
            patch("waypost.validator.records.spill.os.write", ops.disk.write),
            patch("waypost.validator.records.spill.os.ftruncate", ops.disk.ftruncate),
        ):
            for step, size in steps:
                if step == "room":
                    ops.disk.room = size
                elif step == "break":
                    ops.disk.is_broken = size % 2 == 0
                else:
                    getattr(ops, step)(size)
                assert 0 <= ops.spill.waiting_bytes <= 3_400 * 3
            while lines := ops.spill.read(200):
                ops.kept.difference_update(lines)
                ops.spill.done()
        assert not ops.kept
        assert ops.spill.waiting_bytes == 0
        ops.spill.close()


async def test_a_full_disk_loses_nothing_that_memory_holds_and_is_counted_rightly(
    fickle: Fickle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with a_small_disk(tmp_path / "disk", kib=128) as disk:
        folder = disk / "spill"
        sink = RecordSink(fickle, spill=Spill(folder, max_bytes=10 * MIB))
        fickle.is_down = True
        for start in range(0, 300, 20):  # 300 kB
            for number in range(start, start + 20):
                sink.put(a_record(number))
            await until(lambda: not sink.waiting or bool(sink.spill_fault), pause_s=0.005)
        assert sink.spill_fault == "the disk does not take them: No space left on device"
        assert 0 < sink.spilled_bytes == sum(one.stat().st_size for one in folder.iterdir())
        assert sink.waiting
        fickle.is_down = False
        await until(lambda: not sink.spilled_bytes and not sink.waiting, pause_s=0.01)
        await sink.close()
        assert await _numbers(fickle) == list(range(300))
        assert (sink.dropped, sink.spilled_bytes, sink.spill_fault) == (0, 0, "")
        assert list(folder.iterdir()) == []
    assert caplog.text.count("cannot be spilled") == 1


async def test_a_full_spill_says_so_once_and_until_it_takes_records_again(
    fickle: Fickle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = RecordSink(fickle, spill=Spill(tmp_path / "spill", max_bytes=20_000))
    fickle.is_down = True
    for number in range(100):
        sink.put(a_record(number))
        await until(lambda: not sink.waiting or bool(sink.spill_fault), pause_s=0.001)
    assert sink.spill_fault == "records.spill_mib is reached"
    fickle.is_down = False
    await until(lambda: not sink.spilled_bytes and not sink.waiting, pause_s=0.01)
    assert sink.spill_fault == ""
    await sink.close()
    assert [one.levelname for one in caplog.records if "cannot be spilled" in one.message] == [
        "ERROR"
    ]
    assert await _numbers(fickle) == list(range(100))


# ── processes that are killed ──────────────────────────────────────────────────────────────────

_WRITER = """
import sys
from pathlib import Path
from waypost.validator.records.spill import Spill
spill = Spill(Path(sys.argv[1]), max_bytes=2**30)
number = int(sys.argv[2])
while True:
    spill.add([b"%d %s" % (n, b"x" * 900) for n in range(number, number + 7)])
    number += 7
    print(number, flush=True)
"""


def test_whatever_a_killed_process_was_told_is_kept_comes_back(tmp_path: Path) -> None:
    draw, told = random.Random(12), list[range]()
    for start in (0, 10**6, 2 * 10**6):
        command = [sys.executable, "-c", _WRITER, str(tmp_path), str(start)]
        told_last = start
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(draw.randrange(1, 30)):
                told_last = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().split()
        told.append(range(start, int(rest[-1]) if rest else told_last))
    spill = Spill(tmp_path, max_bytes=2**30)
    found = {int(line.split()[0]) for line in _drain(spill)}
    spill.close()
    assert found.issuperset(number for one in told for number in one)
