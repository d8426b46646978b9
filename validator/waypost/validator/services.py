"""What every request of one validator process uses, each a small class of its own."""

import asyncio
from collections.abc import Callable, Mapping

from msgspec import Struct

from waypost.validator.access.checks import AccessChecks
from waypost.validator.config import ValidatorConfig
from waypost.validator.detectors import Detectors
from waypost.validator.lane import Lane
from waypost.validator.ledger import Ledger
from waypost.validator.ledger.renewal import HoldRenewal
from waypost.validator.ledger.webhook import BudgetWebhook
from waypost.validator.manifest.refresh import ManifestService
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.records import RecordSink, RecordStore
from waypost.validator.records.recorder import Recorder
from waypost.validator.records.repeats import Repeats
from waypost.validator.telemetry.scrubber import Scrubber
from waypost.validator.telemetry.workers import SharedCounts
from waypost.validator.upstream.provider import Upstream
from waypost.validator.upstream.retry_budget import HedgeBudgets

__all__ = ["OperatorTokens", "Services", "Shutdown"]


class OperatorTokens(Struct, frozen=True):
    """What an operator shows at the doors that are not the callers'; ``None``: none is known."""

    console: str | None
    metrics: str | None

    def __repr__(self) -> str:
        return "OperatorTokens()"  # what it holds is secret


class Shutdown:
    """How far this process is on its way to its end.

    Attributes:
        is_stopping: whether it will end soon, so that it should be sent no more.
        is_cut: whether it ends now, and with it all that is under way.
        under_way: what waits for a provider, or for a caller to read.
    """

    def __init__(self) -> None:
        self.is_stopping = self.is_cut = False
        self.under_way: set[asyncio.Task[object]] = set()

    def announce(self, *, is_stopping: bool) -> None:
        """Say whether the process will end soon, or only another takes its place."""
        self.is_stopping = is_stopping

    def cut_off(self) -> None:
        """End all that is under way: each is told, paid for by what came, and recorded."""
        self.is_cut = True
        for task in self.under_way:
            task.cancel()


class Services(Struct, frozen=True, kw_only=True, eq=False):
    """One validator process, wired by ``startup.assembly``.

    Attributes:
        clock: Unix seconds; ``monotonic`` is for durations, ``rng`` gives random numbers 0 to 1.
        manifests: which manifest is served, and the candidate.
        recorder: takes the record of each request.
        renewal: keeps what is held for requests under way.
        records: those on their way to the ``store``.
        counts: what this process and the other workers counted.
        lane: where what takes long is done.
        scrubber: takes our own secrets out of what providers write.
        hedges: how many of a route's requests may be asked twice.
        tells_cost: whether callers are told what an answer cost; ``tells_cost_in_usage``: in it.
        receipts: signs for callers; ``None``: receipts are not sent.
        webhook: is told of soft limits that are used up; ``None``: nobody is.
    """

    config: ValidatorConfig
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    rng: Callable[[], float]
    manifests: ManifestService
    recorder: Recorder
    ledger: Ledger
    renewal: HoldRenewal
    access: AccessChecks
    upstreams: Mapping[str, Upstream]
    detectors: Detectors
    records: RecordSink
    store: RecordStore
    counts: SharedCounts
    operators: OperatorTokens
    scrubber: Scrubber
    shutdown: Shutdown
    lane: Lane
    repeats: Repeats
    hedges: HedgeBudgets
    tells_cost: bool
    tells_cost_in_usage: bool
    receipts: ReceiptKeys | None
    webhook: BudgetWebhook | None

    def __repr__(self) -> str:
        return f"Services(channel={self.config.channel!r})"
