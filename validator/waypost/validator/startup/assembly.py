"""A validator process from ``validator.yaml``: everything is opened here, and closed again.

What cannot be opened stops the start with an error that names it and never quotes a secret.
"""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import httpx
from anyio import to_thread

from waypost.shared.errors import StoreError
from waypost.shared.records import DecisionRecord
from waypost.shared.trust import ManifestKeeper
from waypost.validator.access.checks import AccessChecks
from waypost.validator.access.seen_once import SeenOnce, SqliteSeen
from waypost.validator.config import ConfigError, ValidatorConfig
from waypost.validator.config.callers import load_pseudonym_key
from waypost.validator.config.manifests import CandidateConfig, ManifestConfig
from waypost.validator.config.oversight import MetricsConfig
from waypost.validator.config.stores import PeersConfig, ReplayConfig
from waypost.validator.detectors import load_detectors
from waypost.validator.http.transports.selection import open_transport
from waypost.validator.lane import Lane
from waypost.validator.ledger.renewal import HoldRenewal
from waypost.validator.ledger.webhook import BudgetWebhook
from waypost.validator.manifest.active import ActiveManifest
from waypost.validator.manifest.canary import Candidate
from waypost.validator.manifest.refresh import ManifestService
from waypost.validator.receipts.keys import ReceiptKeys, load_keys
from waypost.validator.receipts.log import ReceiptLog
from waypost.validator.records import RecordSink, RecordStore
from waypost.validator.records.prompts import redactor
from waypost.validator.records.recorder import Recorder
from waypost.validator.records.repeats import Repeats
from waypost.validator.records.spill import Spill
from waypost.validator.services import OperatorTokens, Services, Shutdown
from waypost.validator.startup.ledger_mender import LedgerMender
from waypost.validator.startup.ledger_store import open_ledger
from waypost.validator.startup.logs import hide_in_logs
from waypost.validator.startup.record_store import open_store
from waypost.validator.startup.upkeep import Upkeep
from waypost.validator.telemetry.counts import Counts
from waypost.validator.telemetry.scrubber import Scrubber
from waypost.validator.telemetry.workers import SharedCounts, Workers
from waypost.validator.upstream.provider import OnRest, Upstream
from waypost.validator.upstream.retry_budget import HedgeBudgets
from waypost.validator.whole_files import make_once

if TYPE_CHECKING:
    from waypost.validator.telemetry.tracing import Tracer
    from waypost.validator.upstream.peers import Peers

__all__ = ["open_services"]

MIB = 2**20
MIN_CONSOLE_TOKEN_CHARS = 24  # at random they outlast any guessing


@asynccontextmanager
async def open_services(
    config: ValidatorConfig,
    *,
    environment: Mapping[str, str],
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    rng: Callable[[], float] = random.random,
) -> AsyncGenerator[Services]:
    """Open everything in ``config``, serve the manifest at hand, and close it all at the end.

    Raises:
        ConfigError: a key's variable is unset, or the trusted root cannot be read.
        StoreError: ledger, records or pseudonym key cannot be opened.
    """
    async with AsyncExitStack() as stack:
        peers = _open_peers(config, environment, monotonic)
        if peers is not None:
            stack.push_async_callback(peers.close)
        on_rest = None if peers is None else peers.note
        upstreams = _open_upstreams(config, environment, stack, on_rest)
        root = _read_root(config)
        for path in (config.ledger.path, config.records.path, config.manifest.cache):
            path.parent.mkdir(parents=True, exist_ok=True)
        pseudonym_key = load_pseudonym_key(config.pseudonym, environment)
        ledger = open_ledger(config.ledger, config.budgets, environment, monotonic=monotonic)
        stack.push_async_callback(ledger.close)
        seen = _open_seen(config.replay, environment)
        stack.push_async_callback(seen.close)
        store = await open_store(config.records, environment, clock=clock)
        stack.push_async_callback(store.close)
        receipts = None
        if config.receipts is not None:
            receipts = load_keys(config.receipts.key, origin=config.receipts.origin)
        records = _open_records(config, store, receipts)
        stack.push_async_callback(records.close)
        records.resume()
        counts = SharedCounts(Counts(), _open_workers(config), records)
        tracer = _open_tracer(config, environment)
        if tracer is not None:
            stack.push_async_callback(to_thread.run_sync, tracer.close)
        client = _open_client(config, environment)
        stack.push_async_callback(client.aclose)
        scrubber = Scrubber(_provider_keys(config, environment))
        hide_in_logs(scrubber)
        webhook = _open_webhook(config, environment)
        if webhook is not None:
            stack.push_async_callback(webhook.close)
        lane, detectors = Lane(), load_detectors(config.detectors)
        prepare = partial(
            ActiveManifest,
            upstreams=upstreams,
            budgets=config.budgets,
            audience=config.audience,
            grace_s=config.manifest.grace_s,
        )
        candidate = None
        if config.candidate is not None:
            candidate = Candidate(
                config.candidate,
                keeper=_keeper(config, config.candidate, config.candidate.channel, root, clock),
                prepare=prepare,
                counts=counts.counts,
                lane=lane,
            )
            stack.push_async_callback(candidate.close)
        manifests = ManifestService(
            config,
            keeper=_keeper(config, config.manifest, config.channel, root, clock),
            candidate=candidate,
            prepare=prepare,
            detectors=detectors,
            store=store,
            counts=counts.counts,
            client=client,
            clock=clock,
            monotonic=monotonic,
        )
        renewal = HoldRenewal(ledger, clock=clock)
        services = Services(
            config=config,
            clock=clock,
            monotonic=monotonic,
            rng=rng,
            manifests=manifests,
            recorder=Recorder(
                records,
                observers=_observers(counts.counts, manifests, tracer),
                redactor=redactor(config.detectors) if config.records.prompts else None,
            ),
            ledger=ledger,
            renewal=renewal,
            tells_cost=config.tell_cost.header or config.tell_cost.usage,
            tells_cost_in_usage=config.tell_cost.usage,
            access=AccessChecks.configured(config, seen=seen, pseudonym_key=pseudonym_key),
            upstreams=upstreams,
            detectors=detectors,
            records=records,
            store=store,
            counts=counts,
            operators=OperatorTokens(
                console=_console_token(config.console.token, environment),
                metrics=_metrics_token(config.metrics, environment),
            ),
            scrubber=scrubber,
            shutdown=Shutdown(),
            lane=lane,
            repeats=Repeats(),
            hedges=HedgeBudgets(),
            receipts=receipts if config.receipts and config.receipts.header else None,
            webhook=webhook,
        )
        upkeep = Upkeep(
            manifests,
            ledger,
            renewal,
            LedgerMender(ledger, records, store, config, clock=clock),
            seen,
            counts,
            refresh_s=config.manifest.refresh_s,
            clock=clock,
        )
        await manifests.load()
        loops = upkeep.loops()
        if peers is not None:
            loops += [peers.keep_telling(), peers.keep_listening(upstreams)]
        async with _running(loops):
            yield services


@asynccontextmanager
async def _running(works: Iterable[Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Run what never ends until the block does."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


# ── each of what is opened ─────────────────────────────────────────────────────────────────────


def _open_upstreams(
    config: ValidatorConfig,
    environment: Mapping[str, str],
    stack: AsyncExitStack,
    on_rest: OnRest | None,
) -> dict[str, Upstream]:
    _require_keys(config, environment)
    upstreams: dict[str, Upstream] = {}
    for name, provider in config.providers.items():
        api_keys = [_secret(f"provider {name}", key, environment) for key in provider.key_names]
        transport = open_transport(name, provider, environment)
        upstreams[name] = Upstream(
            name, provider, api_keys=api_keys, transport=transport, on_rest=on_rest
        )
        stack.push_async_callback(upstreams[name].close)
    return upstreams


def _provider_keys(config: ValidatorConfig, environment: Mapping[str, str]) -> list[str]:
    names = [name for provider in config.providers.values() for name in provider.key_names]
    return [environment.get(name, "").strip() for name in names]


def _read_root(config: ValidatorConfig) -> bytes:
    try:
        return config.manifest.root.read_bytes()
    except OSError as exc:
        raise ConfigError(f"the trusted root cannot be read: {exc}") from exc


def _open_records(
    config: ValidatorConfig, store: RecordStore, receipts: ReceiptKeys | None
) -> RecordSink:
    try:
        spill = Spill(config.records.spill, max_bytes=config.records.spill_mib * MIB)
    except OSError as exc:
        raise StoreError(f"{config.records.spill} cannot be used: {exc}") from exc
    log = None
    if config.receipts is not None and receipts is not None:
        log = ReceiptLog(config.receipts.log, receipts)
    return RecordSink(store, spill=spill, seal=None if log is None else log.append)


def _open_workers(config: ValidatorConfig) -> Workers:
    try:
        return Workers(config.metrics.path)
    except OSError as exc:
        raise StoreError(f"{config.metrics.path} cannot be used: {exc}") from exc


def _open_client(config: ValidatorConfig, environment: Mapping[str, str]) -> httpx.AsyncClient:
    headers: dict[str, str] = {}
    if config.manifest.access_token is not None:
        token = _secret("the manifest", config.manifest.access_token, environment)
        headers["Authorization"] = f"Bearer {token}"
    return httpx.AsyncClient(headers=headers)


def _keeper(
    config: ValidatorConfig,
    source: ManifestConfig | CandidateConfig,
    channel: str,
    root: bytes,
    clock: Callable[[], float],
) -> ManifestKeeper:
    return ManifestKeeper(
        url=source.url,
        channel=channel,
        root=root,
        cache=source.cache,
        now=clock,
        projection=config.manifest.projection,
    )


def _open_webhook(config: ValidatorConfig, environment: Mapping[str, str]) -> BudgetWebhook | None:
    variable = config.budgets.webhook
    if variable is None:
        return None
    return BudgetWebhook(_secret("the budgets' webhook", variable, environment))


def _observers(
    counts: Counts, manifests: ManifestService, tracer: "Tracer | None"
) -> list[Callable[[DecisionRecord], None]]:
    observers: list[Callable[[DecisionRecord], None]] = [counts.record]
    if manifests.candidate is not None:
        observers.append(manifests.candidate.note)
    if tracer is not None:
        trace = tracer.record

        def show(record: DecisionRecord) -> None:
            if record.trace_id is not None:
                trusted = manifests.trusted
                trace(record, None if trusted is None else trusted.compiled.policy)

        observers.append(show)
    return observers


def _open_peers(
    config: ValidatorConfig,
    environment: Mapping[str, str],
    monotonic: Callable[[], float],
) -> "Peers | None":
    where, ledger = config.peers, config.ledger
    if where is None and ledger.store == "redis" and ledger.dsn is not None:
        where = PeersConfig(dsn=ledger.dsn, prefix=ledger.prefix)
    if where is None:
        return None
    try:
        from waypost.validator.upstream.peers import Peers
    except ImportError:
        raise ConfigError("peers need the extra: pip install waypost[redis]") from None
    address = _secret("peers", where.dsn, environment)
    return Peers(address, prefix=where.prefix, monotonic=monotonic)


def _open_seen(config: ReplayConfig, environment: Mapping[str, str]) -> SeenOnce:
    if config.dsn is None:
        return SqliteSeen.open(config.path)
    try:
        from waypost.validator.access.seen_once_redis import RedisSeen
    except ImportError:
        raise ConfigError(
            "replay: store: redis needs the extra: pip install waypost[redis]"
        ) from None
    return RedisSeen(_secret("replay", config.dsn, environment), prefix=config.prefix)


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


def _metrics_token(config: MetricsConfig, environment: Mapping[str, str]) -> str | None:
    if config.token is not None:
        return _secret("metrics", config.token, environment)
    if config.token_file is None:
        return None
    try:
        token = make_once(config.token_file, secrets.token_hex(32).encode() + b"\n")
    except OSError as exc:
        raise StoreError(f"{config.token_file} cannot be used: {exc}") from exc
    text = token.decode("ascii", "replace").strip()
    if len(text) < MIN_CONSOLE_TOKEN_CHARS or not text.isascii():
        raise ConfigError(
            f"the metrics' token in {config.token_file} needs {MIN_CONSOLE_TOKEN_CHARS} characters"
            " of ASCII or more; delete the file to have one made"
        )
    return text


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


def _require_keys(config: ValidatorConfig, environment: Mapping[str, str]) -> None:
    """Raise ConfigError that names every provider whose key is unset, not only the first."""
    unset = {
        name: [key for key in provider.key_names if not environment.get(key, "").strip()]
        for name, provider in config.providers.items()
    }
    missing = {name: keys for name, keys in unset.items() if keys}
    if len(missing) > 1:
        told = ", ".join(f"{name} ({', '.join(keys)})" for name, keys in missing.items())
        raise ConfigError(
            "these providers need their keys in environment variables, which are unset:"
            f" {told}; set them, or take these providers out of validator.yaml"
        )


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
