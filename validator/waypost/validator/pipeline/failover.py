"""Where a request goes next: along the chain, to the same target again, or to two at once.

The rule: every target comes from the decision's chain, or from the same admissible set; its
breaker, its keys and its room are asked, and its cost is held, before anything is sent. The
mechanisms are pure and live in ``waypost.validator.upstream`` and
``waypost.validator.pipeline.cascade``.
"""

import asyncio
from collections import deque
from functools import partial

from msgspec import structs

from waypost.shared.contracts import Hedge, Signal
from waypost.shared.decision.engine import Decision, larger_models
from waypost.shared.errors import UpstreamError
from waypost.shared.records import AttemptKind, AttemptOutcome
from waypost.shared.scoring.judge import JudgeModel
from waypost.validator.dialects.adapter import InboundRequest, UnreadableError, heard
from waypost.validator.dialects.passthrough.state import holds_state, without_state
from waypost.validator.http.problems import deadline_exceeded
from waypost.validator.lane import is_large
from waypost.validator.manifest.active import Target
from waypost.validator.pipeline.attempt import ProviderAttempt
from waypost.validator.pipeline.cascade.answers import Answer
from waypost.validator.pipeline.cascade.signals import agreement, confidence, needs_logprobs
from waypost.validator.pipeline.exchange import AdmittedRequest, Exchange
from waypost.validator.pipeline.hold import Reservation
from waypost.validator.pipeline.settle import pay
from waypost.validator.services import Services
from waypost.validator.upstream.breaker import ANYONE, Witness
from waypost.validator.upstream.key_pool import LONGEST_WAIT_S
from waypost.validator.upstream.retry_budget import full_jitter_s

__all__ = ["Failover"]

# The event loop's clock ticks in milliseconds, and so may wake us a little early.
CLOCKS_APART_S = 0.002

# How long an answer in one piece is waited for that another has outrun. It is made to its end and
# billed whether or not anybody listens; only the end says what for.
OUTRUN_S = 60.0

# What may pass when the same provider is asked again at once. A time-out may too, but whoever
# has waited for one is better served elsewhere.
_PASSING: frozenset[AttemptOutcome] = frozenset({"connect_error", "server_error"})
# What another key of the same provider may mend. Keys may be those of several accounts, of which
# one alone can read what it has made.
_KEYS_FAULT: frozenset[AttemptOutcome] = frozenset({"foreign_state", "key_refused", "rate_limited"})
# What a route's ``fallback_on`` calls it; what is not here goes by its own name.
_CAUSES: dict[AttemptOutcome, AttemptOutcome] = {"model_not_found": "bad_response"}
# Another may be asked whatever the route says: nobody has looked at the request yet.
_NOT_HEARD: frozenset[AttemptOutcome] = frozenset({"api_unsupported", "foreign_state"})


class Failover:
    """One request's way to an answer.

    Attributes:
        tries: all that were made.
        reservations: all that was held for them.
    """

    def __init__(
        self,
        services: Services,
        exchange: Exchange,
        admitted: AdmittedRequest,
        decision: Decision,
        reservation: Reservation,
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._admitted = admitted
        self._candidates = decision.candidates
        self._chain = deque(decision.chain)
        self._reservation = reservation
        self._limited: list[Target] = []
        self._put_off: list[Target] = []
        self._rejected: ProviderAttempt | None = None
        self._foreign: Target | None = None
        self._maker = self._maker_of_state()
        self._is_stripped = False
        self._bare: AdmittedRequest | None = None  # without what its maker alone can read
        self._unsure: ProviderAttempt | None = None
        self._is_saturated = self._is_won = False
        self._outrun: list[asyncio.Task[ProviderAttempt | None]] = []
        self.tries: list[ProviderAttempt] = []
        self.reservations = [reservation]
        route = self._route = admitted.active.routes[decision.route or ""]
        if route.timeout_ms is not None:
            exchange.end_after(route.timeout_ms, says_caller=False)
        # An embedding says nothing that could be judged.
        judges = (
            route.cascade is not None
            and exchange.endpoint != "embeddings"
            and (not exchange.streamed or route.cascade.stream_waits)
        )
        cascade = self._cascade = route.cascade if judges else None
        self._wants_logprobs = (
            cascade is not None
            and needs_logprobs(cascade.signal)
            and exchange.endpoint == "chat.completions"
        )

    def hang_up(self) -> None:
        """Let go of every provider that is still at it: of two answers at once, one is not told."""
        for one in self.tries:
            one.abandon()

    @property
    def is_outrunning(self) -> bool:
        """Whether an answer is still being made that nobody will be told."""
        return any(not task.done() for task in self._outrun)

    async def see_outrun(self) -> None:
        """Wait for the answers that were outrun, so that they say what they cost."""
        patience_s = max(one.target.upstream.timeout_s for one in self.tries)
        await asyncio.wait(self._outrun, timeout=min(OUTRUN_S, patience_s))

    async def leave_outrun(self) -> None:
        """Wait no more for them."""
        for task in self._outrun:
            task.cancel()
        await asyncio.gather(*self._outrun, return_exceptions=True)

    @property
    def under_way(self) -> ProviderAttempt | None:
        """The try that the caller's hanging up cut off; ``None`` if there was none."""
        ends = ("cancelled", "stopped", "ok")
        return next((one for one in self.tries if one.outcome in ends), None)

    async def first_answer(self) -> ProviderAttempt:
        """Return the first try worth telling the caller of.

        Raises:
            UpstreamError: there is none.
        """
        kind: AttemptKind = "first"
        while self._chain:
            target = await self._next_target()
            one = None if target is None else await self._ask(target, kind)
            if one is None:
                continue
            kind = "fallback"
            if one.outcome == "ok" and self._is_to_be_judged(one.target):
                one, is_sure = await self._judge(one)
                await self._pay_if_failed(one)
                if one.outcome == "ok" and not is_sure:
                    await self._keep(one)
                    kind = "escalation"
                    continue
            if one.outcome == "ok":
                return one
            if not self._goes_on_after(one):
                break
        told = self._unsure or await self._after_a_wait() or await self._without_state()
        told = told or self._rejected
        if told is None:
            raise self._nobody_answered()
        return told

    def _goes_on_after(self, one: ProviderAttempt) -> bool:
        """Whether the next of the chain may be tried after this failure."""
        if one.is_rejected or one.outcome == "deadline_exceeded":
            self._rejected = one
        if one.outcome in ("client_error", "deadline_exceeded"):
            self._limited.clear()  # nor is there anything to wait for
            return False
        if one.outcome == "context_too_long":
            self._go_on_with_larger(one.target)
        if one.outcome == "foreign_state":
            self._foreign = self._foreign or one.target
            self._leave_out(one.target.model.provider)
        causes = self._route.fallback_on
        return (
            causes is None
            or one.outcome in _NOT_HEARD
            or _CAUSES.get(one.outcome, one.outcome) in causes
        )

    # ── whom to ask ────────────────────────────────────────────────────────────────────────

    async def _next_target(self) -> Target | None:
        """Return the next of the chain, if it can be sent anything and its cost is held."""
        target = self._admitted.active.targets.get(self._chain.popleft())
        now = self._services.monotonic()
        if target is None or target.breaker.refuses(now, self._who(target)):
            return None
        # It was not known yet when the set was made.
        if self._chain and target.is_silent(self._admitted.inbound, now):
            return None
        if target.breaker.is_being_tested(now) and self._chain and target not in self._put_off:
            # It is said to be failing. Whoever can go elsewhere need not wait for that too.
            self._put_off.append(target)
            self._chain.append(target.model.id)
            return None
        if target.upstream.keys.rests_until(target.model.name, now) is not None:
            self._limited.append(target)
            return None
        return target if await self._is_held(target) else None

    async def _is_held(self, target: Target) -> bool:
        # To hold more, what is held is given back first: a failure leaves nothing.
        return self._reservation.covers(target) or await self._reservation.cover(target)

    def _new_reservation(self) -> Reservation:
        part = f"+{len(self.reservations)}"
        reservation = Reservation(self._services, self._exchange, self._admitted, part=part)
        self.reservations.append(reservation)
        return reservation

    def _go_on_with_larger(self, target: Target) -> None:
        """Of the chain, and then of all that this request may use, keep what holds more."""
        facts = self._exchange.facts or self._admitted.facts
        larger = larger_models(self._admitted.active.compiled, facts, than=target.model.id)
        tried = {one.target.model.id for one in self.tries}
        first = [name for name in self._chain if name in larger]
        self._chain = deque(dict.fromkeys([*first, *(n for n in larger if n not in tried)]))

    # ── one target ─────────────────────────────────────────────────────────────────────────

    async def _ask(self, target: Target, kind: AttemptKind) -> ProviderAttempt | None:
        """Return what came of asking ``target``; ``None`` if it was sent nothing."""
        hedge = self._route.hedge
        if hedge is None or kind != "first" or not self._admitted.facts.declared.interactive:
            return await self._try_repeatedly(target, kind)
        return await self._hedged(target, hedge)

    async def _try_repeatedly(self, target: Target, kind: AttemptKind) -> ProviderAttempt | None:
        """Return the last of one or more tries; ``None`` if ``target`` was sent nothing."""
        upstream = target.upstream
        upstream.retries.deposit()
        last: ProviderAttempt | None = None
        for tries in range(1, upstream.max_retries + 2):
            one = await self._try(target, kind, self._reservation)
            if one is None:
                break
            last, kind = one, "retry"
            if tries > upstream.max_retries or not await self._pause(one, tries):
                break
            if self._is_won or not await self._is_held(target):
                break
        if last is not None and last.outcome == "rate_limited":
            self._limited.append(target)
        if last is not None and last.outcome == "api_unsupported" and not self._is_won:
            return await self._try_by_another_api(target) or last
        return last

    async def _try_by_another_api(self, target: Target) -> ProviderAttempt | None:
        """Return a try in the words of an API that the provider has; ``None`` if there is none."""
        is_mute = target.is_silent(self._admitted.inbound, self._services.monotonic())
        if is_mute or not await self._is_held(target):
            return None
        return await self._try(target, "retry", self._reservation)

    def _who(self, target: Target) -> Witness:
        """Return whose request it is, where the breaker cares."""
        if not target.breaker.asks_who:
            return ANYONE
        return Witness.of(self._admitted.principal.account, self._admitted.inbound.body)

    async def _pause(self, one: ProviderAttempt, tries: int) -> bool:
        """Wait as long as it takes; return whether the same target should be tried again."""
        if self._is_won:
            return False
        upstream, now = one.target.upstream, self._services.monotonic()
        if one.outcome in _PASSING:
            pause_s = full_jitter_s(tries, rng=self._services.rng())
        elif one.outcome in _KEYS_FAULT and upstream.keys.count > 1:
            if upstream.keys.rests_until(one.target.model.name, now) is not None:
                return False
            pause_s = 0.0
        else:
            return False
        left_s = self._exchange.left_s()
        if (left_s is not None and pause_s >= left_s) or not upstream.retries.withdraw():
            return False
        await asyncio.sleep(pause_s)
        return True

    async def _try(
        self, target: Target, kind: AttemptKind, reservation: Reservation
    ) -> ProviderAttempt | None:
        """Return one try; ``None`` if ``target`` may be sent nothing now."""
        admitted = self._admitted if self._maker is None else await self._readable_by(target)
        upstream, now = target.upstream, self._services.monotonic()
        left_s = self._exchange.left_s()
        if left_s is not None and left_s <= CLOCKS_APART_S:
            self._chain.clear()
            return None
        key = upstream.keys.take(target.model.name, now)
        # Another request may have taken the probe while we were reserving.
        who = self._who(target)
        if admitted is None or key is None or not target.breaker.admit(now, who):
            return None
        if not upstream.limiter.enter():
            target.breaker.abandoned(who)
            self._is_saturated = True
            return None
        self._exchange.model = target.model.id
        one = ProviderAttempt(
            self._services, self._exchange, admitted, target,
            reservation=reservation, key=key, kind=kind,
            wants_logprobs=self._wants_logprobs,
        )  # fmt: skip
        self.tries.append(one)
        await one.open()
        await self._pay_if_failed(one)
        return one

    async def _pay_if_failed(self, one: ProviderAttempt) -> None:
        """Charge what a failure may have cost; what comes next holds money of its own."""
        if one.outcome != "ok" and not (failed := one.delivered()).is_free:
            # First, as a hedge that is sooner may cancel this while it waits for the store.
            one.is_paid = True
            await pay(self._exchange, self._admitted.facts, failed)

    # ── what only its maker can read ───────────────────────────────────────────────────────

    def _maker_of_state(self) -> str | None:
        """Return the provider that made what only its maker can read, where that can be known."""
        session = self._admitted.facts.declared.session
        if session is None:
            return None
        inbound, target = self._admitted.inbound, self._admitted.active.targets.get(session.model)
        if target is None or not holds_state(inbound.endpoint, inbound.body):
            return None
        return target.model.provider

    async def _readable_by(self, target: Target) -> AdmittedRequest | None:
        """Return the request as ``target`` can read it; ``None`` if it cannot."""
        if target.model.provider == self._maker:
            return self._admitted
        if not self._is_stripped:
            inbound = self._admitted.inbound
            work = partial(without_state, inbound.endpoint, inbound.body)
            body = await self._services.lane.run(work) if is_large(inbound.body) else work()
            self._is_stripped = True
            self._bare = None if body is None else self._with_body(body)
        return self._bare

    def _with_body(self, body: bytes) -> AdmittedRequest:
        inbound = self._admitted.inbound
        bare = InboundRequest(
            inbound.endpoint,
            inbound.request,
            body,
            id=inbound.id,
            now=inbound.now,
            version=inbound.version,
            betas=inbound.betas,
        )
        return structs.replace(self._admitted, inbound=bare)

    def _leave_out(self, provider: str) -> None:
        """Ask no other model of a provider that did not make what the request holds."""
        targets = self._admitted.active.targets
        self._chain = deque(
            name
            for name in self._chain
            if name not in targets or targets[name].model.provider != provider
        )

    async def _without_state(self) -> ProviderAttempt | None:
        """Return a try without what nobody who was asked had made; ``None`` if none can be."""
        target = self._foreign
        if target is None:
            return None
        self._maker = ""  # nobody's
        if await self._readable_by(target) is None or not await self._is_held(target):
            return None
        one = await self._try(target, "retry", self._reservation)
        return one if one is not None and (one.outcome == "ok" or one.is_rejected) else None

    # ── two at once ────────────────────────────────────────────────────────────────────────

    async def _hedged(self, target: Target, hedge: Hedge) -> ProviderAttempt | None:
        """Return the sooner of two answers, if the first is late and a second may be asked for.

        The other stream is hung up on, which ends it; the other answer in one piece is made to its
        end, unseen (``see_outrun``). Both are paid.
        """
        budget = self._services.hedges(self._route.name, hedge.max_extra_percent)
        budget.deposit()
        kind = (target.model.name, self._exchange.streamed)
        late_s = (
            target.upstream.limiter.late_s(kind)
            if hedge.after_ms is None
            else hedge.after_ms / 1_000
        )
        if late_s is None:
            return await self._try_repeatedly(target, "first")
        tasks = [asyncio.create_task(self._try_repeatedly(target, "first"))]
        try:
            await asyncio.wait(tasks, timeout=late_s)
            if not tasks[0].done() and budget.withdraw():
                other = self._other_than(target)
                reservation = self._new_reservation()
                if await reservation.cover(other):
                    tasks.append(asyncio.create_task(self._try(other, "hedge", reservation)))
            for done in asyncio.as_completed(tasks):
                one = await done
                if one is not None and one.outcome == "ok":
                    self._is_won = True
                    if not self._exchange.streamed:
                        for rival in self.tries:
                            rival.outrun()
                        self._outrun = [task for task in tasks if not task.done()]
                    return one
            return await tasks[0]
        finally:
            lost = [task for task in tasks if task not in self._outrun]
            for task in lost:
                task.cancel()
            await asyncio.gather(*lost, return_exceptions=True)

    def _other_than(self, target: Target) -> Target:
        """Return the next that can be sent something; ``target`` again if there is none."""
        targets, now = self._admitted.active.targets, self._services.monotonic()
        for name in self._chain:
            other = targets.get(name)
            if other is not None and not other.refuses(now, self._who(other)):
                return other
        return target

    # ── how sure an answer is ──────────────────────────────────────────────────────────────

    def _is_to_be_judged(self, target: Target) -> bool:
        return (
            self._cascade is not None
            and target.model.id in self._candidates[:-1]
            and bool(self._chain)
        )

    async def _judge(self, one: ProviderAttempt) -> tuple[ProviderAttempt, bool]:
        """Return the answer, and whether it is sure enough to be told.

        Of several that agree the first is returned. An answer that broke off before its end is
        none, and its outcome says so: the walk goes on.
        """
        cascade = self._cascade
        answer = await one.collect()
        if cascade is None or one.outcome != "ok":
            return one, False
        sure: float | None
        if cascade.signal == "self_consistency":
            one, sure = await self._agreed(one, answer.text, cascade.samples)
        else:
            judge = self._admitted.active.compiled.policy.judge
            sure = _confidence(cascade.signal, answer, judge)
        one.judged(sure)
        return one, sure is not None and sure * 1_000 >= cascade.threshold_per_mille

    async def _agreed(
        self, one: ProviderAttempt, text: str, samples: int
    ) -> tuple[ProviderAttempt, float]:
        """Ask the same again, and return the first answer of those that agree, and their share.

        What the account cannot pay for, or the provider has no room for, is left out and agrees
        with nothing.
        """
        texts = {one: text}
        for sample in await asyncio.gather(*(self._sample(one.target) for _ in range(samples - 1))):
            if sample is not None and sample.outcome == "ok":
                said = (await sample.collect()).text
                if sample.outcome == "ok":
                    texts[sample] = said
        try:
            share, place = heard(agreement, list(texts.values()))
        except UnreadableError:
            share, place = 0.0, 0
        return list(texts)[place], share * len(texts) / samples

    async def _sample(self, target: Target) -> ProviderAttempt | None:
        reservation = self._new_reservation()
        return (
            await self._try(target, "sample", reservation)
            if await reservation.cover(target)
            else None
        )

    async def _keep(self, one: ProviderAttempt) -> None:
        """Pay for an answer that is told only if nothing better comes, and go on to the better."""
        await pay(self._exchange, self._admitted.facts, one.delivered())
        one.is_paid = True
        self._unsure = one
        place = self._candidates.index(one.target.model.id)
        weaker = self._candidates[: place + 1]
        self._chain = deque(name for name in self._chain if name not in weaker)
        self._reservation = self._new_reservation()

    # ── when nobody answers ────────────────────────────────────────────────────────────────

    async def _after_a_wait(self) -> ProviderAttempt | None:
        """Return a try at whoever limits our rate, if the limit passes soon; or ``None``."""
        limited = [target for target in self._limited if target.upstream.max_retries]
        if not limited:
            return None
        target = min(limited, key=self._rest_s)
        wait_s, left_s = self._rest_s(target), self._exchange.left_s()
        # Those who wait for the same instant should not come all at once.
        wait_s *= 1 + 0.2 * self._services.rng()
        if wait_s > LONGEST_WAIT_S or (left_s is not None and wait_s >= left_s):
            return None
        if not target.upstream.retries.withdraw() or not await self._is_held(target):
            return None
        await asyncio.sleep(wait_s)
        one = await self._try(target, "retry", self._reservation)
        return one if one is not None and (one.outcome == "ok" or one.is_rejected) else None

    def _rest_s(self, target: Target) -> float:
        now = self._services.monotonic()
        until = target.upstream.keys.rests_until(target.model.name, now)
        return 0.0 if until is None else until - now

    def _nobody_answered(self) -> UpstreamError:
        left_s = self._exchange.left_s()
        is_late = left_s is not None and left_s <= CLOCKS_APART_S
        if is_late and self._exchange.is_hurried:
            return deadline_exceeded()
        outcomes = {one.outcome for one in self.tries}
        if not outcomes and self._is_saturated:
            return UpstreamError(
                "As many requests are under way as the providers can take; try again shortly.",
                code="upstream_saturated",
                retry_after_s=1,
            )
        charged = " What the attempts may have cost is charged." if self._exchange.cost_nusd else ""
        if is_late or outcomes == {"timeout"}:
            return UpstreamError(
                f"No provider answered in time; try again.{charged}", code="upstream_timeout"
            )
        if outcomes <= {"rate_limited"} and self._limited:
            return UpstreamError(
                "Every provider is limiting our rate at the moment; try again shortly.",
                code="upstream_rate_limited",
                retry_after_s=1 + int(min(map(self._rest_s, self._limited))),
            )
        return UpstreamError(f"No provider could answer at the moment; try again shortly.{charged}")


def _confidence(signal: Signal, answer: Answer, judge: JudgeModel | None) -> float | None:
    """Return how sure an answer is; ``None`` if that cannot be read in it."""
    try:
        return heard(confidence, signal, answer, model=judge)
    except UnreadableError:
        return None
