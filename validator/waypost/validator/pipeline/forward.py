"""Sends the request to the first model of the chain that answers, and the answer to the caller.

The rule: another model is tried only before the first byte has gone out, only from the chain
that the policy allows, and only when what it may cost is held. After the first byte a failure
is told to the caller, never papered over.
"""

import asyncio
import random
from contextlib import suppress
from time import perf_counter
from types import TracebackType
from typing import Self

from msgspec import Struct

from waypost.shared.engine import Decision
from waypost.shared.errors import UpstreamError
from waypost.shared.measure import ChatRequest
from waypost.shared.money import Usage
from waypost.shared.records import Attempt, AttemptOutcome
from waypost.validator.desk import Desk, Target
from waypost.validator.pipeline.call import Call, Considered, Receive
from waypost.validator.pipeline.reserve import Booking
from waypost.validator.problems import CALLER_GONE, OK, envelope, outcome_of
from waypost.validator.providers import StreamReader
from waypost.validator.upstream import Answer, NoAnswerError, Stream

__all__ = ["Delivered", "forward"]

MAX_ERROR_BYTES = 65_536
EVENT_STREAM = b"text/event-stream; charset=utf-8"
# Proxies in front of us would otherwise collect a stream before they pass it on.
STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

CUT_SHORT = "The provider broke off in the middle of the answer; what came so far is charged."


class Delivered(Struct, frozen=True):
    """What reached the caller, for the bill.

    Attributes:
        usage: as the provider told it; ``None`` if it did not.
        output_bytes: bytes of answer, which bound its tokens where ``usage`` is missing.
    """

    target: Target
    outcome: AttemptOutcome
    usage: Usage | None
    output_bytes: int


async def forward(
    desk: Desk, call: Call, considered: Considered, decision: Decision, booking: Booking
) -> Delivered:
    """Return what reached the caller.

    Args:
        decision: what the booking pays for.

    Raises:
        UpstreamError: no model of the chain answered; nothing is held any more.
    """
    for place, name in enumerate(decision.chain):
        target = considered.serving.targets.get(name)
        if target is None or target.upstream.breaker.refuses(desk.monotonic()):
            continue
        # The first model's cost is held already.
        if place and not await booking.cover(target):
            continue
        if not target.upstream.breaker.admit(desk.monotonic()):
            continue  # another request took the probe while we were reserving
        call.model, booking.is_exposed = name, True
        hop = _Hop(desk, call, target)
        body = target.upstream.dialect.request(
            call.body,
            model=target.model.name,
            max_tokens_field=target.upstream.max_tokens_field,
            output_tokens=booking.output_tokens,
            streamed=call.streamed,
        )
        delivered = await (
            _streamed(hop, body, considered.request) if call.streamed else _whole(hop, body)
        )
        if delivered is not None:
            return delivered
    await booking.release()
    raise _nobody_answered(call.attempts)


def _nobody_answered(attempts: list[Attempt]) -> UpstreamError:
    outcomes = {attempt.outcome for attempt in attempts}
    if outcomes == {"timeout"}:
        return UpstreamError("No provider answered in time; try again.", code="upstream_timeout")
    if outcomes == {"rate_limited"}:
        return UpstreamError(
            "Every provider is limiting our rate at the moment; try again shortly.",
            code="upstream_rate_limited",
        )
    return UpstreamError("No provider could answer at the moment; try again shortly.")


class _Hop:
    """One try at one provider: its clock, its breaker, its line in the record."""

    __slots__ = ("_desk", "_started", "call", "target", "trace", "ttft_ms")

    def __init__(self, desk: Desk, call: Call, target: Target) -> None:
        self._desk = desk
        self._started = perf_counter()
        self.call = call
        self.target = target
        self.ttft_ms: float | None = None
        self.trace = call.headers.get(b"traceparent")

    def first_byte(self) -> None:
        """Note that the answer has begun."""
        self.ttft_ms = self._elapsed_ms()

    def _elapsed_ms(self) -> float:
        return round((perf_counter() - self._started) * 1_000, 3)

    def ended(self, outcome: AttemptOutcome, status: int | None) -> None:
        """Tell breaker and record how it went."""
        breaker = self.target.upstream.breaker
        match outcome:
            case "ok" | "client_error":
                breaker.succeeded()
            case "cancelled" | "rate_limited":
                # Neither says that the provider is ill; a limit has its own remedy.
                breaker.abandoned()
            case _:
                breaker.failed(self._desk.monotonic(), luck=random.random())
        self.call.attempts.append(
            Attempt(
                model=self.target.model.id,
                provider=self.target.model.provider,
                outcome=outcome,
                http_status=status,
                ttft_ms=self.ttft_ms,
                duration_ms=self._elapsed_ms(),
            )
        )
        self.call.mark("forward")


# ── in one piece ───────────────────────────────────────────────────────────────────────────────


async def _whole(hop: _Hop, body: bytes) -> Delivered | None:
    """Return what reached the caller; ``None`` if another model should be tried.

    It runs to its end even if the caller hangs up: only the end says what it cost.
    """
    target = hop.target
    try:
        answer = await target.upstream.ask(body, trace=hop.trace)
    except NoAnswerError as exc:
        hop.ended(exc.outcome, None)
        return None
    outcome = outcome_of(answer.status)
    usage: Usage | None = None
    if outcome == "ok":
        try:
            usage = target.upstream.dialect.usage(answer.body)
        except ValueError:
            outcome = "bad_response"
    hop.ended(outcome, answer.status)
    if outcome == "client_error":
        return await _pass_error_on(hop, answer)
    if outcome != "ok":
        return None
    await hop.call.answer(OK, answer.body)
    return Delivered(target, outcome, usage, len(answer.body))


async def _pass_error_on(hop: _Hop, answer: Answer) -> Delivered:
    """Tell the caller what the provider found wrong with the request. It costs nothing."""
    body = answer.body
    if not hop.target.upstream.dialect.is_error(body):
        body = envelope(
            "The provider rejected the request and did not say why.",
            kind="invalid_request_error",
            code="upstream_rejected",
        )
    await hop.call.answer(answer.status, body)
    return Delivered(hop.target, "client_error", None, 0)


# ── as a stream ────────────────────────────────────────────────────────────────────────────────


class _HangUp:
    """Ends the body of its ``async with`` when the caller goes away; ``happened`` then says so."""

    def __init__(self, receive: Receive) -> None:
        self.happened = False
        self._receive = receive

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._listener = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._listener.cancel()
        with suppress(asyncio.CancelledError):
            await self._listener
        if not self.happened or self._task is None:
            return False
        # As asyncio.timeout does: our own cancellation ends here, anybody else's goes on.
        return self._task.uncancel() == 0 and kind is asyncio.CancelledError


class _Progress:
    """How far one streamed answer has got."""

    __slots__ = ("outcome", "reader", "status")

    def __init__(self, reader: StreamReader) -> None:
        self.reader = reader
        self.outcome: AttemptOutcome = "cut_short"
        self.status: int | None = None


async def _streamed(hop: _Hop, body: bytes, request: ChatRequest) -> Delivered | None:
    """Return what reached the caller; ``None`` if another model should be tried."""
    call, target = hop.call, hop.target
    options = request.stream_options
    shows_usage = options is not None and options.include_usage is True
    progress = _Progress(target.upstream.dialect.reader(shows_usage=shows_usage))
    rejection: Answer | None = None
    async with _HangUp(call.receive) as hang_up:
        try:
            rejection = await _relay(hop, body, progress)
        except NoAnswerError as exc:
            progress.outcome = "cut_short" if call.has_started else exc.outcome
        except ValueError:
            progress.outcome = "cut_short" if call.has_started else "bad_response"
    if progress.reader.is_done and call.has_started:
        # Whatever happened to the connection afterwards: SDKs hang up as soon as they read [DONE].
        progress.outcome = "ok"
    elif hang_up.happened:
        progress.outcome = "cancelled"
        call.status = call.status or CALLER_GONE
    hop.ended(progress.outcome, progress.status)
    if rejection is not None:
        return await _pass_error_on(hop, rejection)
    if not call.has_started and progress.outcome != "cancelled":
        return None
    if call.has_started:
        rest = b""
        if progress.outcome == "cut_short" and not progress.reader.has_failed:
            rest = progress.reader.breaking_off(CUT_SHORT, code="upstream_cut_short")
        await call.send({"type": "http.response.body", "body": rest})
    return Delivered(target, progress.outcome, progress.reader.usage, progress.reader.output_bytes)


async def _relay(hop: _Hop, body: bytes, progress: _Progress) -> Answer | None:
    """Pass a provider's stream on as it arrives; return its answer if that is a rejection."""
    call, reader = hop.call, progress.reader
    async with hop.target.upstream.stream(body, trace=hop.trace) as response:
        progress.status = response.status
        progress.outcome = outcome_of(response.status)
        if progress.outcome != "ok":
            if progress.outcome == "client_error":
                return await _rejection(response)
            return None
        progress.outcome = "bad_response"
        if not response.is_event_stream:
            return None
        while chunk := await response.read():
            events = reader.feed(chunk)
            if not events:
                continue
            if not call.has_started:
                if reader.has_failed:
                    progress.outcome = "server_error"
                    return None
                progress.outcome = "cut_short"
                hop.first_byte()
                call.ttft_ms = call.elapsed_ms()
                call.steps_ms["forward"] = hop.ttft_ms or 0.0
                await call.start(OK, EVENT_STREAM, length=None, extra=STREAM_HEADERS)
            await call.send({"type": "http.response.body", "body": events, "more_body": True})
    return None


async def _rejection(response: Stream) -> Answer:
    body = b""
    while len(body) < MAX_ERROR_BYTES and (chunk := await response.read()):
        body += chunk
    return Answer(response.status, body)
