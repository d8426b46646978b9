"""Asks the candidate's choice as well, for a share of the requests in its shadow.

The rule: the caller has their answer and learns nothing of it; the request goes only where the
policy *in force* would let it go; the operator pays, from the trial's own budget; nothing is tried
twice, nothing of the answer is kept, and no caller is turned away for it.
"""

import asyncio
import logging

from msgspec import structs

from waypost.shared.contracts import Model
from waypost.shared.decision.costs import output_bound
from waypost.shared.decision.engine import exclusion
from waypost.shared.records import DecisionRecord, NotSent, fate_of
from waypost.validator.config.manifests import SendConfig
from waypost.validator.manifest.active import ActiveManifest, Target
from waypost.validator.pipeline.attempt import ProviderAttempt
from waypost.validator.pipeline.exchange import AdmittedRequest, Exchange
from waypost.validator.pipeline.hold import Reservation
from waypost.validator.pipeline.settle import pay
from waypost.validator.services import Services
from waypost.validator.upstream.breaker import Witness

__all__ = ["is_drawn", "may_go", "send_along"]

logger = logging.getLogger(__name__)

SPARE = 2  # a provider that is half full has no room to spare
ACTING_APIS = frozenset({"responses"})  # providers keep what they answered, and may be told to act


def is_drawn(services: Services, record: DecisionRecord) -> bool:
    """Whether this request is sent along. Where both policies choose alike nothing is learnt."""
    config = None if services.manifests.candidate is None else services.manifests.candidate.send
    if config is None:
        return False
    shadow = record.shadow
    if shadow is None or shadow.model in (None, record.chosen):
        return False
    # Failures too: of answered requests alone, what served them would never seem to fail.
    return fate_of(record) in ("answered", "failed") and services.rng() < config.share


def may_go(active: ActiveManifest, theirs: Model | None, record: DecisionRecord) -> NotSent | None:
    """Return why a request may not be sent where a candidate would have sent it.

    Args:
        active: the policy in force, which the request was served by.
        theirs: the model as the candidate knows it; another model by a known name is another.
    """
    ours = None if theirs is None else active.compiled.models.get(theirs.id)
    facts = record.facts
    if ours is None or theirs is None or facts is None or ours.id not in active.targets:
        return "not_admissible"
    if (ours.provider, ours.name, ours.region) != (theirs.provider, theirs.name, theirs.region):
        return "not_admissible"
    if exclusion(active.compiled, ours.id, facts) is not None:
        return "not_admissible"
    if facts.measured.endpoint in ACTING_APIS or "tools" in facts.measured.needs:
        return "acts"
    return None


def send_along(services: Services, admitted: AdmittedRequest, record: DecisionRecord) -> None:
    """Ask the candidate's choice, beside all else; ``record`` is written when that has ended."""
    candidate = services.manifests.candidate
    assert candidate is not None and candidate.send is not None  # noqa: S101, PT018 - drawn
    if len(candidate.sending) >= candidate.send.at_once:
        _write(services, record, not_sent="busy")
        return
    services.records.put_off(record)
    task = asyncio.create_task(_send(services, admitted, record, candidate.send))
    candidate.sending.add(task)
    task.add_done_callback(candidate.sending.discard)


async def _send(
    services: Services, admitted: AdmittedRequest, record: DecisionRecord, config: SendConfig
) -> None:
    exchange = Exchange.begin(
        {"headers": [], "method": "POST", "path": ""},
        _nothing_comes,
        _nothing_goes,
        endpoint=admitted.inbound.endpoint,
        at=services.clock(),
        randomness=0,
    )
    exchange.id, exchange.streamed, exchange.facts = record.id, record.streamed, record.facts
    exchange.end_after(int(config.timeout_s * 1_000), says_caller=True)
    not_sent: NotSent | None = "error"
    try:
        not_sent = await _ask(services, exchange, admitted, record, config)
    except Exception:
        logger.exception("request %s not sent along", record.id)
    finally:
        _write(services, record, not_sent=not_sent, exchange=exchange)


async def _ask(
    services: Services,
    exchange: Exchange,
    admitted: AdmittedRequest,
    record: DecisionRecord,
    config: SendConfig,
) -> NotSent | None:
    """Ask once, and pay for it; return why if that was not to be."""
    trial = None if services.manifests.candidate is None else services.manifests.candidate.active
    chosen = "" if record.shadow is None else record.shadow.model or ""
    theirs = None if trial is None else trial.compiled.models.get(chosen)
    why_not = may_go(admitted.active, theirs, record)
    if why_not is not None or trial is None or record.facts is None:
        return why_not or "not_admissible"
    scopes = services.config.budgets.trial(trial.compiled.policy.channel, config.budget)
    own = structs.replace(
        admitted,
        principal=structs.replace(admitted.principal, scopes=scopes),
        facts=record.facts,
    )
    target = admitted.active.targets[chosen]
    reservation = Reservation(services, exchange, own, part="~trial")
    tokens = output_bound(target.model, record.facts)
    if await reservation.hold(target, output_tokens=tokens) is not None:
        return "over_budget"
    if reservation.crossed and services.webhook is not None:
        services.webhook.tell(reservation.crossed)
    one: ProviderAttempt | None = None
    try:
        who = Witness.of(admitted.principal.account, admitted.inbound.body)
        key = _admitted(services, target, who)
        if key is None:
            return "busy"
        one = ProviderAttempt(
            services, exchange, own, target, reservation=reservation, key=key, kind="first"
        )
        await one.open()
        if one.outcome == "ok":
            await one.collect()
        return None
    finally:
        if one is None:
            await reservation.release()
        else:
            one.abandon()
            exchange.usage = (await pay(exchange, record.facts, one.delivered())).usage


def _admitted(services: Services, target: Target, who: Witness) -> int | None:
    """Return the place of the key to ask with, if the provider has time to spare for us."""
    upstream, now = target.upstream, services.monotonic()
    limiter = upstream.limiter
    if not target.breaker.is_closed or limiter.in_flight * SPARE >= limiter.limit:
        return None
    key = upstream.keys.take(target.model.name, now)
    if key is None or not target.breaker.admit(now, who):
        return None
    if not limiter.enter():
        target.breaker.abandoned(who)
        return None
    return key


def _write(
    services: Services,
    record: DecisionRecord,
    *,
    not_sent: NotSent | None,
    exchange: Exchange | None = None,
) -> None:
    shadow = record.shadow
    assert shadow is not None  # noqa: S101 - drawn
    if exchange is not None and exchange.attempts:
        shadow = structs.replace(
            shadow, attempt=exchange.attempts[0], usage=exchange.usage, cost_nusd=exchange.cost_nusd
        )
    else:
        shadow = structs.replace(shadow, not_sent=not_sent)
    services.counts.counts.shadow(shadow)
    services.records.put(structs.replace(record, shadow=shadow))


async def _nothing_comes() -> dict[str, object]:
    return {"type": "http.disconnect"}


async def _nothing_goes(_: object) -> None:
    raise AssertionError("what is sent in the shadow answers nobody")
