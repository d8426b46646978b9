"""What every request of one validator process uses: manifest, keys, budgets, connections.

Another manifest takes over by one assignment, whole or not at all; what cannot be refreshed is
logged, and the last good one goes on until its grace is over.
"""

import asyncio
import hmac
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import httpx
from anyio import to_thread
from msgspec import structs

from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.errors import PolicyError, RefusalError, StoreError, TrustError
from waypost.shared.money import format_usd
from waypost.shared.records import DecisionRecord
from waypost.shared.trust import (
    Lapse,
    LapseTeller,
    ManifestKeeper,
    Trusted,
    lapses,
    with_policy_of,
)
from waypost.shared.trust.expiry import mend_of
from waypost.shared.wire.trace_context import TraceContext, begin
from waypost.validator.access.dpop import ProofChecker
from waypost.validator.access.seen_once import SeenOnce
from waypost.validator.config import ValidatorConfig
from waypost.validator.detectors import Detectors
from waypost.validator.dialects.adapter import InboundRequest
from waypost.validator.lane import Lane, is_large
from waypost.validator.ledger import Ledger
from waypost.validator.ledger.base import HAS_FORGOTTEN
from waypost.validator.ledger.rebuild import rebuild
from waypost.validator.ledger.webhook import BudgetWebhook
from waypost.validator.manifest.active import ActiveManifest, Principal, Target
from waypost.validator.manifest.canary import Candidate
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.records import RecordSink, RecordStore
from waypost.validator.records.base import records_between
from waypost.validator.records.policies import policy_of
from waypost.validator.records.prompts import newest_message, redacted, redactor
from waypost.validator.records.repeats import Repeats
from waypost.validator.telemetry.counts import Counts, Families, added, encode
from waypost.validator.telemetry.scrubber import Scrubber
from waypost.validator.telemetry.workers import Workers
from waypost.validator.upstream.breaker import ANYONE, Witness
from waypost.validator.upstream.provider import Upstream
from waypost.validator.upstream.retry_budget import ExtraBudget

if TYPE_CHECKING:
    from waypost.validator.telemetry.tracing import Tracer

__all__ = ["Services"]

logger = logging.getLogger(__name__)

KEY_REFRESH_S = 30.0  # how often unknown keys may make us look for newer issuers
SWEEP_S = 10.0
TELL_S = 2.0
JITTER = 0.2
MAX_CALLERS = 10_000


class Services:
    """One validator process. The clock and the random numbers (0 to 1) are given to it.

    Attributes:
        is_stopping: whether the validator will end soon, so that it should be sent no more.
        is_cut: whether it ends now, and with it all that is under way.
        under_way: what waits for a provider, or for a caller to read.
    """

    def __init__(
        self,
        config: ValidatorConfig,
        *,
        keeper: ManifestKeeper,
        ledger: Ledger,
        records: RecordSink,
        store: RecordStore,
        upstreams: Mapping[str, Upstream],
        detectors: Detectors,
        pseudonym_key: bytes,
        seen: SeenOnce,
        client: httpx.AsyncClient,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        rng: Callable[[], float],
        workers: Workers,
        metrics_token: str | None,
        tracer: "Tracer | None",
        receipts: ReceiptKeys | None,
        console_token: str | None,
    ) -> None:
        self.config = config
        self.keeper = keeper
        self.ledger = ledger
        self.records = records
        self.store = store
        self.upstreams = upstreams
        self.detectors = detectors
        self.pseudonym_key = pseudonym_key
        self.seen = seen
        self.proofs = _proof_checker(config, pseudonym_key)
        self.console_token = console_token
        self.clock = clock
        self.monotonic = monotonic
        self.rng = rng
        self.principals: dict[int, Principal] = {}
        self.repeats = Repeats()
        self.counts = Counts()
        self.counts.expired(0)
        self.workers = workers
        self.metrics_token = metrics_token
        self.lane = Lane()
        self.is_stopping = self.is_cut = False
        self.under_way: set[asyncio.Task[object]] = set()
        self._share: Callable[[str, bytes], Awaitable[int]] | None = None
        self._told_changes: dict[str, int] = {}
        self._hedges: dict[tuple[str, int], ExtraBudget] = {}
        self.tracer = tracer
        self.receipts = receipts
        self.candidate: Candidate | None = None
        self.webhook: BudgetWebhook | None = None
        self.scrubber = Scrubber(())
        self._redactor = redactor(config.detectors) if config.records.prompts else None
        self._client = client
        self.refused: PolicyError | None = None  # why the newest manifest is not served
        self._active: ActiveManifest | None = None
        self._admitted: Trusted | None = None
        self._lapse_teller = LapseTeller()
        self._refreshing = asyncio.Lock()
        self._looked_for_keys_at = -KEY_REFRESH_S
        self._told: str | None = None
        self._cache_changed_at = 0

    # ── the manifest ───────────────────────────────────────────────────────────────────────

    def active(self, now: float) -> ActiveManifest:
        """Return the manifest to serve ``now``.

        Raises:
            RefusalError: ``manifest_missing``, ``manifest_refused``, or ``manifest_expired``
                beyond its grace.
        """
        active = self._active
        if active is None:
            raise self._nothing_to_serve()
        if now >= active.refuse_from:
            raise RefusalError(
                f"Manifest v{active.version} has expired, and no newer one came, so nothing is"
                f" served: {mend_of(_first_to_lapse(active.trusted))}.",
                code="manifest_expired",
            )
        return active

    def _nothing_to_serve(self) -> RefusalError:
        if self.refused is not None:
            return RefusalError(
                "This validator has no manifest that it can serve; its log and /readyz say why.",
                code="manifest_refused",
            )
        why = self.keeper.last_error
        if why is not None and why.code == "expired":
            return RefusalError(
                f"This validator has only a manifest that expired: {mend_of(why.role)}.",
                code="manifest_expired",
            )
        return RefusalError(
            "This validator has no manifest yet, so it can serve nothing; try again shortly.",
            code="manifest_missing",
        )

    async def take_over(self) -> int:
        """Serve what the keepers hold now, if that is something new and can be served.

        Returns:
            How many of the other workers do not use it yet: they are waited for, a while.
        """
        is_new = self._swap() | self._swap_candidate()
        pending = await self._tell_others()
        if is_new:
            await self.keep_policies()
        return pending

    def _swap(self) -> bool:
        """Serve what the keeper holds now; return whether that is another manifest."""
        trusted = self.keeper.current
        if trusted is None:
            if self._active is not None:
                logger.error("manifest v%d was signed with a revoked key", self._active.version)
            self._active = self._admitted = self.refused = None
            return False
        if self._admitted is trusted:
            return False
        self._admitted = trusted
        try:
            active = self._ready(trusted)
        except PolicyError as exc:
            self._refuse(trusted, exc)
            return False
        self.refused = None
        before = self._active
        if active.unserved and (before is None or before.digest != active.digest):
            logger.warning(
                "manifest v%d has models whose provider is not in validator.yaml, which nobody is"
                " served by: %s",
                active.version,
                active.lacking,
            )
        undefined = self.detectors.undefined(trusted.policy.data_classes)
        if undefined:
            logger.error(
                "detectors raise data classes that manifest v%d does not define: %s; requests in"
                " which they are found are refused. Define them under data_classes in policy.yaml,"
                " or remove their kinds from detectors in validator.yaml",
                active.version,
                ", ".join(undefined),
            )
        if self.proofs is None:
            for issuer in trusted.issuers.issuers:
                if issuer.dpop == "required":
                    logger.error(
                        "%s binds its tokens to keys, which cannot be checked without the section"
                        " dpop in validator.yaml; they are refused",
                        issuer.iss,
                    )
        self._active = active
        self.principals.clear()
        self._know_names()
        logger.info("serving manifest v%d of channel %s", active.version, self.config.channel)
        return True

    def _ready(self, trusted: Trusted) -> ActiveManifest:
        return ActiveManifest(
            trusted,
            self.upstreams,
            budgets=self.config.budgets,
            audience=self.config.audience,
            grace_s=self.config.manifest.grace_s,
        )

    def _refuse(self, trusted: Trusted, why: PolicyError) -> None:
        """Keep what is served, as far as it can be: ``trusted`` cannot be."""
        if self.refused is None or self.refused.message != why.message:
            logger.error("manifest v%d refused: %s", trusted.policy.version, why)
        self.refused = why
        kept = self._active
        if kept is None or why.code != "providers_missing":
            return
        if not kept.trusted.authors <= trusted.authors:
            # Whose key was taken away may have signed it.
            logger.error("manifest v%d is served no more: its signers changed", kept.version)
            self._active = None
            return
        # Its policy alone cannot be served: who may ask, and until when, is as it says.
        self._active = self._ready(with_policy_of(trusted, kept.trusted))
        self.principals.clear()

    async def refresh(self) -> None:
        """Ask the edge once for a newer manifest; a failure changes nothing but the log."""
        async with self._refreshing:
            try:
                if self.config.manifest.url is None:
                    await self._reload()
                else:
                    await self.keeper.arefresh(self._client)
            except TrustError as exc:
                # One node of a CDN that lags for moments is no news.
                lags = exc.code == "older_than_seen" and not self.keeper.is_held_back(self.clock())
                if exc.code != self._told and not lags:
                    logger.warning("manifest not refreshed: %s: %s", exc.code, exc)
                    self._told = exc.code
            else:
                self._told = None
            await self.take_over()
            if self.candidate is not None:
                await self.candidate.refresh(self._client)
                await self.take_over()
            self._tell_lapses()

    def _tell_lapses(self) -> None:
        """Log what has to be signed anew."""
        for lapse in self._lapse_teller.news(self.lapses()):
            logger.log(logging.ERROR if lapse.is_urgent else logging.WARNING, "%s", lapse)

    def lapses(self) -> list[Lapse]:
        """Return the roles behind the newest manifest whose signature lapses soon."""
        newest = self.keeper.current
        return [] if newest is None else lapses(newest.expires, self.clock())

    # ── the other workers ──────────────────────────────────────────────────────────────────

    async def share_by(self, share: Callable[[str, bytes], Awaitable[int]]) -> None:
        """Let the other workers have, by ``share``, what this one has verified and will."""
        self._share = share
        await self._tell_others()

    async def _tell_others(self) -> int:
        pending = 0
        if self._share is not None:
            for what, keeper in self._keepers().items():
                changes = keeper.changes
                if changes != self._told_changes.get(what, 0):
                    self._told_changes[what] = changes
                    pending += await self._share(what, await to_thread.run_sync(keeper.state))
        return pending

    async def adopt(self, what: str, state: bytes) -> bool:
        """Serve what another worker verified, once it is verified here; whether it is new.

        What is new is still to be kept, by ``keep_policies``.

        Raises:
            TrustError: it is refused; it may have revoked what was served all the same.
        """
        keeper = self._keepers().get(what)
        if keeper is None:
            return False
        try:
            await to_thread.run_sync(keeper.adopt, state)
        finally:
            is_new = self._swap() if keeper is self.keeper else self._swap_candidate()
        return is_new

    def _keepers(self) -> dict[str, ManifestKeeper]:
        keepers = {"manifest": self.keeper}
        if self.candidate is not None:
            keepers["candidate"] = self.candidate.keeper
        return keepers

    def _swap_candidate(self) -> bool:
        if self.candidate is None or not self.candidate.take_over():
            return False
        self._know_names()
        return True

    async def keep_policies(self) -> None:
        """Keep the manifests beside the records that they decide."""
        trial = None if self.candidate is None else self.candidate.active
        for active in (self._active, trial):
            if active is not None:
                await self._keep_policy(active)

    def _know_names(self) -> None:
        trial = None if self.candidate is None else self.candidate.active
        self.counts.know([one.compiled.policy for one in (self._active, trial) if one is not None])

    async def _keep_policy(self, active: ActiveManifest) -> None:
        """Keep the manifest beside the records that it decides."""
        try:
            await self.store.put_policy(active.digest, active.trusted.policy_bytes)
            if active.hints_bytes is not None and active.hints_digest is not None:
                await self.store.put_policy(active.hints_digest, active.hints_bytes)
        except StoreError as exc:
            logger.error("the manifest cannot be kept for explanations: %s", exc)

    async def _reload(self) -> None:
        """Read what another worker was handed, where manifests do not come from the edge."""
        try:
            changed_at = self.config.manifest.cache.stat().st_mtime_ns
        except OSError:
            return
        if changed_at != self._cache_changed_at:
            self._cache_changed_at = changed_at
            await to_thread.run_sync(self.keeper.load)

    def note(self, record: DecisionRecord) -> None:
        """Keep and count what became of a request."""
        self.records.put(record)
        self.count(record)

    def count(self, record: DecisionRecord) -> None:
        """Count what became of a request, and tell its trace."""
        self.counts.record(record)
        if self.candidate is not None:
            self.candidate.note(record)
        if self.tracer is not None and record.trace_id is not None:
            policy = None if self._active is None else self._active.compiled.policy
            self.tracer.record(record, policy)

    def canary(self, principal: Principal, now: int) -> ActiveManifest | None:
        """Return the candidate where it serves this caller."""
        return (
            None if self.candidate is None else self.candidate.serves(principal.signed.cohort, now)
        )

    async def with_shadow(
        self, record: DecisionRecord, inbound: InboundRequest, principal: Principal
    ) -> DecisionRecord:
        """Return the record with what the candidate would have decided, if it is asked."""
        if self.candidate is None or record.facts is None or record.is_canary:
            return record
        active = self.candidate.shadows(principal.signed.cohort)
        if active is None:
            return record
        work = partial(self.candidate.shadow, active, inbound, record)
        # What it measures by may take milliseconds for each request.
        is_slow = active.compiled.reader.is_slow or is_large(inbound.body)
        shadow = await self.lane.run(work) if is_slow else work()
        return structs.replace(record, shadow=shadow)

    async def with_prompt(self, record: DecisionRecord, inbound: InboundRequest) -> DecisionRecord:
        """Return the record with the newest user message, redacted, if the operator wants it."""
        detectors = self._redactor
        if detectors is None:
            return record
        # Off the loop: detectors take milliseconds for a long message.
        prompt = await to_thread.run_sync(lambda: redacted(newest_message(inbound), detectors))
        return structs.replace(record, prompt=prompt)

    def begin_trace(self, header: bytes | None) -> TraceContext | None:
        """Return the trace of a request that has just come; ``None`` if it is not traced."""
        tracing = self.config.tracing
        if tracing is None:
            return None
        return begin(
            header, share=tracing.share, rng=self.rng(), randomness=random.getrandbits(192)
        )

    async def explained(self, record: DecisionRecord) -> CompiledPolicy | None:
        """Return the policy that a record was decided by; ``None`` if it is not kept."""
        active = self._active
        if active is not None and (active.digest, active.hints_digest) == (
            record.manifest_digest,
            record.hints_digest,
        ):
            return active.compiled
        return await policy_of(self.store, record)

    async def look_for_keys(self) -> bool:
        """Return whether a refresh was made for a key nobody knows; at most one in 30 s."""
        now = self.monotonic()
        if now - self._looked_for_keys_at < KEY_REFRESH_S:
            return False
        self._looked_for_keys_at = now
        await self.refresh()
        return True

    # ── the end ────────────────────────────────────────────────────────────────────────────

    def cut_off(self) -> None:
        """End all that is under way: each is told, paid for by what came, and recorded."""
        self.is_cut = True
        for task in self.under_way:
            task.cancel()

    # ── providers ──────────────────────────────────────────────────────────────────────────

    @property
    def trusted(self) -> Trusted | None:
        """The manifest being served; ``None`` while there is none that can be."""
        return None if self._active is None else self._active.trusted

    @property
    def unserved(self) -> tuple[str, ...]:
        """The models of the manifest being served whose provider is not configured here."""
        return () if self._active is None else self._active.unserved

    def targets(self) -> Mapping[str, Target]:
        """Return the models being served, by id."""
        return {} if self._active is None else self._active.targets

    def out_of_service(
        self,
        active: ActiveManifest,
        inbound: InboundRequest | None = None,
        *,
        account: str | None = None,
    ) -> tuple[str, ...]:
        """Return the models that cannot be sent anything at the moment.

        Args:
            inbound: what is to be sent, and for whom; ``None``: nothing in particular.
        """
        for upstream in self.upstreams.values():
            if not upstream.is_well:
                break
        else:
            return active.unserved
        now = self.monotonic()
        who = ANYONE
        for upstream in self.upstreams.values():
            for breaker in tuple(upstream.opened):
                breaker.tidy(now)
                if inbound is not None:
                    who = Witness.of(account, inbound.body)
        return active.unserved + tuple(
            name for name, target in active.targets.items() if target.refuses(now, who, inbound)
        )

    def hedges(self, route: str, percent: int) -> ExtraBudget:
        """Return how many of a route's requests may be asked twice; it begins with none."""
        budget = self._hedges.get((route, percent))
        if budget is None:
            budget = self._hedges[route, percent] = ExtraBudget(percent, saved=0.0)
        return budget

    def remember(self, principal: Principal) -> None:
        """Keep what was made of verified claims; for as long as the verifier keeps them."""
        if len(self.principals) >= MAX_CALLERS:
            self.principals.clear()
        self.principals[id(principal.claims)] = principal

    # ── upkeep ─────────────────────────────────────────────────────────────────────────────

    async def keep_fresh(self) -> None:
        """Refresh the manifest for ever, out of step with other validators."""
        while True:
            period = self.config.manifest.refresh_s
            await asyncio.sleep(period * random.uniform(1 - JITTER, 1 + JITTER))
            await self.refresh()

    async def keep_told(self) -> None:
        """Let the other workers see what this one counted, for ever."""
        while True:
            await asyncio.sleep(TELL_S)
            self.counts.lost(self.records.lost)
            try:
                await to_thread.run_sync(self.workers.publish, encode(self.counts.families))
            except OSError as exc:
                logger.error("the counts cannot be told to other workers: %s", exc)

    async def all_counts(self) -> Families:
        """Return what all workers counted; a copy, since this loop goes on counting."""
        self.counts.lost(self.records.lost)
        mine = added([self.counts.families])
        return await to_thread.run_sync(self.workers.total, mine)

    async def mend_ledger(self) -> None:
        """Enter again what the ledger's store has forgotten, where the operator wants that."""
        if HAS_FORGOTTEN not in self.ledger.risks or self.config.ledger.on_loss != "rebuild":
            return
        now = int(self.clock())
        since = self.config.budgets.calendar.month_start(now)
        try:
            entered = await rebuild(
                self.ledger,
                partial(records_between, self.store),
                self.config.budgets,
                since=since,
                until=now + 1,
            )
        except StoreError as exc:
            logger.error("the ledger is not rebuilt: %s", exc)
        else:
            logger.warning("the ledger is rebuilt: %s entered again", format_usd(entered))

    async def keep_swept(self) -> None:
        """Charge expired holds, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(1 - JITTER, 1 + JITTER))
            if self.candidate is not None:
                self.candidate.judge(await self.all_counts())
            await self.mend_ledger()
            try:
                swept = await self.ledger.sweep(now=int(self.clock()))
            except StoreError as exc:
                logger.error("expired holds not charged: %s", exc)
            else:
                if swept:
                    self.counts.expired(swept)
                    logger.warning(
                        "charged %d holds in full that nobody settled: a process ended, or the"
                        " ledger was away",
                        swept,
                    )
            try:
                await self.seen.sweep(now=int(self.clock()))
            except StoreError as exc:
                logger.error("proofs that are over not forgotten: %s", exc)


def _first_to_lapse(trusted: Trusted) -> str:
    return min(trusted.expires, key=lambda role: trusted.expires[role], default="targets")


def _proof_checker(config: ValidatorConfig, pseudonym_key: bytes) -> ProofChecker | None:
    if config.dpop is None:
        return None
    return ProofChecker(
        config.dpop.origins,
        # Of the one secret that validators of one operator share. No subject has this name.
        nonce_key=hmac.digest(pseudonym_key, b"\0nonces for proofs", "sha256"),
        requires_nonce=config.dpop.nonce == "required",
        max_age_s=config.dpop.max_age_s,
    )
