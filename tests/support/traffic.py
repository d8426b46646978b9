"""A busy service's decision records, decided by the real engine: as many as asked for."""

import hashlib
import random
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import structs

from waypost.shared.contracts import Declared, Facts, Measured, Policy, Proposal, Signed
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.money import Usage, bill
from waypost.shared.records import Attempt, AttemptOutcome, DecisionRecord, encode_record
from waypost.validator.pipeline.exchange import decision_id
from waypost.validator.records import RecordStore

DAY_MS = 86_400_000
SHAPES = 1_500  # distinct requests; the rest are these again, at other times and speeds
BATCH = 2_000
ACCOUNTS = ("acme", "alice", "clinic", "globex", "initech", "umbrella", "wayne")
TENANTS = ("north", "south", "eu", None)
TASKS = (None, None, None, "coding", "triage", "review")


def _facts(rng: random.Random, policy: Policy) -> Facts:
    tokens = int(rng.lognormvariate(4.6, 1.3)) + 4
    hard = rng.random() < 0.18
    return Facts(
        now=policy.issued_at,
        signed=Signed(
            tier=rng.choices(policy.tiers, (6, 3, 1)[: len(policy.tiers)])[0],
            tenant=rng.choice(TENANTS),
            data_classes=rng.choices(((), ("pii",), ("phi",)), (90, 6, 4))[0],
        ),
        measured=Measured(
            input_bytes=tokens * 4,
            input_tokens=tokens,
            max_input_tokens=tokens * 5,
            keywords=("prove",) if hard else (),
            needs=rng.choices(((), ("json",), ("tools",)), (80, 12, 8))[0],
        ),
        declared=Declared(interactive=rng.random() < 0.85, task=rng.choice(TASKS)),
    )


def _proposal(rng: random.Random, compiled: CompiledPolicy, facts: Facts) -> Proposal | None:
    if rng.random() < 0.12:
        return None
    if rng.random() < 0.07:
        return Proposal(model=rng.choice(list(compiled.models)))
    model = decide(compiled, facts).model
    return Proposal(model=model) if model is not None else None


def _shape(rng: random.Random, compiled: CompiledPolicy, digest: str) -> DecisionRecord:
    policy = compiled.policy
    facts = _facts(rng, policy)
    proposal = _proposal(rng, compiled, facts)
    decision = decide(compiled, facts, proposal)
    record = DecisionRecord(
        id="",
        at_ms=0,
        verdict=decision.verdict,
        reason=decision.reason,
        http_status=200 if decision.model else 403,
        subject=f"{rng.getrandbits(96):024x}",
        tenant=facts.signed.tenant,
        tier=facts.signed.tier,
        account=rng.choice(ACCOUNTS),
        manifest_version=policy.version,
        manifest_digest=digest,
        facts=facts,
        proposal=proposal,
        route=decision.route,
        chosen=decision.model,
        steps_ms={"authenticate": 0.031, "understand": 0.118, "decide": 0.042, "reserve": 0.34},
        duration_ms=0.6,
    )
    if decision.model is None:
        return record
    usage = Usage(
        input_tokens=facts.measured.input_tokens, output_tokens=int(rng.lognormvariate(5, 0.9))
    )
    failing: AttemptOutcome = rng.choice(("server_error", "timeout", "rate_limited"))
    fails = len(decision.chain) > 1 and rng.random() < 0.02
    attempts = [
        Attempt(model=name, provider=compiled.models[name].provider, outcome=outcome)
        for name, outcome in zip(
            decision.chain, (failing, "ok") if fails else ("ok",), strict=False
        )
    ]
    answered = compiled.models[attempts[-1].model]
    best = max((compiled.models[name] for name in decision.chain), key=lambda model: model.quality)
    return structs.replace(
        record,
        model=answered.id,
        attempts=tuple(attempts),
        usage=usage,
        cost_nusd=bill(answered.price, usage),
        baseline_cost_nusd=bill(best.price, usage),
        streamed=rng.random() < 0.8,
    )


def _timed(
    shape: DecisionRecord, rng: random.Random, compiled: CompiledPolicy, at_ms: int
) -> DecisionRecord:
    attempts: list[Attempt] = []
    begins = sum(shape.steps_ms.values())
    for attempt in shape.attempts:
        model = compiled.models[attempt.model]
        ttft = model.ttft_prior_ms * rng.lognormvariate(0, 0.3)
        tokens = shape.usage.output_tokens if shape.usage else 0
        whole = ttft + tokens / model.tokens_per_s_prior * 1_000
        is_ok = attempt.outcome == "ok"
        attempts.append(
            structs.replace(
                attempt,
                http_status=200 if is_ok else 503,
                ttft_ms=round(ttft, 1) if is_ok else None,
                duration_ms=round(whole if is_ok else ttft, 1),
                started_ms=round(begins, 3),
            )
        )
        begins += attempts[-1].duration_ms
    steps = dict(shape.steps_ms)
    if attempts:
        steps["forward"] = round(sum(attempt.duration_ms for attempt in attempts), 3)
        steps["settle"] = 0.21
    return structs.replace(
        shape,
        id=decision_id(at_ms, rng.getrandbits(74)),
        at_ms=at_ms,
        attempts=tuple(attempts),
        steps_ms=steps,
        ttft_ms=attempts[-1].started_ms + (attempts[-1].ttft_ms or 0) if attempts else None,
        duration_ms=round(sum(steps.values()), 3),
    )


def some_traffic(
    count: int, policy: Policy, *, until_ms: int, days: float = 7, seed: int = 7
) -> Iterator[DecisionRecord]:
    """Give ``count`` records of the last ``days``, oldest first, busier by day than by night."""
    rng = random.Random(seed)
    compiled = compile_policy(policy)
    digest = policy_digest(policy)
    shapes = [_shape(rng, compiled, digest) for _ in range(min(SHAPES, count))]
    span = days * DAY_MS
    places = (rng.random() ** 0.9 for _ in range(count))
    for place in sorted(places):
        yield _timed(rng.choice(shapes), rng, compiled, until_ms - int((1 - place) * span))


def policy_digest(policy: Policy) -> str:
    return hashlib.sha256(msgspec.json.encode(policy)).hexdigest()


async def pour(store: RecordStore, policy: Policy, records: Iterator[DecisionRecord]) -> int:
    """Write ``records`` to ``store``, with the policy that decided them; return how many."""
    await store.put_policy(policy_digest(policy), msgspec.json.encode(policy))
    batch: list[DecisionRecord] = []
    count = 0
    for record in records:
        batch.append(record)
        if len(batch) == BATCH:
            count += await _write(store, batch)
            batch = []
    return count + await _write(store, batch)


async def _write(store: RecordStore, batch: Sequence[DecisionRecord]) -> int:
    await store.append([(record, encode_record(record)) for record in batch])
    return len(batch)
