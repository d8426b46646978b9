"""A policy on trial beside the one in force: decided along in its shadow, or served to a few.

The candidate is a channel like any other, signed by the same keys. A *shadow* decides a share of
the requests a second time, and only the record shows it. A *canary* serves a stable share of the
callers, and is rolled back, by itself and for good, once it is surely worse than the policy in
force by more than the operator's bounds. The workers of one machine judge by what all of them have
seen, of which they tell each other with their counts; one that rolls back tells the others by a
file, which also outlives a restart.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from math import sqrt
from pathlib import Path
from statistics import NormalDist

import httpx
import msgspec
from anyio import to_thread
from msgspec import Struct, structs

from waypost.shared.contracts import Facts, Proposal
from waypost.shared.decision.engine import decide
from waypost.shared.decision.rules import place
from waypost.shared.errors import PolicyError, TrustError
from waypost.shared.money import bill
from waypost.shared.records import DecisionRecord, Feedback, Shadow, fate_of
from waypost.shared.requests.apis import measure
from waypost.shared.trust import ManifestKeeper, Trusted
from waypost.validator.config.manifests import CanaryConfig, CandidateConfig
from waypost.validator.dialects.adapter import InboundRequest
from waypost.validator.lane import Lane, is_large
from waypost.validator.manifest.active import ActiveManifest
from waypost.validator.records.compare import CONFIDENCE, share_difference
from waypost.validator.telemetry.counts import Counts, Families
from waypost.validator.whole_files import replace_file

__all__ = ["Candidate", "Tally", "shadow_of", "tallied", "worse"]

logger = logging.getLogger(__name__)

SHARES = 10_000
SHADOW, CANARY = "waypost.shadow", "waypost.canary"  # salts of their own: other callers each


class Tally(Struct, frozen=True):
    """What one arm has come to since the candidate took its place."""

    requests: float = 0
    failed: float = 0
    refused: float = 0
    rated: float = 0
    bad: float = 0
    paid: float = 0
    cost_nusd: float = 0
    cost_squares: float = 0


def tallied(record: DecisionRecord) -> Tally:
    """Return what a request that has ended adds to its arm."""
    fate = fate_of(record)
    cost = record.cost_nusd if fate == "answered" else 0
    return Tally(
        requests=1,
        failed=fate == "failed",
        refused=fate == "refused",
        paid=fate == "answered",
        cost_nusd=cost,
        cost_squares=cost**2,
    )


def worse(main: Tally, canary: Tally, config: CanaryConfig) -> str | None:
    """Return in what the canary is surely worse than its bounds allow; ``None`` if in nothing."""
    if canary.requests < config.min_requests or main.requests < config.min_requests:
        return None
    for name, bad, good, bound in (
        ("failures", (canary.failed, canary.requests), (main.failed, main.requests),
         config.max_failed),
        ("refusals", (canary.refused, canary.requests), (main.refused, main.requests),
         config.max_refused),
        ("bad ratings", (canary.bad, canary.rated), (main.bad, main.rated), config.max_bad),
    ):  # fmt: skip
        if bad[1] and good[1]:
            low, _ = share_difference(good, bad)
            if low > bound:
                return (
                    f"{name}: {bad[0]:.0f} of {bad[1]:.0f} against {good[0]:.0f} of {good[1]:.0f}"
                )
    if main.paid and canary.paid:
        (mean, error), (canary_mean, canary_error) = _mean(main), _mean(canary)
        spread = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * sqrt(error + canary_error)
        if canary_mean - mean - spread > config.max_cost * mean:
            return f"cost: {canary_mean / mean - 1:+.0%} a request" if mean else "cost"
    return None


def _mean(tally: Tally) -> tuple[float, float]:
    """Return the mean cost, and the square of its standard error."""
    mean = tally.cost_nusd / tally.paid
    return mean, max(0.0, tally.cost_squares / tally.paid - mean**2) / tally.paid


def shadow_of(
    candidate: ActiveManifest,
    inbound: InboundRequest,
    facts: Facts,
    proposal: Proposal | None,
    record: DecisionRecord,
) -> Shadow:
    """Return what ``candidate`` would have decided; its price is put to the tokens used."""
    own = measure(
        inbound.endpoint, inbound.request, body=inbound.body, reader=candidate.compiled.reader
    )
    seen = facts.measured
    measured = structs.replace(
        own,
        out_of_service=(*seen.out_of_service, *candidate.unserved),
        untranslatable=seen.untranslatable,
        data_classes=seen.data_classes,
        affordable_nusd=seen.affordable_nusd,
    )
    decision = decide(
        candidate.compiled,
        structs.replace(facts, measured=measured),
        # It names a manifest of the channel in force; a candidate's versions are counted apart.
        None if proposal is None else structs.replace(proposal, manifest=None),
    )
    model = candidate.compiled.models.get(decision.model or "")
    return Shadow(
        manifest_version=candidate.version,
        manifest_digest=candidate.digest,
        verdict=decision.verdict,
        reason=decision.reason,
        model=decision.model,
        route=decision.route,
        cost_nusd=None
        if model is None or record.usage is None
        else bill(model.price, record.usage),
    )


class _RolledBack(Struct):
    digest: str
    why: str


class Candidate:
    """The candidate of one process.

    Attributes:
        keeper: of its manifest.
        active: what is on trial; ``None`` until it is there.
        rolled_back: why the canary of this very manifest is over; ``None`` while it is not.
        send: how many requests are also sent where it would; ``None``: none.
        sending: those under way.
    """

    def __init__(
        self,
        config: CandidateConfig,
        *,
        keeper: ManifestKeeper,
        prepare: Callable[[Trusted], ActiveManifest],
        counts: Counts,
        lane: Lane,
    ) -> None:
        """Args:
        prepare: makes a manifest ready to serve; raises PolicyError if it cannot be.
        lane: where what takes long is decided along.
        """
        self._config = config
        self._counts = counts
        self.keeper = keeper
        self._prepare = prepare
        self._lane = lane
        self.active: ActiveManifest | None = None
        self._admitted: Trusted | None = None
        self._refused: str | None = None  # digest of the last that could not be served
        self.rolled_back: str | None = None
        self.send = config.send
        self.sending: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Give up what is still being sent in the shadow."""
        for task in self.sending:
            task.cancel()
        await asyncio.gather(*self.sending, return_exceptions=True)

    async def refresh(self, client: httpx.AsyncClient) -> None:
        """Ask once for a newer candidate, which ``take_over`` then has. Never raises."""
        try:
            if self._config.url is None:
                await to_thread.run_sync(self.keeper.load)
            else:
                await self.keeper.arefresh(client)
        except TrustError as exc:
            if self.active is None:
                logger.warning("no candidate: %s: %s", exc.code, exc)

    def take_over(self) -> bool:
        """Have the keeper's manifest on trial; return whether it is another than before."""
        trusted = self.keeper.current
        if trusted is None or self._admitted is trusted:
            return False
        self._admitted = trusted
        is_new = self.active is None or self.active.digest != trusted.policy_digest
        try:
            active = self._prepare(trusted)
        except PolicyError as exc:
            if self._refused != trusted.policy_digest:
                logger.error("candidate v%d refused: %s", trusted.policy.version, exc)
            self._refused = trusted.policy_digest
            return False
        self.active = active
        if is_new:
            self.rolled_back = None
            if active.unserved:
                logger.warning(
                    "candidate v%d has models whose provider is not in validator.yaml, which it"
                    " never chooses: %s",
                    active.version,
                    active.lacking,
                )
            logger.info("manifest v%d of channel %s is on trial", self.active.version,
                        self._config.channel)  # fmt: skip
        return is_new

    def serves(self, cohort: int, now: float) -> ActiveManifest | None:
        """Return the candidate if it serves this caller."""
        canary, active = self._config.canary, self.active
        if canary is None or active is None or self.rolled_back is not None:
            return None
        if now >= active.refuse_from or place(CANARY, cohort) >= canary.share * SHARES:
            return None
        return active

    def shadows(self, cohort: int) -> ActiveManifest | None:
        """Return the candidate if it decides along for this caller."""
        share = self._config.shadow_share
        return self.active if share and place(SHADOW, cohort) < share * SHARES else None

    async def with_shadow(
        self, record: DecisionRecord, inbound: InboundRequest, cohort: int
    ) -> DecisionRecord:
        """Return the record with what the candidate would have decided, if it is asked."""
        if record.facts is None or record.is_canary:
            return record
        active = self.shadows(cohort)
        if active is None:
            return record
        work = partial(shadow_of, active, inbound, record.facts, record.proposal, record)
        # What it measures by may take milliseconds for each request.
        is_slow = active.compiled.reader.is_slow or is_large(inbound.body)
        shadow = await self._lane.run(work) if is_slow else work()
        return structs.replace(record, shadow=shadow)

    def note(self, record: DecisionRecord) -> None:
        """Count a request in its arm."""
        self._add(record, tallied(record))

    def rated(self, record: DecisionRecord, feedback: Feedback) -> None:
        """Count a rating in the arm of its request."""
        self._add(record, Tally(rated=1, bad=feedback.rating == "bad"))

    def _add(self, record: DecisionRecord, more: Tally) -> None:
        if self.active is None:
            return
        # A canary of another manifest has a trial of its own, which is over.
        trial = record.manifest_digest if record.is_canary else self.active.digest
        self._counts.trial(trial or "", _arm(record.is_canary), structs.astuple(more))

    def judge(self, families: Families) -> None:
        """Roll back if the canary has to be, or if another process has done so.

        Args:
            families: the counts of all workers.
        """
        canary, active = self._config.canary, self.active
        if canary is None or active is None or self.rolled_back is not None:
            return
        why = _told(self._config.state, active.digest)
        if why is None:
            trials = families.get("trial", {})
            main, trial = (
                Tally(*trials.get((active.digest, _arm(is_canary)), ()))
                for is_canary in (False, True)
            )
            why = worse(main, trial, canary)
            if why is None:
                return
            _tell(self._config.state, _RolledBack(active.digest, why))
        self.rolled_back = why
        logger.error("canary v%d is rolled back, for %s", active.version, why)


def _arm(is_canary: bool) -> str:
    return "canary" if is_canary else "main"


def _told(path: Path, digest: str) -> str | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_RolledBack)
    except (OSError, msgspec.MsgspecError):
        return None
    return found.why if found.digest == digest else None


def _tell(path: Path, outcome: _RolledBack) -> None:
    try:
        replace_file(path, msgspec.json.encode(outcome))
    except OSError as exc:
        logger.error("the roll-back cannot be told to other workers: %s", exc)
