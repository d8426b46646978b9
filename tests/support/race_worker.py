"""A validator in a process of its own, for races: `FOLDER LEDGER_JSON DSN PORT USD ACCOUNTS TIMEOUT_S DIALECT`.

Writes its address and a token for each account, and serves until its standard input ends.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from msgspec import structs

from support.billing import Rates
from support.upstream import Upstream
from support.validator import ENVIRONMENT, running_validator
from support.worlds import a_policy
from waypost.shared.contracts import ENDPOINTS, Policy

# So that a dollar is some hundred requests.
DEARER = 10
RATES = Rates(
    input=3_000 * DEARER,
    output=15_000 * DEARER,
    cached=300 * DEARER,
    written=3_750 * DEARER,
    kept_1h=6_000 * DEARER,
)


def dear_policy() -> Policy:
    """Return the usual policy at prices that make a dollar end soon."""
    policy = a_policy()
    models = tuple(
        structs.replace(model, price=RATES.price(), endpoints=ENDPOINTS) for model in policy.models
    )
    return structs.replace(policy, models=models)


async def serve(
    folder: Path,
    ledger: dict[str, object],
    dsn: str,
    port: int,
    usd: str,
    accounts: list[str],
    timeout_s: float,
    dialect: str,
) -> None:
    acme = Upstream(port=port)
    async with running_validator(
        folder,
        {"acme": acme},
        policy=dear_policy(),
        change=lambda providers: providers["acme"].update(timeout_s=timeout_s, dialect=dialect),
        environment={**ENVIRONMENT, "LEDGER_DSN": dsn},
        ledger=ledger,
        budgets={"default": [{"window": "total", "limit_usd": usd}]},
    ) as validator:
        now = int(time.time())
        tokens = {
            account: validator.bearer(now=now, models=("small",), account=account)
            for account in accounts
        }
        sys.stdout.write(json.dumps({"url": validator.url, "tokens": tokens}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    folder, ledger, dsn, port, usd, accounts, timeout_s, dialect = sys.argv[1:]
    asyncio.run(
        serve(
            Path(folder),
            json.loads(ledger),
            dsn,
            int(port),
            usd,
            accounts.split(),
            float(timeout_s),
            dialect,
        )
    )
