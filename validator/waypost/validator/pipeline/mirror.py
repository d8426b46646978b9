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
from waypost.validator.manifest.active import Serving, Target
from waypost.validator.pipeline.attempt import Try
from waypost.validator.pipeline.exchange import Call, Considered
from waypost.validator.pipeline.hold import Booking
from waypost.validator.pipeline.settle import pay
from waypost.validator.services import Desk
from waypost.validator.upstream.breaker import Witness

__all__ = ["is_drawn", "may_go", "send_along"]

logger = logging.getLogger(__name__)

SPARE = 2  # a provider that is half full has no room to spare
ACTING_APIS = frozenset({"responses"})  # providers keep what they answered, and may be told to act


def is_drawn(desk: Desk, record: DecisionRecord) -> bool:
    """Whether this request is sent along. Where both policies choose alike nothing is learnt."""
    config = None if desk.candidate is None else desk.candidate.send
    if config is None:
        return False
    shadow = record.shadow
    if shadow is None or shadow.model in (None, record.chosen):
        return False
    # Failures too: of answered requests alone, what served them would never seem to fail.
    return fate_of(record) in ("answered", "failed") and desk.luck() < config.share


def may_go(serving: Serving, theirs: Model | None, record: DecisionRecord) -> NotSent | None:
    """Return why a request may not be sent where a candidate would have sent it.

    Args:
        serving: the policy in force, which the request was served by.
        theirs: the model as the candidate knows it; another model by a known name is another.
    """
    ours = None if theirs is None else serving.compiled.models.get(theirs.id)
    facts = record.facts
    if ours is None or theirs is None or facts is None or ours.id not in serving.targets:
        return "not_admissible"
    if (ours.provider, ours.name, ours.region) != (theirs.provider, theirs.name, theirs.region):
        return "not_admissible"
    if exclusion(serving.compiled, ours.id, facts) is not None:
        return "not_admissible"
    if facts.measured.endpoint in ACTING_APIS or "tools" in facts.measured.needs:
        return "acts"
    return None


def send_along(desk: Desk, considered: Considered, record: DecisionRecord) -> None:
    """Ask the candidate's choice, beside all else; ``record`` is written when that has ended."""
    candidate = desk.candidate
    assert candidate is not None and candidate.send is not None  # noqa: S101, PT018 - drawn
    if len(candidate.sending) >= candidate.send.at_once:
        _write(desk, record, not_sent="busy")
        return
    desk.records.put_off(record)
    task = asyncio.create_task(_send(desk, considered, record, candidate.send))
    candidate.sending.add(task)
    task.add_done_callback(candidate.sending.discard)


async def _send(
    desk: Desk, considered: Considered, record: DecisionRecord, config: SendConfig
) -> None:
    call = Call.begin(
        {"headers": [], "method": "POST", "path": ""},
        _nothing_comes,
        _nothing_goes,
        endpoint=considered.asked.endpoint,
        at=desk.clock(),
        randomness=0,
    )
    call.id, call.streamed, call.facts = record.id, record.streamed, record.facts
    call.end_after(int(config.timeout_s * 1_000), says_caller=True)
    not_sent: NotSent | None = "error"
    try:
        not_sent = await _ask(desk, call, considered, record, config)
    except Exception:
        logger.exception("request %s not sent along", record.id)
    finally:
        _write(desk, record, not_sent=not_sent, call=call)


async def _ask(
    desk: Desk, call: Call, considered: Considered, record: DecisionRecord, config: SendConfig
) -> NotSent | None:
    """Ask once, and pay for it; return why if that was not to be."""
    trial = None if desk.candidate is None else desk.candidate.serving
    chosen = "" if record.shadow is None else record.shadow.model or ""
    theirs = None if trial is None else trial.compiled.models.get(chosen)
    why_not = may_go(considered.serving, theirs, record)
    if why_not is not None or trial is None or record.facts is None:
        return why_not or "not_admissible"
    scopes = desk.config.budgets.trial(trial.compiled.policy.channel, config.budget)
    own = structs.replace(
        considered,
        caller=structs.replace(considered.caller, scopes=scopes),
        facts=record.facts,
    )
    target = considered.serving.targets[chosen]
    booking = Booking(desk, call, own, part="~trial")
    tokens = output_bound(target.model, record.facts)
    if await booking.hold(target, output_tokens=tokens) is not None:
        return "over_budget"
    if booking.crossed and desk.webhook is not None:
        desk.webhook.tell(booking.crossed)
    one: Try | None = None
    try:
        who = Witness.of(considered.caller.account, considered.asked.body)
        key = _admitted(desk, target, who)
        if key is None:
            return "busy"
        booking.is_exposed = True
        one = Try(desk, call, own, target, booking=booking, key=key, kind="first")
        await one.open()
        if one.outcome == "ok":
            await one.collect()
        return None
    finally:
        if one is None:
            await booking.release()
        else:
            one.abandon()
            call.usage = (await pay(call, record.facts, one.delivered())).usage


def _admitted(desk: Desk, target: Target, who: Witness) -> int | None:
    """Return the place of the key to ask with, if the provider has time to spare for us."""
    upstream, now = target.upstream, desk.monotonic()
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
    desk: Desk, record: DecisionRecord, *, not_sent: NotSent | None, call: Call | None = None
) -> None:
    shadow = record.shadow
    assert shadow is not None  # noqa: S101 - drawn
    if call is not None and call.attempts:
        shadow = structs.replace(
            shadow, attempt=call.attempts[0], usage=call.usage, cost_nusd=call.cost_nusd
        )
    else:
        shadow = structs.replace(shadow, not_sent=not_sent)
    desk.counts.shadow(shadow)
    desk.records.put(structs.replace(record, shadow=shadow))


async def _nothing_comes() -> dict[str, object]:
    return {"type": "http.disconnect"}


async def _nothing_goes(_: object) -> None:
    raise AssertionError("what is sent in the shadow answers nobody")
