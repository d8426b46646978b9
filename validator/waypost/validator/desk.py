"""What every request of one validator process uses: manifest, keys, budgets, connections.

``Serving`` is everything that depends on the manifest alone, computed when one takes over and
swapped by one assignment; a request works with the ``Serving`` it started with.
"""

import asyncio
import hmac
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING

import httpx
import msgspec
from anyio import to_thread
from msgspec import Struct, structs

from waypost.shared.compiled import CompiledPolicy
from waypost.shared.contracts import (
    Claims,
    Facts,
    Model,
    Proposal,
    Signed,
)
from waypost.shared.errors import PolicyError, RefusalError, StoreError, TrustError
from waypost.shared.money import Price
from waypost.shared.records import DecisionRecord
from waypost.shared.trust import ManifestKeeper, Trusted
from waypost.validator.budget_webhook import BudgetWebhook
from waypost.validator.config import ConfigError, ValidatorConfig
from waypost.validator.config.budgets import Budgets
from waypost.validator.config.callers import load_pseudonym_key
from waypost.validator.config.stores import ReplayConfig
from waypost.validator.detectors import Detectors, load_detectors
from waypost.validator.dpop import ProofChecker
from waypost.validator.ledger import Ledger, Scope
from waypost.validator.ledger.opening import open_ledger
from waypost.validator.receipts.keys import ReceiptKeys, load_keys
from waypost.validator.receipts.log import ReceiptLog
from waypost.validator.records import RecordSink, RecordStore
from waypost.validator.records.opening import open_store
from waypost.validator.records.policies import policy_of
from waypost.validator.records.prompts import newest_message, redacted, redactor
from waypost.validator.records.repeats import Repeats
from waypost.validator.records.spill import Spill
from waypost.validator.replay import SeenOnce, SqliteSeen
from waypost.validator.resilience.breaker import Breaker
from waypost.validator.resilience.budget import ExtraBudget
from waypost.validator.resilience.keys import LONGEST_WAIT_S
from waypost.validator.speech import Asked, Native, Speech
from waypost.validator.telemetry.context import TraceContext, begin
from waypost.validator.telemetry.counts import Counts, encode
from waypost.validator.telemetry.siblings import Siblings
from waypost.validator.tokens import TokenVerifier
from waypost.validator.upstream import Upstream

if TYPE_CHECKING:
    from waypost.validator.candidate import Candidate
    from waypost.validator.telemetry.tracing import Tracer

__all__ = ["Caller", "Desk", "Serving", "Speaking", "Target", "open_desk"]

logger = logging.getLogger(__name__)

KEY_REFRESH_S = 30.0  # how often unknown keys may make us look for newer issuers
SWEEP_S = 10.0
TELL_S = 2.0
JITTER = 0.2
MAX_CALLERS = 10_000
MIB = 2**20
MIN_CONSOLE_TOKEN_CHARS = 24  # at random they outlast any guessing


class Caller(Struct, frozen=True):
    """Who asks, as the token says it, made ready for what follows.

    Attributes:
        account: who pays.
        scopes: what its requests count for, whatever serves them; the account first.
        may_spend: whether there is a limit, or the operator said that none is needed.
    """

    claims: Claims
    subject: str
    signed: Signed
    account: str
    scopes: tuple[Scope, ...]
    may_spend: bool


class Target(Struct, frozen=True):
    """A model and the provider that serves it.

    Attributes:
        scopes: what requests count for that it serves.
    """

    model: Model
    upstream: Upstream
    breaker: Breaker
    scopes: tuple[Scope, ...]

    def refuses(self, now: float) -> bool:
        """Whether it can be sent nothing now, nor after a wait that a request can afford."""
        if self.breaker.refuses(now):
            return True
        until = self.upstream.keys.rests_until(self.model.name, now)
        return until is not None and until > now + LONGEST_WAIT_S


class Speaking(Struct, frozen=True):
    """How the models of a manifest can be asked by one API.

    Attributes:
        mute: the models that cannot, whatever is asked.
        translated: what may have no words for a request → the models it is for.
    """

    mute: tuple[str, ...]
    translated: tuple[tuple[Speech, tuple[str, ...]], ...]


class Serving:
    """One manifest, ready to serve.

    Attributes:
        routes: by name.
        targets: by model id. A model whose provider is not configured here is not among them.
        unserved: the models that are not.
        proposals: what naming a model in the body means.
        refuse_from: Unix seconds after which it must not be served on any more.
    """

    def __init__(
        self,
        trusted: Trusted,
        upstreams: Mapping[str, Upstream],
        *,
        budgets: Budgets,
        audience: str,
        grace_s: int,
    ) -> None:
        """Raises PolicyError (``issuers_invalid``) when no token could be checked with it."""
        self.trusted = trusted
        self.compiled: CompiledPolicy = trusted.compiled
        self.version = trusted.policy.version
        self.digest = trusted.policy_digest
        self.verifier = TokenVerifier(trusted.issuers, audience=audience)
        self.refuse_from = trusted.expires_at + grace_s
        self.targets = {
            model.id: Target(
                model,
                upstream,
                upstream.breaker(model),
                budgets.target(provider=model.provider, model=model.id),
            )
            for model in trusted.policy.models
            if (upstream := upstreams.get(model.provider)) is not None
        }
        self.routes = {route.name: route for route in trusted.policy.routes}
        self.unserved = tuple(
            model.id for model in trusted.policy.models if model.id not in self.targets
        )
        self.proposals = {model.id: Proposal(model=model.id) for model in trusted.policy.models}
        self.hints_bytes = None if trusted.hints is None else msgspec.json.encode(trusted.hints)
        self.hints_digest = (
            None if self.hints_bytes is None else sha256(self.hints_bytes).hexdigest()
        )
        self.header = (b"waypost-manifest", b"%d" % self.version)
        self._best: dict[int, Price] = {}
        self._speaking: dict[str, Speaking] = {}

    def speaking(self, endpoint: str) -> Speaking:
        """Return how the models can be asked by the API ``endpoint``."""
        speaking = self._speaking.get(endpoint)
        if speaking is None:
            speaking = self._speaking[endpoint] = self._learn(endpoint)
        return speaking

    def _learn(self, endpoint: str) -> Speaking:
        mute: list[str] = []
        translated: dict[str, tuple[Speech, list[str]]] = {}
        for name, target in self.targets.items():
            speech = target.upstream.speeches.get(endpoint)
            if speech is None:
                mute.append(name)
            elif not isinstance(speech, Native):
                # Providers that are spoken to alike are asked alike.
                _, names = translated.setdefault(speech.kind, (speech, []))
                names.append(name)
        return Speaking(
            tuple(mute), tuple((speech, tuple(names)) for speech, names in translated.values())
        )

    def unrouted_price(self, facts: Facts) -> Price | None:
        """Return the price of the best-rated model that could have served ``facts``.

        That is what everybody sends everything to where nothing routes.
        """
        mask, _ = self.compiled.admissible(facts)
        price = self._best.get(mask)
        if price is None and mask:
            bits = self.compiled.bits
            admissible = [model for model in self.compiled.models.values() if bits[model.id] & mask]
            best = max(admissible, key=lambda m: (m.quality, m.price.output_nusd_per_mtok, m.id))
            price = self._best[mask] = best.price
        return price


class Desk:
    """One validator process. Time and luck (0 to 1) come from what it was given."""

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
        luck: Callable[[], float],
        siblings: Siblings,
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
        self.luck = luck
        self.callers: dict[int, Caller] = {}
        self.repeats = Repeats()
        self.counts = Counts()
        self.siblings = siblings
        self.metrics_token = metrics_token
        self._hedges: dict[tuple[str, int], ExtraBudget] = {}
        self.tracer = tracer
        self.receipts = receipts
        self.candidate: Candidate | None = None
        self.webhook: BudgetWebhook | None = None
        self._redactor = redactor(config.detectors) if config.records.prompts else None
        self._client = client
        self._serving: Serving | None = None
        self._refreshing = asyncio.Lock()
        self._looked_for_keys_at = -KEY_REFRESH_S
        self._told: str | None = None
        self._cache_changed_at = 0

    # ── the manifest ───────────────────────────────────────────────────────────────────────

    def serving(self, now: float) -> Serving:
        """Return the manifest to serve ``now``.

        Raises:
            RefusalError: ``manifest_missing``, or ``manifest_expired`` beyond its grace.
        """
        serving = self._serving
        if serving is None:
            raise RefusalError(
                "This validator has no manifest yet, so it can serve nothing; try again shortly.",
                code="manifest_missing",
            )
        if now >= serving.refuse_from:
            raise RefusalError(
                f"Manifest v{serving.version} has expired and no newer one could be had;"
                " nothing is served on it any more.",
                code="manifest_expired",
            )
        return serving

    async def take_over(self) -> None:
        """Serve what the keeper holds now, if that is something new and can be served."""
        trusted = self.keeper.current
        if trusted is None:
            if self._serving is not None:
                logger.error("manifest v%d was signed with a revoked key", self._serving.version)
            self._serving = None
            return
        if self._serving is not None and self._serving.trusted is trusted:
            return
        try:
            serving = Serving(
                trusted,
                self.upstreams,
                budgets=self.config.budgets,
                audience=self.config.audience,
                grace_s=self.config.manifest.grace_s,
            )
        except PolicyError as exc:
            logger.error("manifest v%d refused: %s", trusted.policy.version, exc)
            return
        if serving.unserved:
            logger.warning("no provider is configured for: %s", ", ".join(serving.unserved))
        undefined = self.detectors.undefined(trusted.policy.data_classes)
        if undefined:
            logger.error(
                "detectors raise data classes that manifest v%d does not define: %s; requests in"
                " which they are found are refused. Define them under data_classes in policy.yaml,"
                " or remove their kinds from detectors in validator.yaml",
                serving.version,
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
        self._serving = serving
        self.callers.clear()
        self._know_names()
        logger.info("serving manifest v%d of channel %s", serving.version, self.config.channel)
        await self._keep_policy(serving)

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
            await self._refresh_candidate()

    async def _refresh_candidate(self) -> None:
        candidate = self.candidate
        if candidate is None or not await candidate.refresh(self._client):
            return
        serving = candidate.serving
        if serving is None:
            return
        self._know_names()
        await self._keep_policy(serving)

    def _know_names(self) -> None:
        trial = None if self.candidate is None else self.candidate.serving
        self.counts.know([one.compiled.policy for one in (self._serving, trial) if one is not None])

    async def _keep_policy(self, serving: Serving) -> None:
        """Keep the manifest beside the records that it decides."""
        try:
            await self.store.put_policy(serving.digest, serving.trusted.policy_bytes)
            if serving.hints_bytes is not None and serving.hints_digest is not None:
                await self.store.put_policy(serving.hints_digest, serving.hints_bytes)
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
        self.counts.record(record)
        if self.candidate is not None:
            self.candidate.note(record)
        if self.tracer is not None and record.trace_id is not None:
            policy = None if self._serving is None else self._serving.compiled.policy
            self.tracer.record(record, policy)

    def canary(self, caller: Caller, now: int) -> Serving | None:
        """Return the candidate where it serves this caller."""
        return None if self.candidate is None else self.candidate.serves(caller.signed.cohort, now)

    def with_shadow(self, record: DecisionRecord, asked: Asked, caller: Caller) -> DecisionRecord:
        """Return the record with what the candidate would have decided, if it is asked."""
        if self.candidate is None or record.facts is None or record.is_canary:
            return record
        serving = self.candidate.shadows(caller.signed.cohort)
        if serving is None:
            return record
        shadow = self.candidate.shadow(serving, asked, record)
        return structs.replace(record, shadow=shadow)

    async def with_prompt(self, record: DecisionRecord, asked: Asked) -> DecisionRecord:
        """Return the record with the newest user message, redacted, if the operator wants it."""
        detectors = self._redactor
        if detectors is None:
            return record
        # Off the loop: detectors take milliseconds for a long message.
        prompt = await to_thread.run_sync(lambda: redacted(newest_message(asked), detectors))
        return structs.replace(record, prompt=prompt)

    def begin_trace(self, header: bytes | None) -> TraceContext | None:
        """Return the trace of a request that has just come; ``None`` if it is not traced."""
        tracing = self.config.tracing
        if tracing is None:
            return None
        return begin(
            header, share=tracing.share, luck=self.luck(), randomness=random.getrandbits(192)
        )

    async def explained(self, record: DecisionRecord) -> CompiledPolicy | None:
        """Return the policy that a record was decided by; ``None`` if it is not kept."""
        serving = self._serving
        if serving is not None and (serving.digest, serving.hints_digest) == (
            record.manifest_digest,
            record.hints_digest,
        ):
            return serving.compiled
        return await policy_of(self.store, record)

    async def look_for_keys(self) -> bool:
        """Return whether a refresh was made for a key nobody knows; at most one in 30 s."""
        now = self.monotonic()
        if now - self._looked_for_keys_at < KEY_REFRESH_S:
            return False
        self._looked_for_keys_at = now
        await self.refresh()
        return True

    # ── providers ──────────────────────────────────────────────────────────────────────────

    def targets(self) -> Mapping[str, Target]:
        """Return the models being served, by id."""
        return {} if self._serving is None else self._serving.targets

    def out_of_service(self, serving: Serving) -> tuple[str, ...]:
        """Return the models that cannot be sent anything at the moment."""
        for upstream in self.upstreams.values():
            if not upstream.is_well:
                break
        else:
            return serving.unserved
        now = self.monotonic()
        return serving.unserved + tuple(
            name for name, target in serving.targets.items() if target.refuses(now)
        )

    def hedges(self, route: str, percent: int) -> ExtraBudget:
        """Return how many of a route's requests may be asked twice; it begins with none."""
        budget = self._hedges.get((route, percent))
        if budget is None:
            budget = self._hedges[route, percent] = ExtraBudget(percent, saved=0.0)
        return budget

    def remember(self, caller: Caller) -> None:
        """Keep what was made of verified claims; for as long as the verifier keeps them."""
        if len(self.callers) >= MAX_CALLERS:
            self.callers.clear()
        self.callers[id(caller.claims)] = caller

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
            try:
                await to_thread.run_sync(self.siblings.publish, encode(self.counts.families))
            except OSError as exc:
                logger.error("the counts cannot be told to other workers: %s", exc)

    async def keep_swept(self) -> None:
        """Charge expired holds, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(1 - JITTER, 1 + JITTER))
            if self.candidate is not None:
                self.candidate.judge()
            try:
                swept = await self.ledger.sweep(now=int(self.clock()))
            except StoreError as exc:
                logger.error("expired holds not charged: %s", exc)
            else:
                if swept:
                    logger.warning("charged %d holds that nobody settled", swept)
            try:
                await self.seen.sweep(now=int(self.clock()))
            except StoreError as exc:
                logger.error("proofs that are over not forgotten: %s", exc)


@asynccontextmanager
async def open_desk(
    config: ValidatorConfig,
    *,
    environment: Mapping[str, str],
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    luck: Callable[[], float] = random.random,
) -> AsyncGenerator[Desk]:
    """Open everything in ``config``, serve the manifest at hand, and close it all at the end.

    Raises:
        ConfigError: a key's variable is unset, or the trusted root cannot be read.
        StoreError: ledger, records or pseudonym key cannot be opened.
    """
    async with AsyncExitStack() as stack:
        upstreams: dict[str, Upstream] = {}
        for name, provider in config.providers.items():
            api_keys = [_secret(f"provider {name}", key, environment) for key in provider.key_names]
            upstreams[name] = Upstream(name, provider, api_keys=api_keys)
            stack.push_async_callback(upstreams[name].close)
        try:
            root = config.manifest.root.read_bytes()
        except OSError as exc:
            raise ConfigError(f"the trusted root cannot be read: {exc}") from exc
        keeper = ManifestKeeper(
            url=config.manifest.url,
            channel=config.channel,
            root=root,
            cache=config.manifest.cache,
            now=clock,
            projection=config.manifest.projection,
        )
        pseudonym_key = load_pseudonym_key(config.pseudonym, environment)
        for path in (config.ledger.path, config.records.path, config.manifest.cache):
            path.parent.mkdir(parents=True, exist_ok=True)
        ledger = open_ledger(config.ledger, config.budgets, environment, monotonic=monotonic)
        stack.push_async_callback(ledger.close)
        seen = _open_seen(config.replay, environment)
        stack.push_async_callback(seen.close)
        store = await open_store(config.records, environment, clock=clock)
        stack.push_async_callback(store.close)
        try:
            spill = Spill(config.records.spill, max_bytes=config.records.spill_mib * MIB)
        except OSError as exc:
            raise StoreError(f"{config.records.spill} cannot be used: {exc}") from exc
        receipts: ReceiptKeys | None = None
        log: ReceiptLog | None = None
        if config.receipts is not None:
            receipts = load_keys(config.receipts.key, origin=config.receipts.origin)
            log = ReceiptLog(config.receipts.log, receipts)
        records = RecordSink(store, spill=spill, seal=None if log is None else log.append)
        stack.push_async_callback(records.close)
        records.resume()
        headers: dict[str, str] = {}
        if config.manifest.access_token is not None:
            token = _secret("the manifest", config.manifest.access_token, environment)
            headers["Authorization"] = f"Bearer {token}"
        metrics_token: str | None = None
        if config.metrics.token is not None:
            metrics_token = _secret("metrics", config.metrics.token, environment)
        try:
            siblings = Siblings(config.metrics.path)
        except OSError as exc:
            raise StoreError(f"{config.metrics.path} cannot be used: {exc}") from exc
        tracer = _open_tracer(config, environment)
        if tracer is not None:
            stack.push_async_callback(to_thread.run_sync, tracer.close)
        client = httpx.AsyncClient(headers=headers)
        stack.push_async_callback(client.aclose)
        desk = Desk(
            config,
            keeper=keeper,
            ledger=ledger,
            records=records,
            store=store,
            upstreams=upstreams,
            detectors=load_detectors(config.detectors),
            pseudonym_key=pseudonym_key,
            seen=seen,
            client=client,
            clock=clock,
            monotonic=monotonic,
            luck=luck,
            siblings=siblings,
            metrics_token=metrics_token,
            tracer=tracer,
            receipts=receipts if config.receipts and config.receipts.header else None,
            console_token=_console_token(config.console.token, environment),
        )
        if config.budgets.webhook is not None:
            url = _secret("the budgets' webhook", config.budgets.webhook, environment)
            desk.webhook = BudgetWebhook(url)
            stack.push_async_callback(desk.webhook.close)
        if config.candidate is not None:
            # Candidates are made of what is served, and so of this module.
            from waypost.validator.candidate import Candidate

            desk.candidate = Candidate(
                config.candidate,
                keeper=ManifestKeeper(
                    url=config.candidate.url,
                    channel=config.candidate.channel,
                    root=root,
                    cache=config.candidate.cache,
                    now=clock,
                    projection=config.manifest.projection,
                ),
                upstreams=upstreams,
                budgets=config.budgets,
                audience=config.audience,
                grace_s=config.manifest.grace_s,
            )
        await to_thread.run_sync(keeper.load)
        await desk.take_over()
        await desk.refresh()
        upkeep = (desk.keep_fresh(), desk.keep_swept(), desk.keep_told())
        tasks = [asyncio.create_task(work) for work in upkeep]
        try:
            yield desk
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task


def _open_seen(config: ReplayConfig, environment: Mapping[str, str]) -> SeenOnce:
    if config.dsn is None:
        return SqliteSeen.open(config.path)
    try:
        from waypost.validator.replay_redis import RedisSeen
    except ImportError:
        raise ConfigError(
            "replay: store: redis needs the extra: pip install waypost[redis]"
        ) from None
    return RedisSeen(_secret("replay", config.dsn, environment), prefix=config.prefix)


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


def _open_tracer(config: ValidatorConfig, environment: Mapping[str, str]) -> "Tracer | None":
    if config.tracing is None:
        return None
    try:
        # 0.2 s to import, and installed only where somebody wants it.
        from waypost.validator.telemetry.tracing import Tracer
    except ImportError as exc:
        raise ConfigError(
            f"tracing needs the extra: pip install 'waypost[otel]' ({exc.name})"
        ) from exc
    headers = {
        name: _secret(f"tracing header {name}", variable, environment)
        for name, variable in config.tracing.headers.items()
    }
    return Tracer.to(config.tracing.endpoint, headers=headers, version=version("waypost"))


def _console_token(variable: str | None, environment: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    token = _secret("the console", variable, environment)
    if len(token) < MIN_CONSOLE_TOKEN_CHARS:
        raise ConfigError(
            f"the console's token in {variable} has {len(token)} characters; it needs"
            f" {MIN_CONSOLE_TOKEN_CHARS} or more, as from: openssl rand -hex 32"
        )
    return token


def _secret(what: str, variable: str, environment: Mapping[str, str]) -> str:
    secret = environment.get(variable, "").strip()
    if not secret:
        raise ConfigError(
            f"{what} needs its key in the environment variable {variable}, which is unset; set it,"
            f" or take {what} out of validator.yaml"
        )
    if not secret.isascii() or not secret.isprintable():
        raise ConfigError(f"the key for {what} in {variable} is not printable ASCII")
    return secret
