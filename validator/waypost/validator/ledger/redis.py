"""The ledger's rows in Redis or Valkey, for validators on several machines.

Each operation is one script, so it is atomic, and a batch of them is one pipeline: one round
trip, however much is asked for at once. The scripts only compare and add; what a refusal means
is worked out here from the numbers they return, by the same functions that all stores use. All
keys carry one hash tag, since a hold in all its scopes needs them in one place: in a cluster,
one ledger lives on one node, whichever it is at the moment.

A script that ran although its answer was lost does nothing the second time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Generator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Any, NamedTuple, cast

import msgspec
from redis.exceptions import RedisError, ResponseError

from waypost.shared.contracts import SpendLimit, Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.accounting import HELD
from waypost.validator.ledger.base import (
    ENTERED_AGAIN,
    HAS_FORGOTTEN,
    MAX_NUSD,
    Crossed,
    Entry,
    Grant,
    Held,
    Hold,
    Refusal,
    Scope,
    WindowSum,
)
from waypost.validator.ledger.calendar import CALENDAR, DURATION_S, Calendar
from waypost.validator.ledger.columns import check_zone
from waypost.validator.ledger.group_commit import GroupedLedger, UnavailableError, unavailable
from waypost.validator.ledger.limits import (
    KEEP_KEYS_S,
    US,
    backlog_us,
    crossed_by,
    longest_first,
    rate_name,
    refuse_rate,
    repeats,
    tightest,
)
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
from waypost.validator.ledger.redis_scripts import CLOSE, FREE, GRANT, RENEW, RESERVE
from waypost.validator.ledger.redis_servers import RISKS, Servers, find_servers, risks_of
from waypost.validator.ledger.rows import KeyRow

__all__ = ["RedisStore", "open_redis"]

logger = logging.getLogger(__name__)

REBUILT = "rebuilt:"  # how a mark begins that others may take for theirs
LOOK_EVERY_S = 60
KEEP_WINDOWS_S = 35 * 86_400  # after their end
KEEP_CLOSED_S = 7 * 86_400  # holds, from when they were made
PAGE = 500

_encode = msgspec.json.Encoder().encode
_decode_names = msgspec.json.Decoder(list[str]).decode


def open_redis(
    url: str, *, prefix: str = "waypost", patience_s: float = 2.0, calendar: Calendar | None = None
) -> GroupedLedger:
    """Return the ledger at ``url``; it connects when it is first asked.

    Args:
        url: as ``find_servers`` takes it.

    Raises:
        StoreError: ``ledger_unavailable``, the address makes no sense.
    """
    try:
        servers = find_servers(url, patience_s=patience_s)
    except ValueError:
        raise StoreError(
            "the ledger's dsn is not a redis:// address", code="ledger_unavailable"
        ) from None
    store = RedisStore(servers, prefix, calendar or Calendar(), patience_s=patience_s)
    return GroupedLedger(store, patience_s=patience_s)


class _Row(NamedTuple):
    """One window that a hold counts in, and what the script needs to know of it."""

    scope: Scope
    window: Window
    limit: SpendLimit | None
    argument: tuple[str, int | None, int | None]


class RedisStore:
    """A ``Store`` in Redis or Valkey."""

    lets_others_first = False

    def __init__(
        self, servers: Servers, prefix: str, calendar: Calendar, *, patience_s: float
    ) -> None:
        self.calendar = calendar
        self._servers = servers
        self._patience_s = patience_s
        self._prefix = f"{{{prefix}}}:"
        self._is_ready = False
        self.risks = frozenset[str]()
        self._mark: str | None = None  # of the books as they were when they were first seen
        self._looked_at = 0
        self._shas: list[str] = []

    def transact(self, batch: Sequence[Operation]) -> Awaitable[list[Any]]:
        """See ``Store.transact``."""
        return self._transact(batch)

    async def _transact(self, batch: Sequence[Operation]) -> list[Any]:
        try:
            # The client's own limit is for each reply of many.
            async with asyncio.timeout(self._patience_s):
                if not self._is_ready:
                    await self._begin()
                async with asyncio.timeout(self._servers.answer_s):
                    replies = await self._send(batch)
        except (RedisError, OSError, TimeoutError) as exc:
            self._lost(exc)
            raise unavailable(exc, may_have_been_made=True) from exc
        return [
            self._outcome(operation, reply) for operation, reply in zip(batch, replies, strict=True)
        ]

    def _lost(self, cause: BaseException) -> None:
        self._is_ready = False
        self._servers.lost(cause)

    async def _client(self) -> Any:  # noqa: ANN401 - half of its own types are unknown
        return await self._servers.of(f"{self._prefix}zone")

    async def _begin(self) -> None:
        """Find the server and give it the scripts, after it was away as well."""
        with self._told():
            client = await self._client()
            scripts = (RESERVE, CLOSE, FREE, GRANT, RENEW)
            self._shas = [await client.script_load(script) for script in scripts]
            zone = str(self.calendar.zone)
            await client.set(f"{self._prefix}zone", zone, nx=True)
            found = cast(str, await client.get(f"{self._prefix}zone"))
            await self._look(client)
        try:
            check_zone(found, zone)
        except StoreError as exc:
            raise UnavailableError(exc.message, may_have_been_made=False) from exc
        self._is_ready = True

    async def _look(self, client: Any) -> None:  # noqa: ANN401
        """Look how it is set up, and whether the books are still those that were seen first."""
        key = f"{self._prefix}mark"
        if self._mark is None:
            # Two ledgers that come at once agree on the mark of one of them.
            await client.set(key, token_hex(16), nx=True)
            self._mark = cast(str, await client.get(key))
        found = cast(str | None, await client.get(key))
        forgotten = self.risks & {HAS_FORGOTTEN}
        if found != self._mark:
            is_mended = found is not None and found.startswith(REBUILT)
            self._mark = found if is_mended else self._mark
            forgotten = frozenset[str](() if is_mended else (HAS_FORGOTTEN,))
        self._note_risks(await risks_of(client) | forgotten)

    def _note_risks(self, risks: frozenset[str]) -> None:
        for risk in sorted(risks - self.risks):
            level = logging.ERROR if risk == HAS_FORGOTTEN else logging.WARNING
            logger.log(level, "Redis may forget what was spent: %s", RISKS[risk])
        self.risks = risks

    async def recognise(self) -> None:
        """See ``Ledger.recognise``."""
        with self._told():
            client = await self._client()
            self._mark = f"{REBUILT}{token_hex(16)}"
            await client.set(f"{self._prefix}mark", self._mark)
        self.risks -= {HAS_FORGOTTEN}

    async def _send(self, batch: Sequence[Operation]) -> list[Any]:
        client = await self._client()
        if any(isinstance(operation, Sweep) for operation in batch):
            await self._look_now_and_then(client, batch)
        expired: dict[int, list[str]] = {}
        for place, operation in enumerate(batch):
            if isinstance(operation, Sweep):
                found = await client.zrangebyscore(
                    f"{self._prefix}open", "-inf", operation.now, start=0, num=operation.at_most
                )
                expired[place] = cast(list[str], found)
        pipeline = client.pipeline(transaction=False)
        spans: list[int] = []
        for place, operation in enumerate(batch):
            before = len(pipeline)
            match operation:
                case Reserve(hold):
                    argument = _encode(self._reserving(hold)).decode()
                    pipeline.evalsha(self._shas[0], 1, self._hold(hold.id), argument)
                case Settle(hold_id, cost_nusd, tokens, is_confirmed):
                    cost_nusd = min(cost_nusd, MAX_NUSD)
                    state = "settled" if is_confirmed else "unconfirmed"
                    self._close(pipeline, hold_id, state, cost_nusd, tokens)
                case Release(hold_id):
                    self._close(pipeline, hold_id, "released", 0, 0)
                case Renew(hold_ids, expires_at):
                    for hold_id in hold_ids:
                        self._renew(pipeline, hold_id, expires_at)
                case FreeKey(digest, request_id):
                    pipeline.evalsha(self._shas[2], 1, self._key(digest), request_id)
                case Sweep(now):
                    gone = now - KEEP_CLOSED_S
                    pipeline.zremrangebyscore(f"{self._prefix}journal", "-inf", gone)
                    for hold_id in expired[place]:
                        self._close(pipeline, hold_id, "expired", 0, None, now=now)
                case GrantOp(grant):
                    self._grant(pipeline, grant)
            spans.append(len(pipeline) - before)
        replies: list[Any] = []
        if len(pipeline):
            replies = await pipeline.execute(raise_on_error=False)
        failed = next((reply for reply in replies if _is_passing(reply)), None)
        if failed is not None:
            raise failed
        grouped: list[Any] = []
        for operation, span in zip(batch, spans, strict=True):
            is_several = isinstance(operation, Sweep | Renew)
            grouped.append(replies[:span] if is_several else replies[0])
            replies = replies[span:]
        return grouped

    async def _look_now_and_then(self, client: Any, batch: Sequence[Operation]) -> None:  # noqa: ANN401
        now = max(operation.now for operation in batch if isinstance(operation, Sweep))
        if abs(now - self._looked_at) >= LOOK_EVERY_S:
            self._looked_at = now
            await self._look(client)

    def _close(
        self,
        pipeline: Any,  # noqa: ANN401 - redis has no type for it
        hold_id: str,
        state: str,
        cost_nusd: int,
        tokens: int | None,
        *,
        now: int = 0,
    ) -> None:
        pipeline.evalsha(
            self._shas[1],
            1,
            self._hold(hold_id),
            hold_id,
            state,
            cost_nusd,
            -1 if tokens is None else tokens,
            KEEP_CLOSED_S,
            f"{self._prefix}open",
            now,
        )

    def _renew(self, pipeline: Any, hold_id: str, expires_at: int) -> None:  # noqa: ANN401 - redis has no type for it
        key, still_open = self._hold(hold_id), f"{self._prefix}open"
        pipeline.evalsha(self._shas[4], 2, key, still_open, hold_id, expires_at)

    def _grant(self, pipeline: Any, grant: Grant) -> None:  # noqa: ANN401 - redis has no type for it
        start = self.calendar.starts(grant.at)[CALENDAR.index(grant.window)]
        amount = "" if grant.amount_nusd is None else grant.amount_nusd
        window = self._window(grant.scope, grant.window, start)
        kept = _encode(grant).decode()
        entry = f"{self._prefix}grant:{grant.id}"
        pipeline.evalsha(self._shas[3], 2, entry, window, amount, kept)

    # ── a hold as the script wants it, and what it says ────────────────────────────────────

    def _rows(self, hold: Hold) -> list[_Row]:
        starts = dict(zip(CALENDAR, self.calendar.starts(hold.now), strict=True))
        rows: list[_Row] = []
        for scope in hold.scopes:
            for window in scope.windows:
                limit = next((one for one in scope.limits if one.window == window), None)
                ends_at = self.calendar.resets_at(window, hold.now)
                argument = (
                    self._window(scope.name, window, starts[window]),
                    None if limit is None else limit.limit_nusd,
                    None if ends_at is None else ends_at - hold.now + KEEP_WINDOWS_S,
                )
                rows.append(_Row(scope, window, limit, argument))
        return rows

    def _reserving(self, hold: Hold) -> dict[str, Any]:
        rates = [
            (self._rate(scope.name, rate_name(rate)), rate, backlog_us(rate, hold))
            for scope in hold.scopes
            for rate in scope.rates
        ]
        ceiling = min(
            (one.limit_nusd for scope in hold.scopes for one in scope.limits
             if one.window == "request"),
            default=MAX_NUSD,
        )  # fmt: skip
        wanted: dict[str, Any] = {
            "id": hold.id,
            "amount": hold.amount_nusd,
            "refuse": hold.amount_nusd > ceiling,
            "scopes": _names_text(hold),
            "tokens": hold.tokens,
            "now": hold.now,
            "now_us": hold.now * US,
            "expires": hold.expires_at,
            "windows": [_without_none(row.argument) for row in self._rows(hold)],
            "rates": [(key, adds_us, DURATION_S[rate.window] * US) for key, rate, adds_us in rates],
            "backlogs": _encode(
                [(key, adds_us) for key, rate, adds_us in rates if rate.unit == "tokens"]
            ).decode(),
            "open": f"{self._prefix}open",
            "journal": f"{self._prefix}journal",
            "holds": self._hold(""),
            "marked": f"{self._prefix}mark",
        }
        if not hold.id.endswith(ENTERED_AGAIN):
            wanted["mark"] = "" if HAS_FORGOTTEN in self.risks else self._mark
        if hold.key is not None:
            wanted |= {
                "key": self._key(hold.key.digest),
                "body": hold.key.body,
                "request": hold.key.request_id,
                "keep_key": KEEP_KEYS_S,
            }
        return wanted

    def _outcome(self, operation: Operation, reply: Any) -> object:  # noqa: ANN401 - as redis says it
        match operation:
            case _ if isinstance(reply, ResponseError):
                logger.error("the ledger's %s failed: %s", type(operation).__name__, reply)
                return StoreError(f"the budget ledger failed: {reply}", code="ledger_unavailable")
            case Reserve(hold):
                return self._reserved(hold, reply[0], reply[1:])
            case Settle(hold_id) if reply == "unknown":
                self._note_risks(self.risks | {HAS_FORGOTTEN})
                return StoreError(f"no hold {hold_id} to settle", code="hold_unknown")
            case Sweep():
                return sum(state == "expired" for state in reply)
            case GrantOp():
                return int(reply)
            case _:
                return None

    def _reserved(self, hold: Hold, said: str, values: list[str]) -> Held | Refusal | StoreError:
        match said:
            case "lost":
                self._note_risks(self.risks | {HAS_FORGOTTEN})
                return forgotten()
            case "known":
                state, amount, scopes = values
                same = int(amount) == hold.amount_nusd and scopes == _names_text(hold)
                if same and state == "held":
                    return HELD
                found = state if same else "another hold"
                return StoreError(f"hold {hold.id} exists already: {found}", code="hold_conflict")
            case "key":
                body, hold_id, at, state = values
                key = KeyRow(hold.key.digest if hold.key else "", body, hold_id, int(at))
                repeat = repeats(key, hold, cast(Any, state or None))
                assert repeat is not None  # noqa: S101 - the script has looked
                return repeat
            case "late":
                return self._throttled(hold, values)
            case _:
                return self._sums(hold, [int(value) for value in values])

    def _sums(self, hold: Hold, values: list[int]) -> Held | Refusal:
        rows = self._rows(hold)
        used = {
            (row.scope.name, row.window): (sum(values[4 * n : 4 * n + 3]), values[4 * n + 3])
            for n, row in enumerate(rows)
        }
        rooms = [
            (
                scope.name,
                limit,
                limit.limit_nusd
                if limit.window == "request"
                else limit.limit_nusd
                + used[scope.name, limit.window][1]
                - used[scope.name, limit.window][0],
            )
            for scope in hold.scopes
            for limit in scope.limits
        ]
        shortfall = tightest(rooms, hold.amount_nusd, calendar=self.calendar, now=hold.now)
        if shortfall is not None:
            return shortfall
        crossed: list[Crossed] = []
        for scope in hold.scopes:
            for warning in scope.warnings:
                now_used = used[scope.name, warning.window][0] + hold.amount_nusd
                if now_used >= warning.limit_nusd:
                    crossed.append(crossed_by(scope.name, warning, now_used, hold, self.calendar))
        return Held(tuple(crossed)) if crossed else HELD

    def _throttled(self, hold: Hold, frees: list[str]) -> Refusal:
        rates = [(scope.name, rate) for scope in hold.scopes for rate in scope.rates]
        refused = [
            throttled
            for (scope, rate), free in zip(rates, frees, strict=True)
            if (
                throttled := refuse_rate(
                    scope,
                    rate,
                    free_at_us=int(free),
                    adds_us=backlog_us(rate, hold),
                    now=hold.now,
                )
            )
        ]
        return max(refused, key=longest_first)

    # ── reading ────────────────────────────────────────────────────────────────────────────

    async def read(self, wanted: Sequence[tuple[str, Window, int]]) -> list[WindowSum | None]:
        """See ``Store.read``."""
        rows: list[Any] = []
        with self._told():
            async with asyncio.timeout(self._patience_s):
                client = await self._client()
                if not wanted:
                    await client.ping()
                pipeline = client.pipeline(transaction=False)
                for scope, window, start in wanted:
                    pipeline.hmget(self._window(scope, window, start), "s", "d", "r", "g")
                rows = await pipeline.execute() if wanted else []
        return [_window_sum(*one, row) for one, row in zip(wanted, rows, strict=True)]

    async def sums(self, window: Window, start: int) -> AsyncIterator[WindowSum]:
        """See ``Store.sums``."""
        ends = f":{window}:{start}"
        with self._told():
            client = await self._client()
            keys: AsyncIterator[str] = client.scan_iter(f"{self._prefix}w:*{ends}", count=PAGE)
            async for key in keys:
                scope = key.removeprefix(f"{self._prefix}w:").removesuffix(ends)
                found = (await self.read([(scope, window, start)]))[0]
                if found is not None:
                    yield found

    async def journal(self, since: int, until: int) -> AsyncIterator[Entry]:
        """See ``Store.journal``. Closed holds are kept for ``KEEP_CLOSED_S``."""
        place = 0
        while ids := await self._ids(since, until, place):
            place += len(ids)
            with self._told():
                pipeline = (await self._client()).pipeline(transaction=False)
                for hold_id in ids:
                    pipeline.hgetall(self._hold(hold_id))
                holds = await pipeline.execute()
            for hold_id, hold in zip(ids, holds, strict=True):
                if hold:
                    yield _entry(hold_id, hold)

    async def _ids(self, since: int, until: int, place: int) -> list[str]:
        with self._told():
            client = await self._client()
            found = await client.zrangebyscore(
                f"{self._prefix}journal", since, f"({until}", start=place, num=PAGE
            )
        return cast(list[str], found)

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except (RedisError, OSError, TimeoutError) as exc:
            self._lost(exc)
            raise unavailable(exc, may_have_been_made=False) from exc

    def tidy(self, now: int) -> None:
        """See ``Store.tidy``. Keys expire by themselves, and a sweep cuts the journal."""

    async def close(self) -> None:
        """See ``Store.close``."""
        await self._servers.close()

    # ── keys ───────────────────────────────────────────────────────────────────────────────

    def _hold(self, hold_id: str) -> str:
        return f"{self._prefix}h:{hold_id}"

    def _window(self, scope: str, window: Window, start: int) -> str:
        return f"{self._prefix}w:{scope}:{window}:{start}"

    def _rate(self, scope: str, rate: str) -> str:
        return f"{self._prefix}r:{scope}:{rate}"

    def _key(self, digest: str) -> str:
        return f"{self._prefix}k:{digest}"


def forgotten() -> StoreError:
    """Return why nothing is held in a ledger that has forgotten what was spent."""
    return StoreError(
        "the budget ledger has lost what was spent; `waypost budget rebuild --apply` enters it"
        " again from the decision records",
        code="ledger_lost",
    )


def _entry(hold_id: str, hold: dict[str, str]) -> Entry:
    return Entry(
        id=hold_id,
        scopes=tuple(_decode_names(hold["scopes"])),
        amount_nusd=int(hold["amount"]),
        at=int(hold["at"]),
        expires_at=int(hold["expires"]),
        state=cast(Any, hold["state"]),
        cost_nusd=int(float(hold["cost"])),
    )


def _is_passing(reply: object) -> bool:
    """Whether the reply is an error that the same batch may not meet again.

    One inside a script is not: it would keep all others waiting for ever. Errors that have a
    code, as OOM and MISCONF, say something of the server; and keys are not local while a cluster
    moves them (Redis 7.0, without a code).
    """
    if type(reply) is not ResponseError:
        return isinstance(reply, Exception)
    text = str(reply)
    return "user_script" not in text or text.split(" ", 1)[0].isupper() or "non local key" in text


def _names_text(hold: Hold) -> str:
    return _encode([scope.name for scope in hold.scopes]).decode()


def _without_none(argument: tuple[str, int | None, int | None]) -> tuple[Any, ...]:
    # In Lua null is a value of its own, and true.
    return tuple(False if part is None else part for part in argument)


def _window_sum(scope: str, window: Window, start: int, row: list[str | None]) -> WindowSum | None:
    if not any(row):
        return None
    spent, debt, reserved, granted = (int(value or 0) for value in row)
    return WindowSum(
        scope=scope,
        window=window,
        start=start,
        spent_nusd=spent,
        debt_nusd=debt,
        reserved_nusd=reserved,
        granted_nusd=granted,
    )
