"""What operators are told of stores and certificates: by /metrics, /readyz and the log."""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.certificates import self_signed
from support.ledgers import until
from support.postgres import a_postgres, find_postgres
from support.recorded import a_record
from support.redis import find_redis, running_redis
from support.upstream import running_upstream
from support.validator import ENVIRONMENT, Running, running_validator
from waypost.shared.errors import StoreError
from waypost.shared.records import encode_record
from waypost.validator.ledger.redis import open_redis
from waypost.validator.records import RecordFilter
from waypost.validator.records.postgres import PostgresRecordStore

pytestmark = pytest.mark.anyio

NONE: set[str] = set()


async def _told(validator: Running) -> dict[str, float]:
    text = (await validator.client.get("/metrics", headers=_bearer(validator))).text
    return {
        sample.name + "".join(f"/{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _bearer(validator: Running) -> dict[str, str]:
    token = validator.services.metrics_token
    return {} if token is None else {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def _running(folder: Path, **changes: Any) -> AsyncGenerator[Running]:  # noqa: ANN401
    async with (
        running_upstream() as acme,
        running_validator(folder, {"acme": acme, "medcloud": acme}, **changes) as validator,
    ):
        yield validator


# ── records ────────────────────────────────────────────────────────────────────────────────────


async def test_while_the_store_of_records_is_down_requests_are_served_and_it_says_so(
    tmp_path: Path,
) -> None:
    async with _running(tmp_path) as validator:
        store = validator.services.store
        down = StoreError("down", code="records_unavailable")
        with patch.object(store, "append", side_effect=down):
            assert (await validator.chat()).status_code == 200
            await until(lambda: validator.services.records.spilled_bytes > 0, pause_s=0.01)
            ready = await validator.client.get("/readyz")
            told = await _told(validator)
        assert (ready.status_code, ready.json()["checks"]["records"]) == (200, "spilling")
        assert told["waypost_records_spilled_bytes"] > 0
        assert told["waypost_records_spill_full"] == 0
        await until(lambda: not validator.services.records.spilled_bytes, pause_s=0.01)
        ready = await validator.client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["records"]) == (200, "ok")


async def test_a_store_that_only_cannot_be_read_is_told_within_a_probes_patience(
    tmp_path: Path,
) -> None:
    async def for_ever(_: str) -> None:
        await asyncio.Event().wait()

    async with _running(tmp_path) as validator:
        with patch.object(validator.services.store, "get", for_ever):
            ready = await validator.client.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["records"]) == (200, "spilling")


async def test_a_spill_that_takes_nothing_and_what_is_lost_then_are_counted(tmp_path: Path) -> None:
    async with _running(tmp_path) as validator:
        sink = validator.services.records
        down = StoreError("down", code="records_unavailable")
        cast(Any, sink)._max_bytes = 3_000
        with (
            patch.object(validator.services.store, "append", side_effect=down),
            patch("waypost.validator.records.spill.os.fsync", side_effect=OSError(28, "full")),
        ):
            for number in range(9):
                sink.put(a_record(number))
            await until(lambda: bool(sink.spill_fault), pause_s=0.01)
            ready = await validator.client.get("/readyz")
            told = await _told(validator)
        assert (ready.status_code, ready.json()["checks"]["records"]) == (200, "spill_full")
        assert told["waypost_records_spill_full"] == 1
        assert told["waypost_records_lost_total/queue_full"] == sink.lost["queue_full"] > 0
        assert told["waypost_records_lost_total/damaged"] == 0


async def test_a_postgres_that_was_away_for_long_or_became_read_only_is_found_at_once(
    tmp_path: Path,
) -> None:
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    with a_postgres() as server:
        store = await PostgresRecordStore.open(server.dsn, patience_s=2)
        batch = [(a_record(1), encode_record(a_record(1)))]
        await store.append(batch)
        await asyncio.to_thread(server.kill)
        for _ in range(4):  # by itself the pool would wait for eight seconds now, and for more
            with pytest.raises(StoreError):
                await store.append(batch)
        await asyncio.to_thread(server.start)
        await store.append(batch)

        async with cast(Any, store)._transaction("written") as db:
            await db.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        failed = 0
        for _ in range(8):
            try:
                await store.append([(a_record(2), encode_record(a_record(2)))])
            except StoreError:
                failed += 1
        assert failed <= 1  # its connection is given up
        assert len(await store.list(RecordFilter(), limit=9)) == 2
        await store.close()


# ── money ──────────────────────────────────────────────────────────────────────────────────────


async def test_expired_holds_and_unconfirmed_charges_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waypost.validator.services.SWEEP_S", 0.01)
    async with _running(tmp_path) as validator:
        assert (await _told(validator))["waypost_holds_expired_total"] == 0
        with patch.object(validator.services.ledger, "settle", side_effect=StoreError("away")):
            answer = await validator.chat()
            await validator.record(answer)
        validator.clock.ahead_s = 86_400
        await until(
            lambda: "charged 1 holds in full that nobody settled" in caplog.text, pause_s=0.01
        )
        validator.services.count(a_record(5, cost_nusd=7 * 10**9, unconfirmed_nusd=4 * 10**9))
        told = await _told(validator)
    assert told["waypost_holds_expired_total"] == 1
    unconfirmed = [told[name] for name in told if "waypost_unconfirmed_cost_usd_total" in name]
    assert sum(unconfirmed) == 4


@pytest.mark.parametrize(
    ("options", "risks"),
    [
        ((), NONE),
        (("--appendonly", "no", "--save", "3600 1"), NONE),
        (("--appendonly", "no"), {"no_persistence"}),
        (("--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru"), {"evicts_keys"}),
        (("--appendonly", "no", "--rename-command", "CONFIG", ""), NONE),  # as hosted ones do
    ],
)
async def test_a_redis_that_may_forget_is_told(
    options: tuple[str, ...], risks: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    if find_redis() is None:
        pytest.skip("no Redis or Valkey is installed")
    with running_redis(*options) as server:
        ledger = open_redis(server.url)
        assert await ledger.sweep(now=1) == 0
        assert ledger.risks == risks
        await ledger.close()
    warned = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warned) == len(risks)


async def test_the_gauge_names_each_risk(tmp_path: Path) -> None:
    if find_redis() is None:
        pytest.skip("no Redis or Valkey is installed")
    with running_redis("--appendonly", "no") as server:
        environment = {**ENVIRONMENT, "REDIS": server.url}
        ledger = {"store": "redis", "dsn": "REDIS", "leased": True}
        async with _running(tmp_path, environment=environment, ledger=ledger) as validator:
            await validator.chat()
            assert (await _told(validator))["waypost_ledger_at_risk/no_persistence"] == 1


# ── certificates ───────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _tls(path: Path) -> AsyncGenerator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
    )
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize("lasts_h", [-1, 1])
async def test_a_certificate_is_told_by_its_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lasts_h: int
) -> None:
    path = self_signed(tmp_path, lasts_h=lasts_h)

    def setting(providers: dict[str, Any]) -> None:
        providers["acme"] |= {"base_url": url, "ca_file": str(path)}

    async with (
        _tls(path) as url,
        _running(tmp_path, change=setting) as validator,
    ):
        await validator.chat()
        answer = await validator.chat()
        record = await validator.record(answer)
        told = await _told(validator)
        explained = await validator.client.get(
            f"/v1/decisions/{record.id}", headers=validator.headers()
        )
    expires_in_s = told["waypost_provider_certificate_expires_in_seconds/acme"]
    assert expires_in_s == pytest.approx(lasts_h * 3_600, abs=60)
    day = f"{datetime.now(UTC) + timedelta(hours=lasts_h):%Y-%m-%d}"
    says = f"certificate expired on {day}"
    assert caplog.text.count(f"provider acme: {says}") == (lasts_h < 0)
    assert (says in explained.text) == (lasts_h < 0)
    if lasts_h < 0:
        assert "could not be reached" not in explained.text


# ── who may read /metrics ──────────────────────────────────────────────────────────────────────


async def test_a_token_in_a_file_is_made_once_and_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "state" / "metrics.token"
    tokens: set[str] = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        async with _running(folder, metrics={"token_file": str(path)}) as validator:
            assert (await validator.client.get("/metrics")).status_code == 401
            assert (
                "waypost_cost_usd_total"
                in (await validator.client.get("/metrics", headers=_bearer(validator))).text
            )
            tokens.add(validator.services.metrics_token or "")
    assert tokens == {path.read_text().strip()}
    assert path.stat().st_mode & 0o777 == 0o600
