"""A validator in a process of its own, for races: `FOLDER LEDGER_JSON DSN UPSTREAM_PORT USD`.

Writes its address and a token's text, and serves until its standard input ends.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from msgspec import structs

from support.upstream import Upstream
from support.validator import ENVIRONMENT, running_validator
from support.worlds import a_policy
from waypost.shared.contracts import Policy

# So that a dollar is some hundred requests.
DEARER = 500


def dear_policy() -> Policy:
    """Return the usual policy at prices that make a dollar end soon."""
    policy = a_policy()
    models = tuple(
        structs.replace(
            model,
            price=structs.replace(
                model.price,
                input_nusd_per_mtok=model.price.input_nusd_per_mtok * DEARER,
                output_nusd_per_mtok=model.price.output_nusd_per_mtok * DEARER,
            ),
        )
        for model in policy.models
    )
    return structs.replace(policy, models=models)


async def serve(folder: Path, ledger: dict[str, object], dsn: str, port: int, usd: str) -> None:
    acme = Upstream(port=port)
    async with running_validator(
        folder,
        {"acme": acme},
        policy=dear_policy(),
        # Hundreds at once on a busy machine: what is timed out here, the provider has served.
        change=lambda providers: providers["acme"].update(timeout_s=300),
        environment={**ENVIRONMENT, "LEDGER_DSN": dsn},
        ledger=ledger,
        budgets={"default": [{"window": "total", "limit_usd": usd}]},
    ) as validator:
        token = validator.bearer(now=int(time.time()), models=("small",))
        sys.stdout.write(json.dumps({"url": validator.url, "token": token}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    folder, ledger, dsn, port, usd = sys.argv[1:]
    asyncio.run(serve(Path(folder), json.loads(ledger), dsn, int(port), usd))
