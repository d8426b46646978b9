"""How many recorded decisions a second are made anew under another policy, on one core."""

import time

from bench.deciding import MONDAY, a_large_policy
from waypost.edge.trial.simulate import simulate
from waypost.shared.contracts import Declared, Facts, Measured, Policy, Proposal, Signed
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.money import Usage
from waypost.shared.records import Attempt, DecisionRecord, encode_record

RECORDS = 50_000


def some_records(policy: Policy) -> list[bytes]:
    """Traffic of every tier, length and hour, as a validator records it."""
    words = ("word5", "word11", "analyse", "prove")

    def record(i: int) -> bytes:
        model = policy.models[i % 7].id
        facts = Facts(
            now=MONDAY + i * 60,
            signed=Signed(tier="pro" if i % 3 else "free", cohort=i % 2**20, tenant=f"t{i % 50}"),
            measured=Measured(
                input_bytes=i % 9_000,
                input_tokens=i % 3_000,
                max_input_tokens=i % 9_000 + 200,
                messages=1 + i % 9,
                keywords=(words[i % 4],) if i % 5 == 0 else (),
                affordable_nusd=10**9,
            ),
            declared=Declared(task="classify" if i % 4 == 0 else None),
        )
        return encode_record(
            DecisionRecord(
                id=f"0199f000-0000-7000-8000-{i:012d}",
                at_ms=(MONDAY + i * 60) * 1_000,
                verdict="accepted",
                reason="proposal_admissible",
                http_status=200,
                subject=f"{i % 5_000:024x}",
                tenant=f"t{i % 50}",
                tier=facts.signed.tier,
                account="acme",
                manifest_version=42,
                manifest_digest="a" * 64,
                facts=facts,
                proposal=Proposal(model=model, route="default", manifest=42),
                route="default",
                chosen=model,
                model=model,
                attempts=(
                    Attempt(model=model, provider="p", outcome="ok", ttft_ms=90, duration_ms=400),
                ),
                steps_ms={"authenticate": 0.1, "understand": 0.2, "decide": 0.05, "forward": 400.0},
                usage=Usage(input_tokens=i % 3_000, output_tokens=i % 700),
                cost_nusd=66_150,
                baseline_cost_nusd=1_102_500,
                ttft_ms=90.0,
                duration_ms=400.0,
            )
        )

    return [record(i) for i in range(RECORDS)]


def rows() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    result: list[tuple[str, str, str]] = []
    for rules, models in ((20, 10), (1_000, 200)):
        policy = a_large_policy(rules, models)
        compiled, bodies = compile_policy(policy), some_records(policy)
        took = []
        for _ in range(3):
            start = time.process_time()
            simulate(compiled, bodies)
            took.append(time.process_time() - start)
        what = f"simulate, {rules} rules × {models} models, {RECORDS:,} records"
        aim = "≥ 50,000" if rules == 20 else ""
        result.append((what, f"{RECORDS / min(took):,.0f} a second", aim))
    return result
