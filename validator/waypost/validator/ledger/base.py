"""What a budget ledger promises, whatever stores it. Pure: no clock, no I/O.

The rule: for each scope and window, ``spent + reserved <= limit + granted`` at any instant, for
any number of concurrent writers. Money that a provider charged beyond its hold cannot be
refused any more; it is kept apart as debt, counts as spent, and so blocks what comes next.

Amounts are whole nano-dollars, instants are Unix seconds.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Literal, Protocol

from msgspec import Struct

from waypost.shared.contracts import SpendLimit, Window
from waypost.validator.ledger.calendar import CALENDAR, Calendar

__all__ = [
    "ENTERED_AGAIN",
    "HAS_FORGOTTEN",
    "MAX_NUSD",
    "Balance",
    "Crossed",
    "Entry",
    "Grant",
    "Held",
    "Hold",
    "HoldState",
    "IdempotencyKey",
    "Ledger",
    "RateLimit",
    "RateUnit",
    "RateWindow",
    "Refusal",
    "Repeat",
    "Scope",
    "Shortfall",
    "Throttled",
    "WindowSum",
    "lowest",
    "scope_of",
]

MAX_NUSD = 2**53 - 1  # nine million dollars: no single hold or bill is larger

HAS_FORGOTTEN = "has_forgotten"  # the risk that has come true
ENTERED_AGAIN = ".again"  # how the id of a hold ends that stands for one that was forgotten

RateUnit = Literal["requests", "tokens"]
RateWindow = Literal["minute", "hour", "day", "week"]

HoldState = Literal[
    "held",
    "settled",
    "released",
    "unconfirmed",  # charged with what it may have cost: no provider has said
    "expired",  # nobody settled it in time: charged in full
    "corrected",  # had been one of these two; the real cost came later
]


class RateLimit(Struct, frozen=True, kw_only=True):
    """At most so many in any stretch of one window's length, by GCRA: no burst beyond it."""

    unit: RateUnit
    window: RateWindow
    limit: int


class Scope(Struct, frozen=True, kw_only=True):
    """Something that spends: an account, a user, a tenant, a tier, a provider, a model, or all.

    Attributes:
        name: ``<kind>:<name>``, as ``account:acme``; ``global`` alone.
        limits: one per window.
        warnings: amounts from which callers are warned; nothing is refused for them.
        windows: which of ``CALENDAR`` are counted, in that order.
    """

    name: str
    limits: tuple[SpendLimit, ...] = ()
    warnings: tuple[SpendLimit, ...] = ()
    rates: tuple[RateLimit, ...] = ()
    windows: tuple[Window, ...] = ()


class IdempotencyKey(Struct, frozen=True, kw_only=True):
    """Digests of a caller's ``Idempotency-Key``, and of the body that came with it.

    Attributes:
        request_id: all holds of this request may use the key; their ids begin with it.
    """

    digest: str
    body: str
    request_id: str


class Hold(Struct, frozen=True, kw_only=True):
    """Money set aside for one try at one provider, before anything is sent.

    Attributes:
        id: unique; reserving it again changes nothing.
        amount_nusd: upper bound of what the try can cost.
        scopes: whoever pays. All of them or none.
        now: decides the windows that pay, also when settled later.
        expires_at: from here on a hold that nobody settled is charged in full.
        requests, tokens: what rate limits count; of tokens, an upper bound.
    """

    id: str
    amount_nusd: int
    scopes: tuple[Scope, ...]
    now: int
    expires_at: int
    requests: int = 1
    tokens: int = 0
    key: IdempotencyKey | None = None


class Crossed(Struct, frozen=True, kw_only=True):
    """A soft limit that is used up.

    Attributes:
        is_new: this hold is what used it up.
    """

    scope: str
    window: Window
    warn_nusd: int
    used_nusd: int
    resets_at: int | None
    is_new: bool


class Held(Struct, frozen=True):
    """The hold stands, in all its scopes."""

    crossed: tuple[Crossed, ...] = ()


class Shortfall(Struct, frozen=True, kw_only=True):
    """Why a hold was refused: the scope and window with the least left.

    Attributes:
        available_nusd: the most that a hold could be, now, over all windows; never negative.
        resets_at: when the window ends; ``None`` for ``request`` and ``total``.
    """

    scope: str
    window: Window
    limit_nusd: int
    available_nusd: int
    resets_at: int | None


class Throttled(Struct, frozen=True, kw_only=True):
    """Why a hold was refused: too many requests or tokens of late.

    Attributes:
        retry_after_s: when it would have been held; ``None``: never, it exceeds the limit alone.
    """

    scope: str
    rate: RateLimit
    retry_after_s: int | None


class Repeat(Struct, frozen=True, kw_only=True):
    """Why a hold was refused: its idempotency key has been used.

    Attributes:
        hold_id: the hold that the key stands for.
    """

    hold_id: str
    state: Literal["other_body", "in_progress", "done"]


Refusal = Shortfall | Throttled | Repeat


class Balance(Struct, frozen=True, kw_only=True):
    """One window of one scope.

    Attributes:
        limit_nusd: grants included.
        spent_nusd: charged, debt included.
        reserved_nusd: held for requests under way.
        debt_nusd: the part of ``spent_nusd`` that exceeded its holds.
    """

    scope: str
    window: Window
    limit_nusd: int
    spent_nusd: int
    reserved_nusd: int
    debt_nusd: int
    granted_nusd: int
    resets_at: int | None


class Grant(Struct, frozen=True, kw_only=True):
    """More room in one window of one scope, entered by an operator.

    Attributes:
        amount_nusd: ``None`` grants what the window has spent, so that it has its whole limit
            again. What was spent stays on the books.
        at: decides the window.
    """

    id: str
    scope: str
    window: Window
    at: int
    amount_nusd: int | None
    by: str
    why: str = ""


class WindowSum(Struct, frozen=True, kw_only=True):
    """What one scope has used in one window."""

    scope: str
    window: Window
    start: int
    spent_nusd: int
    debt_nusd: int
    reserved_nusd: int
    granted_nusd: int


class Entry(Struct, frozen=True, kw_only=True):
    """One line of the journal: a hold and what became of it.

    Attributes:
        scopes: names of all it was for, counted or not.
    """

    id: str
    scopes: tuple[str, ...]
    amount_nusd: int
    at: int
    expires_at: int
    state: HoldState
    cost_nusd: int


class Ledger(Protocol):
    """Budgets that cannot be overspent.

    Every method may raise StoreError (``ledger_unavailable``): the store did not answer in
    time. A caller must then refuse, never serve for free.
    """

    @property
    def risks(self) -> frozenset[str]:
        """In which ways the store may forget what was spent; known once it has answered."""
        ...

    async def recognise(self) -> None:
        """Take the books for whole: what the store had forgotten has been entered again."""
        ...

    async def reserve(self, hold: Hold) -> Held | Refusal:
        """Hold the amount in all windows of all scopes, or in none.

        A refusal leaves no trace, so the same id may come again with a smaller amount. A
        cancelled call holds nothing.

        Raises:
            StoreError: ``hold_conflict``, the id is settled already or was another hold's;
                ``ledger_lost``, the store has forgotten what was spent.
        """
        ...

    async def settle(
        self, hold_id: str, cost_nusd: int, *, tokens: int | None = None, is_confirmed: bool = True
    ) -> None:
        """Charge ``cost_nusd`` once and give back the rest of the hold.

        Only the first call counts. A charge that had to do without the provider's word, because
        the hold expired or ``is_confirmed`` was false, is corrected to the cost by the first
        call that has it. The charge is made even if the call is cancelled or the store is late.

        Args:
            tokens: used; of the bound, what is left of rate limits comes back.
            is_confirmed: whether the provider said so; if not, the hold is ``unconfirmed``.

        Raises:
            StoreError: ``hold_unknown``.
        """
        ...

    async def release(self, hold_id: str) -> None:
        """Give the whole hold back: it is certain that no provider will charge for it.

        A hold that does not exist, or is settled, is left as it is.
        """
        ...

    async def renew(self, hold_ids: Iterable[str], *, expires_at: int) -> None:
        """Let holds whose requests are still under way expire no sooner than ``expires_at``.

        A hold that does not exist, or is not open any more, is left as it is.
        """
        ...

    async def free_key(self, digest: str, request_id: str) -> None:
        """Let an idempotency key of that request be used again: nothing was charged."""
        ...

    async def balances(self, scopes: Iterable[Scope], *, now: int) -> tuple[Balance, ...]:
        """Return one balance per limited window of each scope."""
        ...

    async def sweep(self, *, now: int) -> int:
        """Charge expired holds in full, flagged as expired; return how many."""
        ...

    async def grant(self, grant: Grant) -> int:
        """Enter ``grant`` once; return its amount."""
        ...

    def sums(self, window: Window, *, now: int) -> AsyncIterator[WindowSum]:
        """Give what each scope has used in the ``window`` of ``now``."""
        ...

    def journal(self, *, since: int, until: int) -> AsyncIterator[Entry]:
        """Give the holds made from ``since`` to before ``until``, as far as they are kept."""
        ...

    async def close(self) -> None:
        """Write what is still to be written and let go of the store. May be called twice."""
        ...


def lowest(limits: Iterable[SpendLimit]) -> tuple[SpendLimit, ...]:
    """Return one limit per window: of several, the lowest holds."""
    by_window: dict[Window, SpendLimit] = {}
    for limit in limits:
        known = by_window.get(limit.window)
        if known is None or limit.limit_nusd < known.limit_nusd:
            by_window[limit.window] = limit
    return tuple(by_window.values())


# An account counts in these whatever is limited: a limit that a later token brings must see
# what was spent before. A minute is over too soon for that to matter.
_ACCOUNTS_COUNT: frozenset[Window] = frozenset({"hour", "day", "week", "month", "total"})
_OTHERS_COUNT: frozenset[Window] = frozenset({"total"})


def scope_of(
    name: str,
    limits: Iterable[SpendLimit] = (),
    *,
    warnings: Iterable[SpendLimit] = (),
    rates: tuple[RateLimit, ...] = (),
) -> Scope:
    """Return the scope, with the lowest limit of each window and all windows that it counts.

    A scope other than an account that nothing limits counts nowhere; the journal names it.
    """
    limits, warnings = lowest(limits), lowest(warnings)
    always = _ACCOUNTS_COUNT if name.startswith("account:") else _OTHERS_COUNT
    if not (limits or warnings or rates or always is _ACCOUNTS_COUNT):
        return Scope(name=name)
    wanted = always | {one.window for one in (*limits, *warnings)}
    return Scope(
        name=name,
        limits=limits,
        warnings=warnings,
        rates=rates,
        windows=tuple(window for window in CALENDAR if window in wanted),
    )


def balance_of(
    scope: Scope, limit: SpendLimit, used: WindowSum | None, calendar: Calendar, *, now: int
) -> Balance:
    """Return the balance of one limited window; ``used`` is ``None`` if nothing ever was."""
    spent, debt, reserved, granted = (
        (0, 0, 0, 0)
        if used is None
        else (used.spent_nusd, used.debt_nusd, used.reserved_nusd, used.granted_nusd)
    )
    return Balance(
        scope=scope.name,
        window=limit.window,
        limit_nusd=limit.limit_nusd + granted,
        spent_nusd=spent + debt,
        reserved_nusd=reserved,
        debt_nusd=debt,
        granted_nusd=granted,
        resets_at=calendar.resets_at(limit.window, now),
    )
