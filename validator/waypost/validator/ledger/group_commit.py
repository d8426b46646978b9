"""A ledger that commits once per turn of the event loop, whatever store is behind it.

All operations that one turn asks for are one transaction (docs/adr/0006), and so are settlements
of the millisecond before. What the queue adds
to a store: nobody waits longer than the ledger's patience; a settlement is made even if its
caller has gone or the store is late; a hold that nobody waits for any more, or of which nobody
knows whether it was made, is given back.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from waypost.shared.contracts import Window
from waypost.shared.errors import StoreError
from waypost.validator.ledger.base import (
    Balance,
    Entry,
    Grant,
    Held,
    Hold,
    Refusal,
    Scope,
    WindowSum,
    balance_of,
)
from waypost.validator.ledger.calendar import CALENDAR, Calendar
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

__all__ = ["GroupedLedger", "Store", "UnavailableError", "unavailable"]

logger = logging.getLogger(__name__)

MAX_BATCH = 256  # keeps one turn of the loop below about 3 ms
SWEEP_BATCH = 200
RENEW_BATCH = 200
FIRST_RETRY_S = 0.001  # what event loops' timers can resolve
# A settlement waits so long for a transaction that others want: its caller has been answered, and
# the next request of the same client is on its way.
LINGER_S = 0.001
LAST_RETRY_S = 0.5


class UnavailableError(StoreError):
    """The store did not carry out a batch.

    Attributes:
        may_have_been_made: the connection broke off after the batch had gone out.
        retry_within_s: longest pause that makes sense before the next try.
    """

    code = "ledger_unavailable"

    def __init__(
        self, message: str, *, may_have_been_made: bool, retry_within_s: float = LAST_RETRY_S
    ) -> None:
        super().__init__(message)
        self.may_have_been_made = may_have_been_made
        self.retry_within_s = retry_within_s


def unavailable(cause: BaseException, *, may_have_been_made: bool) -> UnavailableError:
    """Return what callers are told when ``cause`` keeps a store from answering."""
    why = str(cause) or "it takes too long"
    return UnavailableError(
        f"the budget ledger does not answer: {why}", may_have_been_made=may_have_been_made
    )


class Store(Protocol):
    """Where a ledger's rows are.

    Attributes:
        risks: in which ways it may forget what was spent; known once it has answered.
    """

    calendar: Calendar
    risks: frozenset[str]

    @property
    def lets_others_first(self) -> bool:
        """Whether a batch should wait a moment."""
        ...

    def transact(self, batch: Sequence[Operation]) -> "list[Any] | Awaitable[list[Any]]":
        """Carry out all of the batch, in order, or none; return each outcome.

        Raises:
            UnavailableError: none was carried out, or nobody knows.
        """
        ...

    async def read(self, wanted: Sequence[tuple[str, Window, int]]) -> list[WindowSum | None]:
        """Return each window that is wanted by scope, window and start; ``None``: unused."""
        ...

    def sums(self, window: Window, start: int) -> AsyncIterator[WindowSum]:
        """See ``Ledger.sums``."""
        ...

    def journal(self, since: int, until: int) -> AsyncIterator[Entry]:
        """See ``Ledger.journal``."""
        ...

    async def recognise(self) -> None:
        """See ``Ledger.recognise``."""
        ...

    def tidy(self, now: int) -> None:
        """Drop soon what is not kept any longer."""
        ...

    async def close(self) -> None:
        """Let go of the store."""
        ...


class _Op:
    """One operation in the queue.

    Attributes:
        must: carried out even when its caller has gone: the money is spent.
        may_stand: it may have been carried out, though nobody was told.
    """

    __slots__ = ("deadline", "future", "may_stand", "must", "operation")

    def __init__(
        self, operation: Operation, future: asyncio.Future[Any], deadline: float, *, must: bool
    ) -> None:
        self.operation = operation
        self.future = future
        self.deadline = deadline
        self.must = must
        self.may_stand = False


class GroupedLedger:
    """A ``Ledger`` on a ``Store``. Use one instance per process, from one event loop."""

    def __init__(self, store: Store, *, patience_s: float) -> None:
        """Args:
        patience_s: how long a call waits for the store.
        """
        self.store = store
        self._patience_s = patience_s
        self._queue: list[_Op] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = False  # a flush is scheduled or under way
        self._lingering: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closed = False
        self._drained: asyncio.Future[None] | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def risks(self) -> frozenset[str]:
        """See ``Ledger.risks``."""
        return self.store.risks

    async def recognise(self) -> None:
        """See ``Ledger.recognise``."""
        await self.store.recognise()

    async def reserve(self, hold: Hold) -> Held | Refusal:
        """See ``Ledger.reserve``."""
        # Checked here, so that no operation of a batch can fail for its input.
        if hold.amount_nusd < 0 or not (
            hold.id.isascii() and "".join([scope.name for scope in hold.scopes]).isascii()
        ):
            raise ValueError(f"not a hold: {hold!r}")
        self.store.calendar.starts(hold.now)
        future = self._submit(Reserve(hold))
        try:
            outcome: Held | Refusal = await future
            return outcome
        except asyncio.CancelledError:
            # Cancelled between the commit and this task's turn.
            if not future.cancelled() and future.exception() is None:
                self._undo(hold.id, future.result())
            raise

    async def settle(
        self, hold_id: str, cost_nusd: int, *, tokens: int | None = None, is_confirmed: bool = True
    ) -> None:
        """See ``Ledger.settle``."""
        if cost_nusd < 0 or not hold_id.isascii():
            raise ValueError(f"not a settlement: {hold_id!r}, {cost_nusd}")
        await self._submit(
            Settle(hold_id, cost_nusd, tokens, is_confirmed), must=True, may_linger=True
        )

    async def release(self, hold_id: str) -> None:
        """See ``Ledger.release``."""
        await self._submit(Release(hold_id), must=True)

    async def renew(self, hold_ids: Iterable[str], *, expires_at: int) -> None:
        """See ``Ledger.renew``."""
        ids = tuple(hold_ids)
        for place in range(0, len(ids), RENEW_BATCH):
            await self._submit(Renew(ids[place : place + RENEW_BATCH], expires_at))

    async def free_key(self, digest: str, request_id: str) -> None:
        """See ``Ledger.free_key``."""
        await self._submit(FreeKey(digest, request_id), must=True)

    async def sweep(self, *, now: int) -> int:
        """See ``Ledger.sweep``. Also lets the store drop what is old."""
        self.store.tidy(now)
        swept = 0
        while True:
            count: int = await self._submit(Sweep(now, SWEEP_BATCH))
            swept += count
            if count < SWEEP_BATCH:
                return swept

    async def grant(self, grant: Grant) -> int:
        """See ``Ledger.grant``."""
        amount: int = await self._submit(GrantOp(grant))
        return amount

    async def balances(self, scopes: Iterable[Scope], *, now: int) -> tuple[Balance, ...]:
        """See ``Ledger.balances``. Reads do not wait for writers, as long as those get through."""
        if self._failures:
            # A file that another process locks can be read, and yet nothing can be held: whoever
            # asks whether the ledger answers must be told. Writes nothing, and may end the doubt.
            await self._submit(FreeKey("", ""))
        starts: dict[Window, int] = dict(
            zip(CALENDAR, self.store.calendar.starts(now), strict=True)
        )
        limits = [(scope, limit) for scope in scopes for limit in scope.limits]
        wanted: list[tuple[str, Window, int]] = [
            (scope.name, limit.window, starts.get(limit.window, -1)) for scope, limit in limits
        ]
        found = await self.store.read(wanted)
        return tuple(
            balance_of(scope, limit, used, self.store.calendar, now=now)
            for (scope, limit), used in zip(limits, found, strict=True)
        )

    def sums(self, window: Window, *, now: int) -> AsyncIterator[WindowSum]:
        """See ``Ledger.sums``."""
        place = CALENDAR.index(window)
        return self.store.sums(window, self.store.calendar.starts(now)[place])

    def journal(self, *, since: int, until: int) -> AsyncIterator[Entry]:
        """See ``Ledger.journal``."""
        return self.store.journal(since, until)

    async def close(self) -> None:
        """See ``Ledger.close``. What cannot be written is charged in full when it expires."""
        if self._closed:
            return
        self._closed = True
        if self._busy:
            self._drained = asyncio.get_running_loop().create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    await self._drained
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        self._fail(self._queue, StoreError("the ledger is closed", code="ledger_unavailable"))
        self._queue.clear()
        await self.store.close()

    # ── the queue ──────────────────────────────────────────────────────────────────────────

    def _submit(
        self, operation: Operation, *, must: bool = False, may_linger: bool = False
    ) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreError("the ledger is closed", code="ledger_unavailable")
        loop = self._loop
        if loop is None:
            # Kept, as asking costs a call of the kernel each time (CPython 3.11 looks for forks).
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.append(_Op(operation, future, loop.time() + self._patience_s, must=must))
        if not self._busy:
            self._busy = True
            if may_linger:
                self._lingering = loop.call_later(LINGER_S, self._flush, loop)
            else:
                loop.call_soon(self._flush, loop)
        elif self._lingering is not None and not may_linger:
            self._lingering.cancel()
            self._lingering = None
            loop.call_soon(self._flush, loop)
        return future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lingering = None
        if self.store.lets_others_first:
            loop.call_later(FIRST_RETRY_S, self._flush, loop)
            return
        # A caller that has gone needs no hold any more.
        queue = [op for op in self._queue if op.must or not op.future.done()]
        batch, self._queue = queue[:MAX_BATCH], queue[MAX_BATCH:]
        if not batch:
            self._rest()
            return
        try:
            outcomes = self.store.transact([op.operation for op in batch])
        except UnavailableError as exc:
            self._finish(loop, batch, exc)
            return
        if isinstance(outcomes, list):
            self._finish(loop, batch, outcomes)
        else:
            self._running = loop.create_task(self._transact(loop, batch, outcomes))

    async def _transact(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Op],
        outcomes: Awaitable[list[Any]],
    ) -> None:
        try:
            self._finish(loop, batch, await outcomes)
        except UnavailableError as exc:
            self._finish(loop, batch, exc)
        except asyncio.CancelledError:
            self._queue = batch + self._queue
            raise
        except Exception as exc:
            # A fault of ours or the driver's: callers must not wait for ever.
            logger.exception("the ledger's batch failed")
            self._finish(loop, batch, unavailable(exc, may_have_been_made=True))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Op],
        outcomes: list[Any] | UnavailableError,
    ) -> None:
        pause_s = 0.0
        if isinstance(outcomes, UnavailableError):
            self._keep(loop, batch, outcomes)
            longest = min(FIRST_RETRY_S * 2 ** min(self._failures, 30), outcomes.retry_within_s)
            pause_s = random.uniform(FIRST_RETRY_S, longest)
        else:
            self._failures = 0
            for op, outcome in zip(batch, outcomes, strict=True):
                self._deliver(op, outcome)
        if not self._queue:
            self._rest()
        elif pause_s:
            loop.call_later(pause_s, self._flush, loop)
        else:
            loop.call_soon(self._flush, loop)

    def _rest(self) -> None:
        self._busy = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _deliver(self, op: _Op, outcome: object) -> None:
        if op.future.done():
            if isinstance(op.operation, Reserve):
                self._undo(op.operation.hold.id, outcome)
        elif isinstance(outcome, StoreError):
            op.future.set_exception(outcome)
        else:
            op.future.set_result(outcome)

    def _undo(self, hold_id: str, outcome: object) -> None:
        """Release what was held for a caller that went away while it was being held."""
        if isinstance(outcome, Held) and not self._closed:
            self._submit(Release(hold_id), must=True)
            # First in the queue: what waits there may need this money.
            self._queue.insert(0, self._queue.pop())

    def _keep(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Op], error: UnavailableError
    ) -> None:
        """Put a batch back that could not be written; tell those who waited long enough."""
        self._failures += 1
        for op in batch:
            op.may_stand |= error.may_have_been_made
        queue = batch + self._queue
        self._fail((op for op in queue if op.deadline <= loop.time()), error)
        # A settlement stays in the queue although its caller was told: it will be written.
        self._queue = [op for op in queue if op.must or not op.future.done()]
        # A reserve is tried again or given back; either way no money is left hanging.
        self._queue += [
            self._released(op.operation.hold.id, loop)
            for op in queue
            if op.may_stand and op.future.done() and isinstance(op.operation, Reserve)
        ]

    def _released(self, hold_id: str, loop: asyncio.AbstractEventLoop) -> _Op:
        deadline = loop.time() + self._patience_s
        return _Op(Release(hold_id), loop.create_future(), deadline, must=True)

    def _fail(self, ops: Iterable[_Op], error: StoreError) -> None:
        for op in ops:
            if not op.future.done():
                op.future.set_exception(StoreError(error.message, code=error.code))
                # Whoever stopped listening, as a settlement in a finaliser may, has no
                # "exception was never retrieved" to fear: the error is in the log.
                op.future.exception()
