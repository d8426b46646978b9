"""The ledger's rows in PostgreSQL, for validators on several machines.

A batch is one transaction. It locks the rows that its operations change, always in the same
order so that no two batches can wait for each other, lends them to the same ``Accounting`` that
SQLite uses, and writes back what changed. Rows that do not exist yet are made before they are
locked: of two first uses, one waits for the other.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from socket import SHUT_RDWR, socket
from typing import Any, cast

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from waypost.shared.contracts import Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.accounting import Accounting
from waypost.validator.ledger.base import Entry, WindowSum
from waypost.validator.ledger.calendar import CALENDAR, Calendar
from waypost.validator.ledger.columns import (
    check_zone,
    closing_values,
    grant_values,
    hold_values,
    key_values,
    rate_values,
    renewing_values,
    window_sum,
    window_values,
)
from waypost.validator.ledger.group_commit import GroupedLedger, UnavailableError, unavailable
from waypost.validator.ledger.limits import KEEP_KEYS_S, rate_name
from waypost.validator.ledger.operations import (
    FreeKey,
    GrantOp,
    Operation,
    Release,
    Renew,
    Reserve,
    Settle,
    Sweep,
)
from waypost.validator.ledger.rows import HoldRow, KeyRow, RateRow, WindowRow

__all__ = ["PostgresStore", "open_postgres"]

Connection = AsyncConnection[TupleRow]

SCHEMA_LOCK = 0x57617903  # a number of our own among the database's advisory locks
KEEP_MONTHS = 1
PAGE = 500

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS holds (id text PRIMARY KEY, scopes text NOT NULL,"
    " amount_nusd bigint NOT NULL, tokens bigint NOT NULL, backlogs text NOT NULL,"
    " at bigint NOT NULL, expires_at bigint NOT NULL, state text NOT NULL,"
    " cost_nusd bigint NOT NULL)",
    "CREATE INDEX IF NOT EXISTS open_holds ON holds (expires_at) WHERE state = 'held'",
    "CREATE INDEX IF NOT EXISTS holds_by_time ON holds (at, id)",
    'CREATE TABLE IF NOT EXISTS windows (scope text, "window" text, start bigint,'
    " spent_nusd bigint NOT NULL DEFAULT 0 CHECK (spent_nusd >= 0),"
    " debt_nusd bigint NOT NULL DEFAULT 0 CHECK (debt_nusd >= 0),"
    " reserved_nusd bigint NOT NULL DEFAULT 0 CHECK (reserved_nusd >= 0),"
    " granted_nusd bigint NOT NULL DEFAULT 0,"
    ' PRIMARY KEY (scope, start, "window")) WITH (fillfactor = 70)',
    "CREATE TABLE IF NOT EXISTS rates (scope text, rate text, free_at_us bigint NOT NULL,"
    " PRIMARY KEY (scope, rate))",
    "CREATE TABLE IF NOT EXISTS keys (digest text PRIMARY KEY, body text NOT NULL,"
    " hold_id text NOT NULL, at bigint NOT NULL)",
    "CREATE TABLE IF NOT EXISTS grants (id text PRIMARY KEY, scope text NOT NULL,"
    ' "window" text NOT NULL, at bigint NOT NULL, amount_nusd bigint NOT NULL,'
    ' "by" text NOT NULL, why text NOT NULL)',
    "CREATE TABLE IF NOT EXISTS ledger (one boolean PRIMARY KEY CHECK (one), zone text NOT NULL)",
)
_LOCK_HOLDS = "SELECT * FROM holds WHERE id = ANY(%s) ORDER BY id FOR UPDATE"
_EXPIRED = (
    "SELECT * FROM holds WHERE state = 'held' AND expires_at <= %s ORDER BY id LIMIT %s FOR UPDATE"
)
_MAKE_WINDOWS = (
    'INSERT INTO windows (scope, "window", start)'
    " SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS n(s, w, t)"
    " ORDER BY s, w, t ON CONFLICT DO NOTHING"
)
_LOCK_WINDOWS = (
    "SELECT windows.* FROM windows JOIN unnest(%s::text[], %s::text[], %s::bigint[]) AS n(s, w, t)"
    ' ON scope = s AND "window" = w AND start = t ORDER BY s, w, t FOR UPDATE OF windows'
)
_MAKE_RATES = (
    "INSERT INTO rates SELECT *, 0 FROM unnest(%s::text[], %s::text[]) AS n(s, r)"
    " ORDER BY s, r ON CONFLICT DO NOTHING"
)
_LOCK_RATES = (
    "SELECT rates.* FROM rates JOIN unnest(%s::text[], %s::text[]) AS n(s, r)"
    " ON scope = s AND rate = r ORDER BY s, r FOR UPDATE OF rates"
)
# An idempotency key has no row to lock before its first use.
_LOCK_KEY = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
_KEYS = "SELECT digest, body, hold_id, at FROM keys WHERE digest = ANY(%s)"
_GRANTS = "SELECT id, amount_nusd FROM grants WHERE id = ANY(%s)"
_OPEN = "INSERT INTO holds VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
_RENEW = "UPDATE holds SET expires_at = %s WHERE id = %s"
_CLOSE = "UPDATE holds SET state = %s, cost_nusd = %s WHERE id = %s"
_PUT_WINDOW = (
    "UPDATE windows SET spent_nusd = %s, debt_nusd = %s, reserved_nusd = %s, granted_nusd = %s"
    ' WHERE scope = %s AND "window" = %s AND start = %s'
)
_PUT_RATE = "UPDATE rates SET free_at_us = %s WHERE scope = %s AND rate = %s"
_PUT_KEY = (
    "INSERT INTO keys VALUES (%s, %s, %s, %s) ON CONFLICT (digest) DO UPDATE"
    " SET body = excluded.body, hold_id = excluded.hold_id, at = excluded.at"
)
_FREE_KEY = "DELETE FROM keys WHERE digest = %s"
_PUT_GRANT = "INSERT INTO grants VALUES (%s, %s, %s, %s, %s, %s, %s)"
_READ = (
    "SELECT n.o, windows.* FROM windows"
    " JOIN unnest(%s::int[], %s::text[], %s::text[], %s::bigint[]) AS n(o, s, w, t)"
    ' ON scope = s AND "window" = w AND start = t'
)
_SUMS = 'SELECT * FROM windows WHERE "window" = %s AND start = %s'
_JOURNAL = "SELECT * FROM holds WHERE at >= %s AND at < %s AND id > %s ORDER BY id LIMIT %s"
_PRUNE_HOLDS = "DELETE FROM holds WHERE at < %s AND state != 'held'"
_PRUNE_KEYS = "DELETE FROM keys WHERE at < %s"


def open_postgres(
    dsn: str,
    *,
    schema: str = "waypost_ledger",
    patience_s: float = 2.0,
    calendar: Calendar | None = None,
) -> GroupedLedger:
    """Return the ledger in the database's ``schema``; it connects when it is first asked."""
    store = PostgresStore(dsn, schema, patience_s, calendar or Calendar())
    return GroupedLedger(store, patience_s=patience_s)


class PostgresStore:
    """A ``Store`` in one schema of a database."""

    risks = frozenset[str]()
    lets_others_first = False

    def __init__(self, dsn: str, schema: str, patience_s: float, calendar: Calendar) -> None:
        self.calendar = calendar
        self._dsn = dsn
        self._schema = schema
        self._patience_s = patience_s
        self._writer: Connection | None = None
        self._connecting = asyncio.Lock()
        self._pruned_at = 0
        self._prune_now = 0

    def transact(self, batch: Sequence[Operation]) -> Awaitable[list[Any]]:
        """See ``Store.transact``."""
        return self._transact(batch)

    async def _transact(self, batch: Sequence[Operation]) -> list[Any]:
        db = await self._connected()
        is_committing = False
        try:
            async with _hanging_up_after(self._patience_s, db):
                async with db.transaction():
                    accounting = Accounting(await self._lend(db, batch), self.calendar)
                    outcomes = [accounting.apply(operation) for operation in batch]
                    await _write(db, accounting)
                    is_committing = True
                await self._prune(db)
        except (psycopg.Error, OSError) as exc:
            await self._hang_up()
            raise unavailable(exc, may_have_been_made=is_committing) from exc
        return outcomes

    async def _connected(self) -> Connection:
        async with self._connecting:  # whoever reads may be here as well
            if self._writer is None or self._writer.closed:
                self._writer = await self._begin()
            return self._writer

    async def _begin(self) -> Connection:
        try:
            db = await self._connect()
        except (psycopg.Error, OSError) as exc:
            raise unavailable(exc, may_have_been_made=False) from exc
        try:
            async with _hanging_up_after(self._patience_s, db):
                await self._make(db)
        except BaseException as exc:  # given up by a caller, too
            await db.close()
            if isinstance(exc, psycopg.Error | OSError):
                raise unavailable(exc, may_have_been_made=False) from exc
            if isinstance(exc, StoreError):
                raise UnavailableError(exc.message, may_have_been_made=False) from exc
            raise
        return db

    async def _reading(self) -> Connection:
        await self._connected()  # whoever reads first makes the tables
        return await self._connect()

    async def _connect(self) -> Connection:
        limit_ms = int(self._patience_s * 1_000)
        return await AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=max(2, int(self._patience_s)),
            options=f"-c search_path={self._schema} -c statement_timeout={limit_ms}"
            f" -c lock_timeout={limit_ms}",
        )

    async def _make(self, db: Connection) -> None:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
            name = sql.Identifier(self._schema)
            await db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
            for statement in _SCHEMA:
                await db.execute(statement)
            zone = str(self.calendar.zone)
            await db.execute("INSERT INTO ledger VALUES (true, %s) ON CONFLICT DO NOTHING", (zone,))
            found = await (await db.execute("SELECT zone FROM ledger")).fetchone()
        check_zone(found[0] if found else zone, zone)

    async def _hang_up(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.close()

    # ── one transaction ────────────────────────────────────────────────────────────────────

    async def _lend(self, db: Connection, batch: Sequence[Operation]) -> "_Rows":
        """Lock all that the batch may change: keys, holds, windows, rates, in this order."""
        digests = {op.digest for op in batch if isinstance(op, FreeKey)}
        digests |= {
            op.hold.key.digest
            for op in batch
            if isinstance(op, Reserve) and op.hold.key is not None
        }
        for digest in sorted(digests):
            await db.execute(_LOCK_KEY, (digest,))
        keys = await _all(db, _KEYS, [*digests]) if digests else []
        ids = {
            *(op.hold.id for op in batch if isinstance(op, Reserve)),
            *(op.hold_id for op in batch if isinstance(op, Settle | Release)),
            *(one for op in batch if isinstance(op, Renew) for one in op.hold_ids),
            *(row[2] for row in keys),
        }
        holds = await _all(db, _LOCK_HOLDS, sorted(ids)) if ids else []
        expired: list[Any] = []
        for op in batch:
            if isinstance(op, Sweep):
                expired += await _all(db, _EXPIRED, op.now, op.at_most)
        lent = _Rows([*holds, *expired], [row[0] for row in expired], keys)
        grants = [op.grant for op in batch if isinstance(op, GrantOp)]
        if grants:
            lent.grants = dict(await _all(db, _GRANTS, [grant.id for grant in grants]))
        await self._lend_windows(db, batch, lent)
        await self._lend_rates(db, batch, lent)
        return lent

    async def _lend_windows(
        self, db: Connection, batch: Sequence[Operation], lent: "_Rows"
    ) -> None:
        wanted: set[tuple[str, Window, int]] = set()
        for op in batch:
            if isinstance(op, Reserve):
                starts = dict(zip(CALENDAR, self.calendar.starts(op.hold.now), strict=True))
                for scope in op.hold.scopes:
                    wanted.update((scope.name, one, starts[one]) for one in scope.windows)
            elif isinstance(op, GrantOp):
                place = CALENDAR.index(op.grant.window)
                start = self.calendar.starts(op.grant.at)[place]
                wanted.add((op.grant.scope, op.grant.window, start))
        for hold in lent.holds.values():
            starts_at = self.calendar.starts(hold.at)
            for name, mask in hold.masks():
                for place, window in enumerate(CALENDAR):
                    if mask >> place & 1:
                        wanted.add((name, window, starts_at[place]))
        if wanted:
            columns = [list(column) for column in zip(*sorted(wanted), strict=True)]
            await db.execute(_MAKE_WINDOWS, columns)
            for row in await _all(db, _LOCK_WINDOWS, *columns):
                lent.by_scope.setdefault(row[0], []).append(WindowRow(*row))

    async def _lend_rates(self, db: Connection, batch: Sequence[Operation], lent: "_Rows") -> None:
        wanted = {
            (scope.name, rate_name(rate))
            for op in batch
            if isinstance(op, Reserve)
            for scope in op.hold.scopes
            for rate in scope.rates
        }
        for hold in lent.holds.values():
            wanted.update((scope, rate) for scope, rate, _ in hold.added())
        if wanted:
            columns = [list(column) for column in zip(*sorted(wanted), strict=True)]
            await db.execute(_MAKE_RATES, columns)
            for row in await _all(db, _LOCK_RATES, *columns):
                lent.rates[row[0], row[1]] = RateRow(*row)

    async def _prune(self, db: Connection) -> None:
        if self._prune_now > self._pruned_at:
            now, self._pruned_at = self._prune_now, self._prune_now
            month = self.calendar.month_start(now, months_back=KEEP_MONTHS)
            await db.execute(_PRUNE_HOLDS, (month,))
            await db.execute(_PRUNE_KEYS, (now - KEEP_KEYS_S,))

    # ── reading ────────────────────────────────────────────────────────────────────────────

    async def read(self, wanted: Sequence[tuple[str, Window, int]]) -> list[WindowSum | None]:
        """See ``Store.read``."""
        found: list[WindowSum | None] = [None] * len(wanted)
        columns = [list(range(len(wanted))), *map(list, zip(*wanted, strict=True))]
        try:
            async with await self._reading() as db, _hanging_up_after(self._patience_s, db):
                await db.execute("SELECT 1")
                for place, *row in await _all(db, _READ, *columns) if wanted else ():
                    found[place] = window_sum(row)
        except (psycopg.Error, OSError) as exc:
            raise unavailable(exc, may_have_been_made=False) from exc
        return found

    async def sums(self, window: Window, start: int) -> AsyncIterator[WindowSum]:
        """See ``Store.sums``."""
        async with await self._reading() as db:
            for row in await _all(db, _SUMS, window, start):
                yield window_sum(row)

    async def journal(self, since: int, until: int) -> AsyncIterator[Entry]:
        """See ``Store.journal``."""
        last = ""
        async with await self._reading() as db:
            while rows := await _all(db, _JOURNAL, since, until, last, PAGE):
                for row in rows:
                    yield HoldRow(*row).entry()
                last = rows[-1][0]

    async def recognise(self) -> None:
        """See ``Store.recognise``. A file or a database does not forget by itself."""

    def tidy(self, now: int) -> None:
        """See ``Store.tidy``. Once an hour is enough."""
        if now - self._pruned_at >= 3_600:
            self._prune_now = now

    async def close(self) -> None:
        """See ``Store.close``."""
        await self._hang_up()


@asynccontextmanager
async def _hanging_up_after(patience_s: float, db: Connection) -> AsyncGenerator[None]:
    """Break the connection off if the block takes longer; what waits for it then raises.

    ``statement_timeout`` is kept by the server, which may be what has stalled; and a statement
    that is cancelled is waited for by the driver, for as long as the server takes.
    """
    is_cut = False

    def hang_up() -> None:
        nonlocal is_cut
        is_cut = True
        with suppress(OSError, psycopg.Error), socket(fileno=os.dup(db.fileno())) as wire:
            wire.shutdown(SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(patience_s, hang_up)
    try:
        yield
    finally:
        timer.cancel()
        # After a pause of this process the last answer and the timer may come in the same turn:
        # the block is done, and its connection looks well to the driver.
        if is_cut:
            await db.close()


async def _all(db: Connection, query: Any, *values: Any) -> list[Any]:  # noqa: ANN401 - SQL
    return await (await db.execute(query, values)).fetchall()


async def _write(db: Connection, accounting: Accounting) -> None:
    changes: tuple[tuple[str, Iterable[Any]], ...] = (
        (_OPEN, map(hold_values, accounting.opened)),
        (_RENEW, map(renewing_values, accounting.renewed.values())),
        (_CLOSE, map(closing_values, accounting.closed.values())),
        (_PUT_WINDOW, ((*(v := window_values(row))[3:], *v[:3]) for row in accounting.touched)),
        (_PUT_RATE, ((free, s, r) for s, r, free in map(rate_values, accounting.touched_rates))),
        (_PUT_KEY, map(key_values, accounting.keys.values())),
        (_FREE_KEY, ((digest,) for digest in accounting.freed_keys)),
        (_PUT_GRANT, (grant_values(*granted) for granted in accounting.granted)),
    )
    async with db.pipeline(), db.cursor() as cursor:
        for query, values in changes:
            if rows := list(values):
                await cursor.executemany(cast(Any, query), rows)


class _Rows:
    """Rows for ``Accounting``, locked for one transaction."""

    def __init__(self, holds: list[Any], expired: list[str], keys: list[Any]) -> None:
        self.holds = {row[0]: HoldRow(*row) for row in holds}
        self.by_scope: dict[str, list[WindowRow]] = {}
        self.rates: dict[tuple[str, str], RateRow] = {}
        self.grants: dict[str, int] = {}
        self._expired = expired
        self._keys = {row[0]: KeyRow(*row) for row in keys}

    def hold(self, hold_id: str) -> HoldRow | None:
        return self.holds.get(hold_id)

    def windows(self, scope: str, starts: tuple[int, ...]) -> list[WindowRow]:
        return [row for row in self.by_scope.get(scope, ()) if row.start in starts]

    def rate(self, scope: str, rate: str) -> RateRow | None:
        return self.rates.get((scope, rate))

    def key(self, digest: str) -> KeyRow | None:
        return self._keys.get(digest)

    def granted(self, grant_id: str) -> int | None:
        return self.grants.get(grant_id)

    def expired(self, now: int, *, at_most: int) -> list[str]:
        return self._expired[:at_most]
