"""A validator process from ``validator.yaml``: everything is opened here, and closed again.

What cannot be opened stops the start with an error that names it and never quotes a secret.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

import httpx
from anyio import to_thread

from waypost.shared.errors import StoreError
from waypost.shared.trust import ManifestKeeper
from waypost.validator.budget_webhook import BudgetWebhook
from waypost.validator.candidate import Candidate
from waypost.validator.config import ConfigError, ValidatorConfig
from waypost.validator.config.callers import load_pseudonym_key
from waypost.validator.config.stores import ReplayConfig
from waypost.validator.desk import Desk
from waypost.validator.detectors import load_detectors
from waypost.validator.ledger.opening import open_ledger
from waypost.validator.receipts.keys import ReceiptKeys, load_keys
from waypost.validator.receipts.log import ReceiptLog
from waypost.validator.records import RecordSink
from waypost.validator.records.opening import open_store
from waypost.validator.records.spill import Spill
from waypost.validator.replay import SeenOnce, SqliteSeen
from waypost.validator.telemetry.siblings import Siblings
from waypost.validator.upstream import Upstream

if TYPE_CHECKING:
    from waypost.validator.telemetry.tracing import Tracer

__all__ = ["open_desk"]

MIB = 2**20
MIN_CONSOLE_TOKEN_CHARS = 24  # at random they outlast any guessing


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
            if desk.candidate is not None:
                await desk.candidate.close()
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
