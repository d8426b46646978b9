"""The ledger's rows in Redis or Valkey, for validators on several machines.

Each operation is one script, so it is atomic, and a batch of them is one pipeline: one round
trip, however much is asked for at once. The scripts only compare and add; what a refusal means
is worked out here from the numbers they return, by the same functions that all stores use. All
keys carry one hash tag, since a hold in all its scopes needs them in one place: in a cluster,
one ledger lives on one node.

A script that ran although its answer was lost does nothing the second time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from waypost.shared.contracts import SpendLimit, Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import (
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
from waypost.validator.ledger.books import (
    HELD,
    KEEP_KEYS_S,
    US,
    FreeKey,
    GrantOp,
    KeyRow,
    Operation,
    Release,
    Reserve,
    Settle,
    Sweep,
    backlog_us,
    crossed_by,
    longest_first,
    rate_name,
    refuse_rate,
    repeats,
    tightest,
)
from waypost.validator.ledger.calendar import CALENDAR, DURATION_S, Calendar
from waypost.validator.ledger.grouped import GroupedLedger, UnavailableError, unavailable
from waypost.validator.ledger.rows import check_zone

__all__ = ["RedisStore", "open_redis"]

logger = logging.getLogger(__name__)

KEEP_WINDOWS_S = 35 * 86_400  # after their end
KEEP_CLOSED_S = 7 * 86_400  # holds, from when they were made
PAGE = 500

_RESERVE = """
local a = cjson.decode(ARGV[1])
local known = redis.call('HMGET', KEYS[1], 'state', 'amount', 'scopes')
if known[1] then return {'known', known[1], known[2], known[3]} end
if a.key then
  local k = redis.call('HMGET', a.key, 'body', 'hold', 'at')
  if k[1] and string.sub(k[2], 1, #a.request) ~= a.request and k[3] + a.keep_key > a.now then
    return {'key', k[1], k[2], k[3], redis.call('HGET', a.holds .. k[2], 'state') or ''}
  end
end
local sums, short = {}, a.refuse
for i, w in ipairs(a.windows) do
  local row = redis.call('HMGET', w[1], 's', 'd', 'r', 'g')
  for j = 1, 4 do sums[#sums + 1] = row[j] or '0' end
  if w[2] and a.amount > 0 then
    local used = (row[1] or 0) + (row[2] or 0) + (row[3] or 0)
    if used + a.amount > w[2] + (row[4] or 0) then short = true end
  end
end
if short then return {'short', unpack(sums)} end
local frees, late = {}, false
for i, r in ipairs(a.rates) do
  local free = tonumber(redis.call('GET', r[1]) or '0')
  frees[i] = string.format('%.0f', free)
  if r[2] > 0 and math.max(free, a.now_us) + r[2] - a.now_us > r[3] then late = true end
end
if late then return {'late', unpack(frees)} end
local names = {}
for i, w in ipairs(a.windows) do
  redis.call('HINCRBY', w[1], 'r', a.amount)
  if w[3] then redis.call('EXPIRE', w[1], w[3]) end
  names[i] = w[1]
end
for i, r in ipairs(a.rates) do
  local free = math.max(tonumber(frees[i]), a.now_us) + r[2]
  redis.call('SET', r[1], string.format('%.0f', free), 'EX', math.ceil(2 * r[3] / 1000000))
end
redis.call('HSET', KEYS[1], 'state', 'held', 'amount', a.amount, 'cost', 0, 'scopes', a.scopes,
  'tokens', a.tokens, 'at', a.now, 'expires', a.expires,
  'windows', #names > 0 and cjson.encode(names) or '[]', 'backlogs', a.backlogs)
redis.call('ZADD', a.open, a.expires, a.id)
redis.call('ZADD', a.journal, a.now, a.id)
if a.key then
  redis.call('HSET', a.key, 'body', a.body, 'hold', a.id, 'at', a.now)
  redis.call('EXPIRE', a.key, a.keep_key)
end
return {'held', unpack(sums)}
"""

_CLOSE = """
local h = redis.call('HMGET', KEYS[1], 'state', 'amount', 'cost', 'tokens', 'windows', 'backlogs')
if not h[1] then return 'unknown' end
local target, cost, amount = ARGV[2], tonumber(ARGV[3]), tonumber(h[2])
local state = target
if h[1] ~= 'held' then  -- as books.state_after has it
  local open = h[1] == 'expired' or h[1] == 'unconfirmed'
  if open and (target == 'settled' or target == 'released') then state = 'corrected'
  elseif h[1] ~= 'expired' or target ~= 'unconfirmed' then return 'kept' end
end
if target == 'expired' then cost = amount end
local had = tonumber(h[3])
local had_spent = math.min(had, amount)
local spent = math.min(cost, h[1] == 'held' and amount or had_spent)
for _, w in ipairs(cjson.decode(h[5])) do
  if h[1] == 'held' then redis.call('HINCRBY', w, 'r', 0 - amount) end  -- -0 is no integer
  redis.call('HINCRBY', w, 's', spent - had_spent)
  local owes = cost - spent - (had - had_spent)
  if owes ~= 0 then redis.call('HINCRBY', w, 'd', owes) end
end
local used, bound = tonumber(ARGV[4]), tonumber(h[4])
if used >= 0 and bound > 0 then
  for _, b in ipairs(cjson.decode(h[6])) do
    local free = tonumber(redis.call('GET', b[1]) or '0')
    free = math.max(0, free - math.floor(b[2] * (bound - used) / bound))
    redis.call('SET', b[1], string.format('%.0f', free), 'KEEPTTL')
  end
end
redis.call('HSET', KEYS[1], 'state', state, 'cost', cost)
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZREM', ARGV[6], ARGV[1])
return state
"""

_FREE = """
local hold = redis.call('HGET', KEYS[1], 'hold')
if hold and string.sub(hold, 1, #ARGV[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'ok'
"""

_GRANT = """
local known = redis.call('HGET', KEYS[1], 'amount')
if known then return known end
local row = redis.call('HMGET', KEYS[2], 's', 'd', 'g')
local amount = ARGV[1]
if amount == '' then
  amount = string.format('%.0f', math.max(0, (row[1] or 0) + (row[2] or 0) - (row[3] or 0)))
end
redis.call('HINCRBY', KEYS[2], 'g', amount)
redis.call('HSET', KEYS[1], 'amount', amount, 'grant', ARGV[2])
return amount
"""

_encode = msgspec.json.Encoder().encode
_decode_names = msgspec.json.Decoder(list[str]).decode


def open_redis(
    url: str, *, prefix: str = "waypost", patience_s: float = 2.0, calendar: Calendar | None = None
) -> GroupedLedger:
    """Return the ledger at ``url``; it connects when it is first asked.

    Raises:
        StoreError: ``ledger_unavailable``, the address makes no sense.
    """
    try:
        client = cast(Any, Redis).from_url(  # half of its own types are unknown
            url,
            decode_responses=True,
            socket_timeout=patience_s,
            socket_connect_timeout=patience_s,
            retry=Retry(NoBackoff(), 0),  # the ledger has a queue and a patience of its own
        )
    except ValueError:
        # The client's own words quote the address, which holds a password.
        raise StoreError(
            "the ledger's dsn is not a redis:// address", code="ledger_unavailable"
        ) from None
    store = RedisStore(client, prefix, calendar or Calendar(), patience_s=patience_s)
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
        self, client: object, prefix: str, calendar: Calendar, *, patience_s: float
    ) -> None:
        self.calendar = calendar
        self._patience_s = patience_s
        self._client = cast(Any, client)
        self._prefix = f"{{{prefix}}}:"
        self._is_ready = False
        self._tidied_at = 0
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
                replies = await self._send(batch)
        except (RedisError, OSError, TimeoutError) as exc:
            self._is_ready = False
            raise unavailable(exc, may_have_been_made=True) from exc
        return [
            self._outcome(operation, reply) for operation, reply in zip(batch, replies, strict=True)
        ]

    async def _begin(self) -> None:
        """Find the server and give it the scripts, after it was away as well."""
        try:
            scripts = (_RESERVE, _CLOSE, _FREE, _GRANT)
            self._shas = [await self._client.script_load(script) for script in scripts]
            zone = str(self.calendar.zone)
            await self._client.set(f"{self._prefix}zone", zone, nx=True)
            found = cast(str, await self._client.get(f"{self._prefix}zone"))
        except (RedisError, OSError, TimeoutError) as exc:
            raise unavailable(exc, may_have_been_made=False) from exc
        try:
            check_zone(found, zone)
        except StoreError as exc:
            raise UnavailableError(exc.message, may_have_been_made=False) from exc
        self._is_ready = True

    async def _send(self, batch: Sequence[Operation]) -> list[Any]:
        expired: dict[int, list[str]] = {}
        for place, operation in enumerate(batch):
            if isinstance(operation, Sweep):
                found = await self._client.zrangebyscore(
                    f"{self._prefix}open", "-inf", operation.now, start=0, num=operation.at_most
                )
                expired[place] = cast(list[str], found)
        pipeline = self._client.pipeline(transaction=False)
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
                case FreeKey(digest, request_id):
                    pipeline.evalsha(self._shas[2], 1, self._key(digest), request_id)
                case Sweep(now):
                    gone = now - KEEP_CLOSED_S
                    pipeline.zremrangebyscore(f"{self._prefix}journal", "-inf", gone)
                    for hold_id in expired[place]:
                        self._close(pipeline, hold_id, "expired", 0, None)
                case GrantOp(grant):
                    self._grant(pipeline, grant)
            spans.append(len(pipeline) - before)
        replies: list[Any] = []
        if len(pipeline):
            replies = await pipeline.execute(raise_on_error=False)
        failed = next((reply for reply in replies if _is_passing(reply)), None)
        if isinstance(failed, NoScriptError):  # the server was restarted: nothing has run
            self._is_ready = False
        if failed is not None:
            raise failed
        grouped: list[Any] = []
        for operation, span in zip(batch, spans, strict=True):
            grouped.append(replies[:span] if isinstance(operation, Sweep) else replies[0])
            replies = replies[span:]
        return grouped

    def _close(
        self,
        pipeline: Any,  # noqa: ANN401 - redis has no type for it
        hold_id: str,
        state: str,
        cost_nusd: int,
        tokens: int | None,
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
        )

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
        }
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
                return StoreError(f"no hold {hold_id} to settle", code="hold_unknown")
            case Sweep():
                return sum(state == "expired" for state in reply)
            case GrantOp():
                return int(reply)
            case _:
                return None

    def _reserved(self, hold: Hold, said: str, values: list[str]) -> Held | Refusal | StoreError:
        match said:
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
        try:
            async with asyncio.timeout(self._patience_s):
                if not wanted:
                    await self._client.ping()
                pipeline = self._client.pipeline(transaction=False)
                for scope, window, start in wanted:
                    pipeline.hmget(self._window(scope, window, start), "s", "d", "r", "g")
                rows = await pipeline.execute() if wanted else []
        except (RedisError, OSError, TimeoutError) as exc:
            raise unavailable(exc, may_have_been_made=False) from exc
        return [_window_sum(*one, row) for one, row in zip(wanted, rows, strict=True)]

    async def sums(self, window: Window, start: int) -> AsyncIterator[WindowSum]:
        """See ``Store.sums``."""
        ends = f":{window}:{start}"
        keys: AsyncIterator[str] = self._client.scan_iter(f"{self._prefix}w:*{ends}", count=PAGE)
        async for key in keys:
            scope = key.removeprefix(f"{self._prefix}w:").removesuffix(ends)
            found = (await self.read([(scope, window, start)]))[0]
            if found is not None:
                yield found

    async def journal(self, since: int, until: int) -> AsyncIterator[Entry]:
        """See ``Store.journal``. Closed holds are kept for ``KEEP_CLOSED_S``."""
        place = 0
        while True:
            found = await self._client.zrangebyscore(
                f"{self._prefix}journal", since, f"({until}", start=place, num=PAGE
            )
            ids = cast(list[str], found)
            if not ids:
                return
            place += len(ids)
            pipeline = self._client.pipeline(transaction=False)
            for hold_id in ids:
                pipeline.hgetall(self._hold(hold_id))
            for hold_id, hold in zip(ids, await pipeline.execute(), strict=True):
                if hold:
                    yield Entry(
                        id=hold_id,
                        scopes=tuple(_decode_names(hold["scopes"])),
                        amount_nusd=int(hold["amount"]),
                        at=int(hold["at"]),
                        expires_at=int(hold["expires"]),
                        state=hold["state"],
                        cost_nusd=int(float(hold["cost"])),
                    )

    def tidy(self, now: int) -> None:
        """See ``Store.tidy``. Keys expire by themselves, and a sweep cuts the journal."""

    async def close(self) -> None:
        """See ``Store.close``."""
        await self._client.aclose()

    # ── keys ───────────────────────────────────────────────────────────────────────────────

    def _hold(self, hold_id: str) -> str:
        return f"{self._prefix}h:{hold_id}"

    def _window(self, scope: str, window: Window, start: int) -> str:
        return f"{self._prefix}w:{scope}:{window}:{start}"

    def _rate(self, scope: str, rate: str) -> str:
        return f"{self._prefix}r:{scope}:{rate}"

    def _key(self, digest: str) -> str:
        return f"{self._prefix}k:{digest}"


def _is_passing(reply: object) -> bool:
    """Whether the reply is an error that the same batch may not meet again.

    One inside a script is not: it would keep all others waiting for ever. Errors that have a
    code, as OOM and MISCONF, say something of the server.
    """
    if type(reply) is not ResponseError:
        return isinstance(reply, Exception)
    return "user_script" not in str(reply) or str(reply).split(" ", 1)[0].isupper()


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
