"""Finds what a disk has done to a ledger's file, before anybody is served on it.

SQLite reads a damaged page when it comes to it, not when it opens the file; a number that has
another bit in it is a number all the same; and of a log it takes what comes before the damage, in
silence. So the file is looked through (``PRAGMA quick_check``), the sums are held against their
holds, and the log against what SQLite takes of it; for ``CHECK_S`` at most.

Source: SQLite documentation, "Database File Format", 4.1 to 4.3 (the write-ahead log).
"""

import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn, get_args

import msgspec
from msgspec import Struct

from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import HoldState
from waypost.validator.ledger.calendar import CALENDAR, Calendar

__all__ = ["CHECK_S", "check_file", "damaged", "is_damage", "log_claims", "note_of"]

logger = logging.getLogger(__name__)

CHECK_S = 5.0  # at 0.3 GB and 300,000 holds a second; what is larger is checked in part
STEPS = 10_000  # of SQLite's machine, between two looks at the clock
PAGE = 1_000
WEEK_S = 7 * 86_400
EMPTY_S = 2.0  # another process makes the file within milliseconds
RETRY_S = 0.01
OPEN_S = 2.0
LEAST_BYTES = 512  # SQLite takes what is shorter for a new file
MASK = 2**32 - 1

WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
WAL_MAGICS = (0x377F0682, 0x377F0683)

_HOLDS = "SELECT id, scopes, at, amount_nusd, cost_nusd, state, backlogs FROM holds"
_GRANTS = "SELECT scope, window, at, amount_nusd FROM grants"
_SUMS = (
    "SELECT scope, window, start, spent_nusd + debt_nusd - archived_nusd, reserved_nusd,"
    " granted_nusd FROM windows"
)
STATES = frozenset(get_args(HoldState))
_Window = tuple[str, str, int]
_decode_scopes = msgspec.json.Decoder(list[tuple[str, int]]).decode


class LogClaims(Struct, frozen=True):
    """What a write-ahead log says of itself, checksums aside.

    Attributes:
        salts: of this run of the log; older frames, which are to be written over, have others.
        commits: which frames end a transaction, counted from 1.
        last: the last frame of this run.
        is_readable: whether the log's own header is whole.
    """

    salts: bytes
    commits: tuple[int, ...]
    last: int
    is_readable: bool = True


def damaged(path: Path, what: str) -> StoreError:
    """Return the refusal of a damaged file, with the mend."""
    return StoreError(
        f"the ledger at {path} is damaged ({what}), so what was spent is not certain, and nothing"
        " is served on it. `waypost budget rebuild` shows what the decision records know of it;"
        " with --apply it puts a new ledger in its place",
        code="ledger_damaged",
    )


def log_claims(path: Path) -> LogClaims | None:
    """Return what the log of the ledger at ``path`` claims; ``None`` if there is none."""
    try:
        with _log_of(path).open("rb") as log:
            return _claims(log)
    except FileNotFoundError:
        return None


def check_file(
    path: Path,
    calendar: Calendar,
    *,
    version: int,
    check_s: float = CHECK_S,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Raise StoreError (``ledger_damaged``) if there is a file and it, or its log, is not whole.

    To be called before SQLite opens the file: whoever closes it last deletes the log. So that a
    log was damaged is noted beside the file.

    Args:
        version: of the layout; what has another one is not looked into.
        check_s: give up looking after so long.
    """
    until = monotonic() + check_s
    if note_of(path).exists():
        raise damaged(path, note_of(path).read_text())
    _check_length(path)
    if not path.exists():
        return
    claims = log_claims(path)
    try:
        with closing(sqlite3.connect(path, timeout=OPEN_S, isolation_level=None)) as db:
            _check_log(path, db, claims)
            db.set_progress_handler(lambda: monotonic() > until, STEPS)
            _check_pages(path, db)
            if db.execute("PRAGMA user_version").fetchone() == (version,):
                _check_sums(path, db, calendar, lambda: monotonic() > until)
    except (ValueError, TypeError, ArithmeticError) as exc:  # text that is none, years beyond all
        raise damaged(path, type(exc).__name__) from exc
    except _OutOfTimeError:
        logger.info("the ledger at %s is large: checked in part, for %g s", path, check_s)
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_INTERRUPT:
            logger.info("the ledger at %s is large: checked in part, for %g s", path, check_s)
        elif is_damage(exc):
            raise damaged(path, str(exc)) from exc
        else:
            raise


def is_damage(error: sqlite3.Error) -> bool:
    """Whether ``error`` says that the file is not whole."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:  # what Python's own driver says of text that is none
        return "Could not decode" in str(error)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def note_of(path: Path) -> Path:
    """Return where it is written that the log of this ledger was damaged."""
    return path.with_name(f"{path.name}.damaged")


class _OutOfTimeError(Exception):
    """There is more to look at than there is time for."""


def _check_length(path: Path) -> None:
    until = time.monotonic() + EMPTY_S
    while path.exists() and path.stat().st_size < LEAST_BYTES:
        if time.monotonic() > until:
            raise damaged(path, "it is empty")
        time.sleep(RETRY_S)  # another process is about to make it


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _claims(log: BinaryIO) -> LogClaims | None:
    header = log.read(WAL_HEADER_BYTES)
    if len(header) < WAL_HEADER_BYTES:
        return None
    salts, page_bytes = header[16:24], int.from_bytes(header[8:12])
    if not _is_whole(header):
        has_frames = bool(log.read(1))
        return LogClaims(salts, (), 0, is_readable=not has_frames)
    commits: list[int] = []
    place = last = 0
    while len(frame := log.read(FRAME_HEADER_BYTES)) == FRAME_HEADER_BYTES:
        place += 1
        if frame[8:16] == salts:
            last = place
            if any(frame[4:8]):  # the size after a commit; 0 within a transaction
                commits.append(place)
        log.seek(page_bytes, os.SEEK_CUR)
    return LogClaims(salts, tuple(commits), last)


def _is_whole(header: bytes) -> bool:
    magic = int.from_bytes(header[:4])
    if magic not in WAL_MAGICS:
        return False
    order: Literal["big", "little"] = "big" if magic & 1 else "little"
    first = second = 0
    for place in range(0, 24, 8):
        first = (first + int.from_bytes(header[place : place + 4], order) + second) & MASK
        second = (second + int.from_bytes(header[place + 4 : place + 8], order) + first) & MASK
    return header[24:32] == first.to_bytes(4) + second.to_bytes(4)


def _check_log(path: Path, db: sqlite3.Connection, claims: LogClaims | None) -> None:
    """Raise if SQLite takes less of the log than was committed to it.

    The last commit may be torn: a process was killed in it, and nobody was told of it.
    """
    if claims is None:
        return
    if not claims.is_readable:
        _note(path, "its log cannot be read")
    busy, taken, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    now = log_claims(path)
    if busy or now is None or now.salts != claims.salts:
        return  # another process is at work, and has read the log before
    lost = [place for place in claims.commits if place > taken and place != claims.last]
    if lost:
        _note(path, f"its log is whole up to frame {taken} of {claims.last}")


def _note(path: Path, what: str) -> NoReturn:
    note_of(path).write_text(what)
    raise damaged(path, what)


def _check_pages(path: Path, db: sqlite3.Connection) -> None:
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise damaged(path, " ".join(str(found).split()))


def _check_sums(
    path: Path, db: sqlite3.Connection, calendar: Calendar, is_late: Callable[[], bool]
) -> None:
    """Raise if what a window says is not the sum of its holds and grants."""
    charged: Counter[_Window] = Counter()
    reserved: Counter[_Window] = Counter()
    granted: Counter[_Window] = Counter()
    db.execute("BEGIN")  # one moment of a file that others write to
    last = ""
    for row, (hold_id, scopes, at, amount_nusd, cost_nusd, state, _) in enumerate(
        db.execute(_HOLDS)
    ):
        if row % PAGE == 0 and is_late():
            raise _OutOfTimeError
        if state not in STATES or hold_id <= last:  # of a table by id
            raise damaged(path, "a hold is in no state, or out of order")
        last = hold_id
        starts = calendar.starts(at)
        for scope, mask in _scopes(path, scopes):
            for place, window in enumerate(CALENDAR):
                if mask >> place & 1:
                    charged[scope, window, starts[place]] += cost_nusd
                    if state == "held":
                        reserved[scope, window, starts[place]] += amount_nusd
    for scope, name, at, amount_nusd in db.execute(_GRANTS):
        granted[scope, name, calendar.starts(at)[CALENDAR.index(name)]] += amount_nusd
    sums = {(scope, name, start): found for scope, name, start, *found in db.execute(_SUMS)}
    for key in charged.keys() | sums.keys():
        if _is_of_two_months(key, calendar):
            continue
        if sums.get(key) != [charged[key], reserved[key], granted[key]]:
            raise damaged(path, f"a {key[1]} of {key[0]!r} is not the sum of its holds")


def _is_of_two_months(key: _Window, calendar: Calendar) -> bool:
    """Whether it is a week that was dropped, perhaps, with its first month, and begun again."""
    _, window, start = key
    return window == "week" and calendar.month_start(start, months_back=0) != (
        calendar.month_start(start + WEEK_S - 1, months_back=0)
    )


def _scopes(path: Path, text: str) -> list[tuple[str, int]]:
    try:
        return _decode_scopes(text)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        raise damaged(path, "a hold names no scopes") from None
