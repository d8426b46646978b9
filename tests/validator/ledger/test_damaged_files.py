"""A ledger's file that a disk has changed is refused, or says what it said before."""

import asyncio
import logging
import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from support.ledgers import NOON, USD, a_hold, holds, journal, limit
from waypost.shared.contracts import SpendLimit
from waypost.shared.errors import StoreError
from waypost.validator.ledger import Calendar, Grant, Ledger, open_sqlite, scope_of
from waypost.validator.ledger.calendar import CALENDAR
from waypost.validator.ledger.sqlite import SCHEMA_VERSION
from waypost.validator.ledger.sqlite_damage import check_file

pytestmark = pytest.mark.anyio

FLIPS = 60
ACCOUNTS = ("acme", "bee", "cee")
LIMITS = tuple(limit(window, USD) for window in CALENDAR)


async def fill(path: Path, *, closes: bool = True) -> Ledger:
    """Return a ledger with some of everything; not closed, its holds are in the log alone."""
    ledger = open_sqlite(path)
    for n in range(60):
        tier = scope_of("tier:pro", (limit("day", USD),))
        await ledger.reserve(
            a_hold(f"h{n}", 1_000 + n, *LIMITS, account=ACCOUNTS[n % 3], also=(tier,))
        )
        if n % 4:
            await ledger.settle(f"h{n}", 900 + n * 3)
    await ledger.grant(
        Grant(id="g", scope="account:acme", window="day", at=NOON, amount_nusd=7, by="me")
    )
    if closes:
        await ledger.close()
    return ledger


async def told(ledger: Ledger) -> tuple[Any, ...]:
    """Return all that decides who may spend how much."""
    scopes = [scope_of(f"account:{name}", LIMITS) for name in ACCOUNTS]
    scopes.append(scope_of("tier:pro", (SpendLimit(window="day", limit_nusd=USD),)))
    # A hold's id is a name like any other: nobody can tell that it was another one.
    charges = sorted((await journal(ledger)).values())
    return await ledger.balances(scopes, now=NOON), charges


def copied(path: Path, folder: Path) -> Path:
    """Return a copy as a crash leaves it: the file and its log."""
    folder.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        if (path.parent / name).exists():
            shutil.copy(path.parent / name, folder / name)
    return folder / path.name


async def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    sound = path.read_bytes()
    untouched = open_sqlite(path)
    expected = await told(untouched)
    await untouched.close()
    rng = random.Random(7)
    refused = 0
    # Half of them where numbers and names are, which no page's structure betrays.
    used = [n for n, byte in enumerate(sound) if byte]
    for place in [*rng.sample(range(len(sound)), FLIPS // 2), *rng.sample(used, FLIPS // 2)]:
        bent = bytearray(sound)
        bent[place] ^= 1 << rng.randrange(8)
        copy = tmp_path / "bent.sqlite"
        for end in ("", "-wal", "-shm", ".damaged"):
            copy.with_name(f"bent.sqlite{end}").unlink(missing_ok=True)
        copy.write_bytes(bent)
        try:
            ledger = open_sqlite(copy)
        except StoreError:
            refused += 1
            continue
        assert await told(ledger) == expected, place
        await ledger.close()
    assert refused > FLIPS // 4


@pytest.mark.parametrize("keeps", [0, 1, 100, 4_096, 5_000, -4_096, -1])
async def test_a_file_cut_short_is_refused(
    tmp_path: Path, keeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waypost.validator.ledger.sqlite_damage.EMPTY_S", 0.0)
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    os.truncate(path, keeps if keeps >= 0 else path.stat().st_size + keeps)

    with pytest.raises(StoreError, match="waypost budget rebuild") as caught:
        open_sqlite(path)

    assert caught.value.code == "ledger_damaged"


async def test_a_crash_leaves_nothing_that_looks_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await fill(path, closes=False)
    crashed = copied(path, tmp_path / "crash")
    await ledger.close()

    again = open_sqlite(crashed)
    assert len(holds(crashed)) == 60
    await again.close()


@pytest.mark.parametrize("cut", [1, 30, 2_000, 4_000])
async def test_a_commit_torn_by_a_crash_is_no_damage(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await fill(path, closes=False)
    crashed = copied(path, tmp_path / "crash")
    await ledger.close()
    log = crashed.with_name(f"{crashed.name}-wal")
    os.truncate(log, log.stat().st_size - cut)

    await open_sqlite(crashed).close()

    assert len(holds(crashed)) >= 59


@pytest.mark.parametrize("place", [5, 20, 29, 40, 60, 5_000])
async def test_a_damaged_log_is_refused_until_it_is_mended(tmp_path: Path, place: int) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await fill(path, closes=False)
    crashed = copied(path, tmp_path / "crash")
    await ledger.close()
    log = crashed.with_name(f"{crashed.name}-wal")
    bent = bytearray(log.read_bytes())
    bent[place] ^= 4
    log.write_bytes(bent)

    for _ in range(2):  # SQLite drops the log when it is closed, and the evidence with it
        with pytest.raises(StoreError, match="its log") as caught:
            open_sqlite(crashed)
        assert caught.value.code == "ledger_damaged"


async def test_another_process_at_work_looks_like_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await fill(path, closes=False)

    async def work() -> None:
        for n in range(150):
            await ledger.reserve(a_hold(f"w{n}", 1))
            if n % 20 == 0:
                with closing(sqlite3.connect(path)) as db:
                    db.execute("PRAGMA wal_checkpoint(RESTART)")

    working = asyncio.create_task(work())
    while not working.done():
        await asyncio.to_thread(check_file, path, Calendar(), version=SCHEMA_VERSION)
    await working
    await ledger.close()


async def test_a_large_file_is_checked_for_a_while_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.sqlite"
    await fill(path)
    now = iter(range(1_000_000))

    with caplog.at_level(logging.INFO):
        check_file(
            path,
            Calendar(),
            version=SCHEMA_VERSION,
            check_s=0.5,
            monotonic=lambda: float(next(now)),
        )

    assert "checked in part" in caplog.text


async def test_a_week_of_two_months_may_have_been_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = open_sqlite(path, keep_months=0)
    december = NOON + 10 * 86_400  # Fri 5 Dec 2025; its week began on the 1st
    for hold_id, at in (("old", NOON + 5 * 86_400), ("new", december)):  # Sun 30 Nov, Fri 5 Dec
        hold = structs.replace(a_hold(hold_id, 9, *LIMITS, now=at), expires_at=at + 60)
        await ledger.reserve(hold)
        await ledger.settle(hold_id, 5)
    await ledger.sweep(now=december)
    await ledger.close()

    await open_sqlite(path).close()
