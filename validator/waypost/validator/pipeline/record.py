"""What happened, for whoever asks later: one decision record per request, refusals included."""

import logging

from waypost.shared.decision.replay import DOWNGRADE, decision_digest
from waypost.shared.money import bill
from waypost.shared.records import DecisionRecord
from waypost.validator.pipeline.exchange import Call
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.receipts.receipt import Receipt, facts_digest, sign_receipt

__all__ = ["receipt_of", "record_of"]

logger = logging.getLogger(__name__)


def record_of(call: Call) -> DecisionRecord:
    """Return the record of ``call``. It holds no prompt text and no token."""
    caller, serving, decision = call.caller, call.serving, call.decision
    return DecisionRecord(
        id=call.id,
        at_ms=call.at_ms,
        verdict=call.verdict,
        reason=call.reason,
        http_status=call.status,
        subject="" if caller is None else caller.subject,
        tenant=None if caller is None else caller.claims.tenant,
        tier=None if caller is None else caller.claims.tier,
        account=None if caller is None else caller.account,
        manifest_version=None if serving is None else serving.version,
        manifest_digest=None if serving is None else serving.digest,
        facts=call.facts,
        proposal=call.proposal,
        route=None if decision is None else decision.route,
        chosen=None if decision is None else decision.model,
        model=call.model,
        attempts=tuple(call.attempts),
        steps_ms=call.steps_ms,
        usage=call.usage,
        reserved_nusd=call.reserved_nusd,
        cost_nusd=call.cost_nusd,
        unconfirmed_nusd=call.unconfirmed_nusd,
        baseline_cost_nusd=_baseline(call),
        ttft_ms=call.ttft_ms,
        duration_ms=call.elapsed_ms(),
        streamed=call.streamed,
        detail=call.detail,
        hints_digest=None if serving is None else serving.hints_digest,
        decision_digest=None if decision is None else decision_digest(decision),
        is_downgraded=decision is not None and decision.reason == DOWNGRADE,
        repeats=call.repeats,
        is_canary=call.is_canary,
        trace_id=None if call.trace is None else call.trace.trace_id,
        span_id=None if call.trace is None else call.trace.span_id,
        parent_span_id=None if call.trace is None else call.trace.parent_span_id,
    )


def _baseline(call: Call) -> int | None:
    """Return what it would have cost without routing; ``None`` where nobody can say."""
    usage, serving, facts = call.usage, call.serving, call.facts
    if usage is None or serving is None or facts is None:
        return None
    try:
        price = serving.unrouted_price(facts)
        return None if price is None else bill(price, usage, facts.measured.needs)
    except Exception:
        # The record is worth more than this.
        logger.exception("request %s: what it would have cost is not known", call.id)
        return None


def receipt_of(call: Call, keys: ReceiptKeys) -> bytes:
    """Return the signed receipt of ``call``, as far as it has come: the answer begins."""
    caller, serving, decision = call.caller, call.serving, call.decision
    model = None if call.verdict == "refused" else call.model
    target = serving.targets.get(model) if serving is not None and model is not None else None
    return sign_receipt(
        Receipt(
            iss=keys.origin,
            jti=call.id,
            iat=call.now,
            sub="" if caller is None else caller.subject,
            verdict=call.verdict,
            reason=call.reason,
            requested=None if call.proposal is None else call.proposal.model,
            model=model,
            provider=None if target is None else target.model.provider,
            region=None if target is None else target.model.region,
            route=None if decision is None else decision.route,
            manifest=None if serving is None else serving.version,
            manifest_sha256=None if serving is None else serving.digest,
            facts=facts_digest(call.facts),
        ),
        keys,
    )
