"""What happened, for whoever asks later: one decision record per request, refusals included."""

import logging

from waypost.shared.decision.replay import DOWNGRADE, decision_digest
from waypost.shared.money import bill
from waypost.shared.records import DecisionRecord
from waypost.validator.pipeline.exchange import Exchange
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.receipts.receipt import Receipt, facts_digest, sign_receipt

__all__ = ["receipt_of", "record_of"]

logger = logging.getLogger(__name__)


def record_of(exchange: Exchange) -> DecisionRecord:
    """Return the record of ``exchange``. It holds no prompt text and no token."""
    principal, active, decision = exchange.principal, exchange.active, exchange.decision
    return DecisionRecord(
        id=exchange.id,
        at_ms=exchange.at_ms,
        verdict=exchange.verdict,
        reason=exchange.reason,
        http_status=exchange.status,
        subject="" if principal is None else principal.subject,
        tenant=None if principal is None else principal.claims.tenant,
        tier=None if principal is None else principal.claims.tier,
        issuer=None if principal is None else principal.claims.iss,
        account=None if principal is None else principal.account,
        manifest_version=None if active is None else active.version,
        manifest_digest=None if active is None else active.digest,
        facts=exchange.facts,
        proposal=exchange.proposal,
        route=None if decision is None else decision.route,
        chosen=None if decision is None else decision.model,
        model=exchange.model,
        attempts=tuple(exchange.attempts),
        steps_ms=exchange.steps_ms,
        usage=exchange.usage,
        reserved_nusd=exchange.reserved_nusd,
        cost_nusd=exchange.cost_nusd,
        unconfirmed_nusd=exchange.unconfirmed_nusd,
        baseline_cost_nusd=_baseline(exchange),
        ttft_ms=exchange.ttft_ms,
        duration_ms=exchange.duration_ms,
        streamed=exchange.streamed,
        detail=exchange.detail,
        hints_digest=None if active is None else active.hints_digest,
        decision_digest=None if decision is None else decision_digest(decision),
        is_downgraded=decision is not None and decision.reason == DOWNGRADE,
        repeats=exchange.repeats,
        is_canary=exchange.is_canary,
        trace_id=None if exchange.trace is None else exchange.trace.trace_id,
        span_id=None if exchange.trace is None else exchange.trace.span_id,
        parent_span_id=None if exchange.trace is None else exchange.trace.parent_span_id,
    )


def _baseline(exchange: Exchange) -> int | None:
    """Return what it would have cost without routing; ``None`` where nobody can say."""
    usage, active, facts = exchange.usage, exchange.active, exchange.facts
    if usage is None or active is None or facts is None:
        return None
    try:
        price = active.unrouted_price(facts)
        return None if price is None else bill(price, usage, facts.measured.needs)
    except Exception:
        # The record is worth more than this.
        logger.exception("request %s: what it would have cost is not known", exchange.id)
        return None


def receipt_of(keys: ReceiptKeys, exchange: Exchange) -> bytes:
    """Return the signed receipt of ``exchange``, as far as it has come: the answer begins."""
    principal, active, decision = exchange.principal, exchange.active, exchange.decision
    model = None if exchange.verdict == "refused" else exchange.model
    target = active.targets.get(model) if active is not None and model is not None else None
    return sign_receipt(
        Receipt(
            iss=keys.origin,
            jti=exchange.id,
            iat=exchange.now,
            sub="" if principal is None else principal.subject,
            verdict=exchange.verdict,
            reason=exchange.reason,
            requested=None if exchange.proposal is None else exchange.proposal.model,
            model=model,
            provider=None if target is None else target.model.provider,
            region=None if target is None else target.model.region,
            route=None if decision is None else decision.route,
            manifest=None if active is None else active.version,
            manifest_sha256=None if active is None else active.digest,
            facts=facts_digest(exchange.facts),
        ),
        keys,
    )
