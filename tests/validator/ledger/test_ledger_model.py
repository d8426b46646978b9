"""Any history of a ledger, on two workers at once, agrees with one that is simply added up."""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from support.ledgers import NOON, assert_books_balance
from support.redis import running_redis
from waypost.shared.contracts import SpendLimit, Window
from waypost.validator.ledger import (
    Calendar,
    Held,
    Hold,
    Refusal,
    Scope,
    Shortfall,
    open_sqlite,
    scope_of,
)
from waypost.validator.ledger.calendar import CALENDAR
from waypost.validator.ledger.group_commit import GroupedLedger
from waypost.validator.ledger.postgres import open_postgres
from waypost.validator.ledger.redis import open_redis

CLOCK = Calendar()
ACCOUNTS = ("acme", "bee")
WINDOWS: tuple[Window, ...] = ("request", *CALENDAR)

# Small numbers, so that limits are met all the time.
amounts = st.integers(0, 40)
limits = st.lists(
    st.builds(SpendLimit, window=st.sampled_from(WINDOWS), limit_nusd=st.integers(0, 100)),
    max_size=4,
).map(tuple)
workers = st.integers(0, 1)


@dataclass
class Entry:
    account: str
    amount: int
    at: int
    expires_at: int
    state: str = "held"
    cost: int = 0

    @property
    def counts(self) -> int:
        """What the hold takes from its windows."""
        return self.amount if self.state == "held" else self.cost


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self, opening: Callable[[], GroupedLedger] | None = None) -> None:
        """Args:
        opening: opens the ledger; ``None`` opens a file of its own.
        """
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.runner = asyncio.Runner()
        self.is_file = opening is None
        self.opening = opening or partial(open_sqlite, self.path)
        self.ledgers = [self.runner.run(_open(self.opening)) for _ in range(2)]
        self.now = NOON
        self.entries: dict[str, Entry] = {}
        self.limits: dict[str, tuple[SpendLimit, ...]] = {}

    @initialize(acme=limits, bee=limits)
    def two_accounts(self, acme: tuple[SpendLimit, ...], bee: tuple[SpendLimit, ...]) -> None:
        self.limits = {"acme": acme, "bee": bee}

    def used(self, account: str, window: Window, now: int) -> int:
        place = CALENDAR.index(window)
        return sum(
            entry.counts
            for entry in self.entries.values()
            if entry.account == account
            and CLOCK.starts(entry.at)[place] == CLOCK.starts(now)[place]
        )

    def available(self, account: str) -> int | None:
        rooms = [
            limit.limit_nusd
            - (0 if limit.window == "request" else self.used(account, limit.window, self.now))
            for limit in self.limits[account]
        ]
        return max(0, min(rooms)) if rooms else None

    def scope(self, account: str) -> Scope:
        return scope_of(f"account:{account}", self.limits[account])

    def hold(self, account: str, amount: int, lease_s: int) -> Hold:
        return Hold(
            id=f"h{len(self.entries)}",
            amount_nusd=amount,
            scopes=(self.scope(account),),
            now=self.now,
            expires_at=self.now + lease_s,
        )

    @rule(
        worker=workers,
        account=st.sampled_from(ACCOUNTS),
        amount=amounts,
        lease_s=st.sampled_from((60, 7_200, 90_000)),
    )
    def reserve(self, worker: int, account: str, amount: int, lease_s: int) -> None:
        hold = self.hold(account, amount, lease_s)
        available = self.available(account)

        shortfall = self.runner.run(self.ledgers[worker].reserve(hold))

        assert isinstance(shortfall, Held) == (available is None or amount <= available)
        if isinstance(shortfall, Held):
            self.entries[hold.id] = Entry(account, amount, self.now, hold.expires_at)
        else:
            assert isinstance(shortfall, Shortfall)
            assert shortfall.available_nusd == available

    @rule(account=st.sampled_from(ACCOUNTS), amount=amounts)
    def race(self, account: str, amount: int) -> None:
        """Two workers want the same at the same moment: as many get it as one after another."""
        hold = self.hold(account, amount, lease_s=60)
        racers = [structs.replace(hold, id=f"{hold.id}-{worker}") for worker in range(2)]

        outcomes = self.runner.run(_both(self.ledgers, racers))

        granted = [
            racer
            for racer, outcome in zip(racers, outcomes, strict=True)
            if isinstance(outcome, Held)
        ]
        expected = 0
        for racer in granted or racers:
            available = self.available(account)
            expected += available is None or amount <= available
            if racer in granted:
                self.entries[racer.id] = Entry(account, amount, self.now, racer.expires_at)
        if len(granted) == 1:
            available = self.available(account)
            expected += available is None or amount <= available
        assert len(granted) == expected

    @rule(worker=workers, pick=st.integers(0), cost=st.integers(0, 60), is_confirmed=st.booleans())
    def settle(self, worker: int, pick: int, cost: int, *, is_confirmed: bool) -> None:
        if self.entries:
            hold_id = sorted(self.entries)[pick % len(self.entries)]
            ledger = self.ledgers[worker]
            self.runner.run(ledger.settle(hold_id, cost, is_confirmed=is_confirmed))
            self.close(self.entries[hold_id], "settled" if is_confirmed else "unconfirmed", cost)

    @rule(worker=workers, pick=st.integers(0))
    def release(self, worker: int, pick: int) -> None:
        if self.entries:
            hold_id = sorted(self.entries)[pick % len(self.entries)]
            self.runner.run(self.ledgers[worker].release(hold_id))
            self.close(self.entries[hold_id], "released", 0)

    def close(self, entry: Entry, state: str, cost: int) -> None:
        if entry.state in ("held", "expired") or (
            entry.state == "unconfirmed" and state != "unconfirmed"
        ):
            is_final = entry.state == "held" or state == "unconfirmed"
            entry.state, entry.cost = state if is_final else "corrected", cost

    @rule(worker=workers)
    def sweep(self, worker: int) -> None:
        expired = [
            entry
            for entry in self.entries.values()
            if entry.state == "held" and entry.expires_at <= self.now
        ]
        assert self.runner.run(self.ledgers[worker].sweep(now=self.now)) == len(expired)
        for entry in expired:
            entry.state, entry.cost = "expired", entry.amount

    @rule(passes_s=st.sampled_from((1, 60, 3_600, 86_400, 20 * 86_400)))
    def time_passes(self, passes_s: int) -> None:
        # Not so far that closed holds are dropped: that has a test of its own.
        if self.now + passes_s < NOON + 30 * 86_400:
            self.now += passes_s

    @rule(worker=workers)
    def a_worker_starts_again(self, worker: int) -> None:
        self.runner.run(self.ledgers[worker].close())
        self.ledgers[worker] = self.runner.run(_open(self.opening))

    @invariant()
    def the_books_balance(self) -> None:
        if self.is_file:
            assert_books_balance(self.path)
        for account in self.limits:
            balances = self.runner.run(
                self.ledgers[0].balances((self.scope(account),), now=self.now)
            )
            for balance in balances:
                if balance.window != "request":
                    used = self.used(account, balance.window, self.now)
                    assert balance.spent_nusd + balance.reserved_nusd == used
                    paid = balance.spent_nusd - balance.debt_nusd
                    assert paid + balance.reserved_nusd <= balance.limit_nusd

    def teardown(self) -> None:
        for ledger in self.ledgers:
            self.runner.run(ledger.close())
        self.runner.close()
        self.folder.cleanup()


async def _open(opening: Callable[[], GroupedLedger]) -> GroupedLedger:
    return opening()


async def _both(ledgers: list[GroupedLedger], holds: list[Hold]) -> list[Held | Refusal]:
    return await asyncio.gather(
        *(ledger.reserve(hold) for ledger, hold in zip(ledgers, holds, strict=True))
    )


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


SHORT = settings(max_examples=8, stateful_step_count=20, deadline=None)


def test_any_history_in_redis_agrees_as_well() -> None:
    with running_redis("--appendfsync", "no") as server:

        class InRedis(LedgerMachine):
            def __init__(self) -> None:
                super().__init__(partial(open_redis, server.url, prefix=token_hex(4)))

        run_state_machine_as_test(InRedis, settings=SHORT)


def test_any_history_in_postgres_agrees_as_well(postgres_dsn: str) -> None:
    class InPostgres(LedgerMachine):
        def __init__(self) -> None:
            super().__init__(partial(open_postgres, postgres_dsn, schema=f"w{token_hex(4)}"))

    run_state_machine_as_test(InPostgres, settings=SHORT)
