"""A minute without the store of records, at full load: what of it is missing afterwards.

PostgreSQL is killed as a crash would end it, and started again on what it left behind; the
validator is under as much load as it takes, before, while and after.
"""

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families

from bench.processes import LOAD_CORE, Unavailable, free_port, nginx, running, wrk
from bench.serving import a_validator
from support.postgres import a_postgres, find_postgres

OUTAGE_S = float(os.environ.get("OUTAGE_S", "60"))
AROUND_S = 5.0
CATCH_UP_S = 600.0
DSN = "BENCH_RECORDS_DSN"


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    if find_postgres() is None:
        raise Unavailable("PostgreSQL is not installed (Debian package postgresql)")
    upstream = free_port()
    command, log = nginx(folder, upstream)
    with ExitStack() as stack:
        server = stack.enter_context(a_postgres())
        os.environ[DSN] = server.dsn
        stack.enter_context(running(command, port=upstream, core=LOAD_CORE, log=log))
        url = f"http://127.0.0.1:{upstream}"
        records = {"store": "postgres", "dsn": DSN}
        port, headers, _ = stack.enter_context(
            a_validator(folder / "outage", url, config={"records": records})
        )

        def outage() -> None:
            time.sleep(AROUND_S)
            server.kill()
            time.sleep(OUTAGE_S)
            server.start()

        breaking = threading.Thread(target=outage)
        breaking.start()
        seconds = int(2 * AROUND_S + OUTAGE_S)
        load = wrk(port, connections=32, seconds=seconds, headers=headers, folder=folder)
        breaking.join()
        spilled, began_s = _told(port, "records_spilled_bytes"), time.monotonic()
        while _told(port, "records_spilled_bytes") or _told(port, "records_waiting"):
            if time.monotonic() - began_s > CATCH_UP_S:
                raise RuntimeError("the store is back, but the spill is not written")
            time.sleep(0.5)
        took_s = time.monotonic() - began_s
        answered = _told(port, "requests_total")
        dropped = _told(port, "records_lost_total")
        with psycopg.connect(server.dsn) as db:
            (kept,) = db.execute("SELECT count(DISTINCT id) FROM records").fetchone() or (0,)
    return [
        (f"{OUTAGE_S:.0f} s without the store: requests", f"{answered:,.0f}", ""),
        ("requests a second, all the while", f"{load.requests_per_s:,.0f}/s", ""),
        ("requests that failed", f"{load.errors}", "0"),
        ("records missing afterwards", f"{answered - kept:,.0f}", "0"),
        ("records dropped", f"{dropped:,.0f}", "0"),
        ("on the disk when the load ended", f"{spilled / 2**20:,.0f} MiB", "≤ 512 MiB"),
        ("until all of it was in the store", f"{took_s:.0f} s", ""),
    ]


def _scraped(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text


def _told(port: int, name: str) -> float:
    families = text_string_to_metric_families(_scraped(port))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"waypost_{name}"
    )
