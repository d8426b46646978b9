"""Walks the chain of models until one answers, and passes the answer on.

The rule: another try is made only before the first byte has gone out, only at a model of the
set that the policy allows, only when what it may cost is held, and only within the caller's
deadline. What a try is, and what is learnt from it, is ``waypost.validator.pipeline.attempt``'s;
who is sent how much more, ``waypost.validator.resilience``'s.
"""

import asyncio
from collections import deque

from waypost.shared.engine import Decision, larger_models
from waypost.shared.errors import UpstreamError
from waypost.shared.records import AttemptKind, AttemptOutcome
from waypost.validator.desk import Desk, Target
from waypost.validator.pipeline.attempt import Delivered, Try
from waypost.validator.pipeline.call import Call, Considered
from waypost.validator.pipeline.hang_up import HangUp
from waypost.validator.pipeline.reserve import Booking
from waypost.validator.problems import CALLER_GONE, deadline_exceeded
from waypost.validator.resilience.budget import full_jitter_s
from waypost.validator.resilience.keys import LONGEST_WAIT_S

__all__ = ["forward"]

# What may pass when the same provider is asked again at once. A time-out may too, but whoever
# has waited for one is better served elsewhere.
_PASSING: frozenset[AttemptOutcome] = frozenset({"connect_error", "server_error"})
# What another key of the same provider may mend.
_KEYS_FAULT: frozenset[AttemptOutcome] = frozenset({"key_refused", "rate_limited"})


async def forward(
    desk: Desk, call: Call, considered: Considered, decision: Decision, booking: Booking
) -> Delivered:
    """Return what reached the caller.

    Args:
        decision: what the booking pays for.

    Raises:
        UpstreamError: no model of the chain answered; nothing is held any more.
    """
    walk = _Walk(desk, call, considered, decision, booking)
    if not call.streamed:
        # It runs to its end even if the caller hangs up: only the end says what it cost.
        return await walk.deliver()
    async with HangUp(call.receive):
        return await walk.deliver()
    call.status = call.status or CALLER_GONE
    if walk.last is not None and walk.last.outcome in ("cancelled", "ok"):
        return walk.last.delivered()
    # Between two tries: what went before is not charged.
    await booking.release()
    raise UpstreamError("The caller hung up.", code="caller_gone")


class _Walk:
    """One request's way along the chain.

    Attributes:
        last: the try that is under way, or the last that was.
    """

    def __init__(
        self, desk: Desk, call: Call, considered: Considered, decision: Decision, booking: Booking
    ) -> None:
        self._desk = desk
        self._call = call
        self._considered = considered
        self._booking = booking
        self._chain = deque(decision.chain)
        route = considered.serving.routes.get(decision.route or "")
        if route is not None and route.timeout_ms is not None:
            call.end_after(route.timeout_ms, says_caller=False)
        self._held = decision.chain[0]
        self._limited: list[Target] = []
        self._rejected: Try | None = None
        self._is_saturated = False
        self.last: Try | None = None

    async def deliver(self) -> Delivered:
        """Return what reached the caller. Raises UpstreamError when nobody answered."""
        answered = await self._first_answer()
        if answered is None:
            await self._booking.release()
            raise self._nobody_answered()
        return await answered.deliver()

    async def _first_answer(self) -> Try | None:
        """Return the first try worth telling the caller of; ``None`` if there is none."""
        kind: AttemptKind = "first"
        while self._chain:
            target = await self._next_target()
            if target is None:
                continue
            one = await self._try_repeatedly(target, kind)
            if one is None:
                continue
            if one.outcome in ("ok", "client_error", "deadline_exceeded"):
                return one
            if one.is_rejected:
                self._rejected = one
            if one.outcome == "context_too_long":
                self._go_on_with_larger(target)
            kind = "fallback"
        return await self._after_a_wait() or self._rejected

    async def _next_target(self) -> Target | None:
        """Return the next of the chain, if it can be sent anything and its cost is held."""
        name = self._chain.popleft()
        target = self._considered.serving.targets.get(name)
        now = self._desk.monotonic()
        if target is None or target.breaker.refuses(now):
            return None
        if target.upstream.keys.rests_until(target.model.name, now) is not None:
            self._limited.append(target)
            return None
        return target if await self._is_held(target) else None

    async def _is_held(self, target: Target) -> bool:
        if target.model.id == self._held:
            return True
        # To hold more, what is held is given back first: a failure leaves nothing.
        self._held = target.model.id if await self._booking.cover(target) else ""
        return bool(self._held)

    def _go_on_with_larger(self, target: Target) -> None:
        """Of the chain, and then of all that this request may use, keep what has more room."""
        larger = larger_models(
            self._considered.serving.compiled, self._call.facts or self._considered.facts,
            than=target.model.id,
        )  # fmt: skip
        tried = {attempt.model for attempt in self._call.attempts}
        first = [name for name in self._chain if name in larger]
        self._chain = deque(dict.fromkeys([*first, *(n for n in larger if n not in tried)]))

    # ── one target ─────────────────────────────────────────────────────────────────────────

    async def _try_repeatedly(self, target: Target, kind: AttemptKind) -> Try | None:
        """Return the last try at ``target``; ``None`` if it was sent nothing."""
        upstream = target.upstream
        upstream.retries.deposit()
        last: Try | None = None
        for tries in range(1, upstream.max_retries + 2):
            one = await self._try(target, kind)
            if one is None:
                break
            last, kind = one, "retry"
            if tries > upstream.max_retries or not await self._pause(one, tries):
                break
        if last is not None and last.outcome == "rate_limited":
            self._limited.append(target)
        return last

    async def _pause(self, one: Try, tries: int) -> bool:
        """Wait as long as it takes; return whether the same target should be tried again."""
        upstream, now = one.target.upstream, self._desk.monotonic()
        if one.outcome in _PASSING:
            pause_s = full_jitter_s(tries, luck=self._desk.luck())
        elif one.outcome in _KEYS_FAULT and upstream.keys.count > 1:
            if upstream.keys.rests_until(one.target.model.name, now) is not None:
                return False
            pause_s = 0.0
        else:
            return False
        left_s = self._call.left_s()
        if (left_s is not None and pause_s >= left_s) or not upstream.retries.withdraw():
            return False
        await asyncio.sleep(pause_s)
        return True

    async def _try(self, target: Target, kind: AttemptKind) -> Try | None:
        """Return one try; ``None`` if ``target`` may be sent nothing now."""
        upstream, now = target.upstream, self._desk.monotonic()
        left_s = self._call.left_s()
        if left_s is not None and left_s <= 0:
            self._chain.clear()
            return None
        key = upstream.keys.take(target.model.name, now)
        # Another request may have taken the probe while we were reserving.
        if key is None or not target.breaker.admit(now):
            return None
        if not upstream.limiter.enter():
            target.breaker.abandoned()
            self._is_saturated = True
            return None
        self._call.model, self._booking.is_exposed = target.model.id, True
        one = self.last = Try(self._desk, self._call, self._considered, target, key=key, kind=kind)
        await one.open(output_tokens=self._booking.output_tokens)
        return one

    async def _after_a_wait(self) -> Try | None:
        """Return a try at whoever limits our rate, if the limit passes soon; or ``None``."""
        limited = [target for target in self._limited if target.upstream.max_retries]
        if not limited:
            return None
        target = min(limited, key=self._rest_s)
        wait_s, left_s = self._rest_s(target), self._call.left_s()
        # Those who wait for the same instant should not come all at once.
        wait_s *= 1 + 0.2 * self._desk.luck()
        if wait_s > LONGEST_WAIT_S or (left_s is not None and wait_s >= left_s):
            return None
        if not target.upstream.retries.withdraw() or not await self._is_held(target):
            return None
        await asyncio.sleep(wait_s)
        one = await self._try(target, "retry")
        return one if one is not None and (one.outcome == "ok" or one.is_rejected) else None

    def _nobody_answered(self) -> UpstreamError:
        left_s = self._call.left_s()
        is_late = left_s is not None and left_s <= 0
        if is_late and self._call.is_hurried:
            return deadline_exceeded()
        outcomes = {attempt.outcome for attempt in self._call.attempts}
        if not outcomes and self._is_saturated:
            return UpstreamError(
                "As many requests are under way as the providers can take; try again shortly.",
                code="upstream_saturated", retry_after_s=1,
            )  # fmt: skip
        if is_late or outcomes == {"timeout"}:
            return UpstreamError(
                "No provider answered in time; try again.", code="upstream_timeout"
            )
        if outcomes <= {"rate_limited"} and self._limited:
            return UpstreamError(
                "Every provider is limiting our rate at the moment; try again shortly.",
                code="upstream_rate_limited",
                retry_after_s=1 + int(min(map(self._rest_s, self._limited))),
            )
        return UpstreamError("No provider could answer at the moment; try again shortly.")

    def _rest_s(self, target: Target) -> float:
        now = self._desk.monotonic()
        until = target.upstream.keys.rests_until(target.model.name, now)
        return 0.0 if until is None else until - now
