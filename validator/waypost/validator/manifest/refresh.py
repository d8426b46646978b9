"""Which manifest is served: loaded, refreshed, taken over, shared between workers.

Another manifest takes over by one assignment, whole or not at all; what cannot be refreshed is
logged, and the last good one goes on until its grace is over.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

import httpx
from anyio import to_thread

from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.errors import PolicyError, RefusalError, StoreError, TrustError
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
from waypost.validator.config import ValidatorConfig
from waypost.validator.detectors import Detectors
from waypost.validator.manifest.active import ActiveManifest, Principal, Target
from waypost.validator.manifest.canary import Candidate
from waypost.validator.manifest.sharing import Sharing
from waypost.validator.records import RecordStore
from waypost.validator.records.policies import policy_of
from waypost.validator.telemetry.counts import Counts

__all__ = ["ManifestService"]

logger = logging.getLogger(__name__)

KEY_REFRESH_S = 30.0  # how often unknown keys may make us look for newer issuers


class ManifestService:
    """The manifest that one process serves, and the candidate beside it.

    Attributes:
        keeper: verifies what comes, and remembers it.
        candidate: the policy on trial; ``None`` where there is none.
        sharing: lets the other workers have what is verified here.
        refused: why the newest manifest is not served; ``None`` while it is.
    """

    def __init__(
        self,
        config: ValidatorConfig,
        *,
        keeper: ManifestKeeper,
        candidate: Candidate | None,
        prepare: Callable[[Trusted], ActiveManifest],
        detectors: Detectors,
        store: RecordStore,
        counts: Counts,
        client: httpx.AsyncClient,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """Args:
        prepare: makes a manifest ready to serve; raises PolicyError if it cannot be.
        store: where manifests are kept beside the records that they decide.
        client: what the edge is asked by.
        """
        keepers = {"manifest": keeper}
        if candidate is not None:
            keepers["candidate"] = candidate.keeper
        self.keeper = keeper
        self.candidate = candidate
        self.sharing = Sharing(keepers)
        self.refused: PolicyError | None = None
        self._config = config
        self._prepare = prepare
        self._detectors = detectors
        self._store = store
        self._counts = counts
        self._client = client
        self._clock = clock
        self._monotonic = monotonic
        self._active: ActiveManifest | None = None
        self._admitted: Trusted | None = None
        self._lapse_teller = LapseTeller()
        self._refreshing = asyncio.Lock()
        self._looked_for_keys_at = -KEY_REFRESH_S
        self._told: str | None = None
        self._cache_changed_at = 0

    # ── what is served ─────────────────────────────────────────────────────────────────────

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

    def canary(self, principal: Principal, now: int) -> ActiveManifest | None:
        """Return the candidate where it serves this caller."""
        if self.candidate is None:
            return None
        return self.candidate.serves(principal.signed.cohort, now)

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

    def lapses(self) -> list[Lapse]:
        """Return the roles behind the newest manifest whose signature lapses soon."""
        newest = self.keeper.current
        return [] if newest is None else lapses(newest.expires, self._clock())

    # ── another takes over ─────────────────────────────────────────────────────────────────

    async def load(self) -> None:
        """Serve what was served last, then look for what is newer."""
        await to_thread.run_sync(self.keeper.load)
        await self.take_over()
        await self.refresh()

    async def take_over(self) -> int:
        """Serve what the keepers hold now, if that is something new and can be served.

        Returns:
            How many of the other workers do not use it yet: they are waited for, a while.
        """
        is_new = self._swap() | self._swap_candidate()
        pending = await self.sharing.tell()
        if is_new:
            await self.keep_policies()
        return pending

    async def adopt(self, what: str, state: bytes) -> bool:
        """Serve what another worker verified, once it is verified here; whether it is new.

        What is new is still to be kept, by ``keep_policies``.

        Raises:
            TrustError: it is refused; it may have revoked what was served all the same.
        """
        keeper = self.sharing.keepers.get(what)
        if keeper is None:
            return False
        try:
            await to_thread.run_sync(keeper.adopt, state)
        finally:
            is_new = self._swap() if keeper is self.keeper else self._swap_candidate()
        return is_new

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
            active = self._prepare(trusted)
        except PolicyError as exc:
            self._refuse(trusted, exc)
            return False
        self.refused = None
        self._warn_of(active)
        self._active = active
        self._know_names()
        logger.info("serving manifest v%d of channel %s", active.version, self._config.channel)
        return True

    def _swap_candidate(self) -> bool:
        if self.candidate is None or not self.candidate.take_over():
            return False
        self._know_names()
        return True

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
        self._active = self._prepare(with_policy_of(trusted, kept.trusted))

    def _warn_of(self, active: ActiveManifest) -> None:
        """Log what of the manifest this validator's own settings leave unserved."""
        before = self._active
        if active.unserved and (before is None or before.digest != active.digest):
            logger.warning(
                "manifest v%d has models whose provider is not in validator.yaml, which nobody is"
                " served by: %s",
                active.version,
                active.lacking,
            )
        undefined = self._detectors.undefined(active.trusted.policy.data_classes)
        if undefined:
            logger.error(
                "detectors raise data classes that manifest v%d does not define: %s; requests in"
                " which they are found are refused. Define them under data_classes in policy.yaml,"
                " or remove their kinds from detectors in validator.yaml",
                active.version,
                ", ".join(undefined),
            )
        if self._config.dpop is None:
            for issuer in active.trusted.issuers.issuers:
                if issuer.dpop == "required":
                    logger.error(
                        "%s binds its tokens to keys, which cannot be checked without the section"
                        " dpop in validator.yaml; they are refused",
                        issuer.iss,
                    )

    def _all_active(self) -> list[ActiveManifest]:
        trial = None if self.candidate is None else self.candidate.active
        return [one for one in (self._active, trial) if one is not None]

    def _know_names(self) -> None:
        self._counts.know([one.compiled.policy for one in self._all_active()])

    # ── something newer ────────────────────────────────────────────────────────────────────

    async def refresh(self) -> None:
        """Ask the edge once for a newer manifest; a failure changes nothing but the log."""
        async with self._refreshing:
            try:
                if self._config.manifest.url is None:
                    await self._reload()
                else:
                    await self.keeper.arefresh(self._client)
            except TrustError as exc:
                # One node of a CDN that lags for moments is no news.
                lags = exc.code == "older_than_seen" and not self.keeper.is_held_back(self._clock())
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

    async def look_for_keys(self) -> bool:
        """Return whether a refresh was made for a key nobody knows; at most one in 30 s."""
        now = self._monotonic()
        if now - self._looked_for_keys_at < KEY_REFRESH_S:
            return False
        self._looked_for_keys_at = now
        await self.refresh()
        return True

    async def _reload(self) -> None:
        """Read what another worker was handed, where manifests do not come from the edge."""
        try:
            changed_at = self._config.manifest.cache.stat().st_mtime_ns
        except OSError:
            return
        if changed_at != self._cache_changed_at:
            self._cache_changed_at = changed_at
            await to_thread.run_sync(self.keeper.load)

    def _tell_lapses(self) -> None:
        """Log what has to be signed anew."""
        for lapse in self._lapse_teller.news(self.lapses()):
            logger.log(logging.ERROR if lapse.is_urgent else logging.WARNING, "%s", lapse)

    # ── kept for explanations ──────────────────────────────────────────────────────────────

    async def keep_policies(self) -> None:
        """Keep the manifests beside the records that they decide."""
        for active in self._all_active():
            try:
                await self._store.put_policy(active.digest, active.trusted.policy_bytes)
                if active.hints_bytes is not None and active.hints_digest is not None:
                    await self._store.put_policy(active.hints_digest, active.hints_bytes)
            except StoreError as exc:
                logger.error("the manifest cannot be kept for explanations: %s", exc)

    async def explained(self, record: DecisionRecord) -> CompiledPolicy | None:
        """Return the policy that a record was decided by; ``None`` if it is not kept."""
        active = self._active
        if active is not None and (active.digest, active.hints_digest) == (
            record.manifest_digest,
            record.hints_digest,
        ):
            return active.compiled
        return await policy_of(self._store, record)


def _first_to_lapse(trusted: Trusted) -> str:
    return min(trusted.expires, key=lambda role: trusted.expires[role], default="targets")
