"""A whole app that chooses: run where the SDK alone is installed, and where it is frozen."""

import sys

from waypost.client.testing import static_waypost
from waypost.shared.contracts import Model, Policy, Route
from waypost.shared.money import Price

policy = Policy(
    channel="test",
    version=1,
    issued_at=0,
    tiers=("free",),
    models=(
        Model(
            id="small",
            provider="acme",
            name="acme-small",
            tiers=("free",),
            price=Price(input_nusd_per_mtok=150_000_000, output_nusd_per_mtok=600_000_000),
            context_tokens=32_000,
            max_output_tokens=4_096,
        ),
    ),
    routes=(Route(name="all", models=("small",)),),
)

with static_waypost(policy, tier="free") as wp:
    choice = wp.choose("What is the capital of France?")

HEAVY = {"httpx", "jwt", "pydantic", "rich", "starlette", "tuf", "typer", "yaml"}
print(choice.model, choice.reason, sorted(HEAVY & sys.modules.keys()))
