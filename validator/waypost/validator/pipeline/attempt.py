"""One try at one provider: asked, told apart from failure, and passed on to the caller.

The rule: until ``open`` has something to pass on, nothing has reached the caller and another
model may be tried. From then on a failure is told, never papered over. However a try ends, it
ends once: breaker, limiter, keys and record learn of it.
"""

import asyncio
import random
from time import perf_counter

from msgspec import Struct, structs

from waypost.shared.money import Usage
from waypost.shared.records import Attempt, AttemptKind, AttemptOutcome
from waypost.shared.tracecontext import traceparent
from waypost.validator.apis import StreamReader
from waypost.validator.cascade.answers import Answer, read_answer, with_logprobs
from waypost.validator.desk import Desk
from waypost.validator.pipeline.call import Call, Considered, in_ms
from waypost.validator.pipeline.reserve import Booking
from waypost.validator.problems import OK, deadline_exceeded, describe, outcome_of, rejected
from waypost.validator.resilience.causes import cause_of_rejection
from waypost.validator.resilience.keys import retry_after_s
from waypost.validator.serving import Target
from waypost.validator.speech import Outgoing
from waypost.validator.upstream import NoAnswerError, Stream

__all__ = ["Delivered", "Try"]

MAX_ERROR_BYTES = 65_536
EVENT_STREAM = b"text/event-stream; charset=utf-8"
# Proxies in front of us would otherwise collect a stream before they pass it on.
STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

CUT_SHORT = "The provider broke off in the middle of the answer; what came so far is charged."
TOO_LATE = "The deadline passed in the middle of the answer; what came so far is charged."

# What the provider found wrong with the request. It served nothing and charges nothing.
_REJECTIONS: frozenset[AttemptOutcome] = frozenset(
    {"client_error", "content_filter", "context_too_long"}
)


class Delivered(Struct, frozen=True):
    """What reached the caller, for the bill.

    Attributes:
        booking: what pays for it; ``is_paid`` if it has already.
        is_free: no provider charges for it: it was sent nothing, or refused.
        usage: as the provider told it; ``None`` if it did not.
        output_bytes: bytes of answer, which bound its tokens where ``usage`` is missing; ``None``
            where nothing but the hold does.
        place: among the request's attempts.
    """

    target: Target
    outcome: AttemptOutcome
    is_free: bool
    usage: Usage | None
    output_bytes: int | None
    booking: Booking
    place: int
    is_paid: bool = False


class _LateError(Exception):
    """The caller's deadline passed in the middle of the answer."""


class Try:
    """One request to one provider, and what came of it.

    Attributes:
        outcome: ``cancelled`` until it is known.
        status: of the provider's response; ``None`` without one.
        confidence: how sure the answer is, where a cascade judged it.
        booking: what pays for it; ``is_paid`` if it has already.
        is_cut_by_caller: whether it is the caller's deadline that bounds it.
        was_sent: whether a byte of the request may have reached the provider.
    """

    __slots__ = (
        "_answer",
        "_asked",
        "_beside",
        "_desk",
        "_detail",
        "_events",
        "_has_ended",
        "_key",
        "_kind",
        "_place",
        "_reader",
        "_retry_after_s",
        "_span_id",
        "_speech",
        "_started",
        "_started_ms",
        "_stream",
        "_ttft_ms",
        "_usage",
        "_wants_logprobs",
        "booking",
        "call",
        "confidence",
        "is_cut_by_caller",
        "is_paid",
        "outcome",
        "status",
        "target",
        "was_sent",
    )

    def __init__(
        self,
        desk: Desk,
        call: Call,
        considered: Considered,
        target: Target,
        *,
        booking: Booking,
        key: int,
        kind: AttemptKind,
        wants_logprobs: bool = False,
    ) -> None:
        self.booking = booking
        self._wants_logprobs = wants_logprobs
        self._desk = desk
        self.call = call
        self._asked = considered.asked
        # What a provider has no words for was left out of the set.
        self._speech = target.upstream.speeches[call.endpoint]
        self.target = target
        self._key = key
        self._kind: AttemptKind = kind
        self._place = 0
        self._beside = target.upstream.limiter.in_flight
        self._started = perf_counter()
        self._started_ms = call.elapsed_ms()
        self._span_id = None if call.trace is None else f"{random.getrandbits(64) or 1:016x}"
        self._ttft_ms: float | None = None
        self._answer = self._events = b""
        self._usage: Usage | None = None
        self._reader: StreamReader | None = None
        self._stream: Stream | None = None
        self._retry_after_s: float | None = None
        self._detail: str | None = None
        self._has_ended = self.is_cut_by_caller = self.is_paid = self.was_sent = False
        self.confidence: float | None = None
        self.outcome: AttemptOutcome = "cancelled"
        self.status: int | None = None

    # ── until there is something to pass on ────────────────────────────────────────────────

    @property
    def is_rejected(self) -> bool:
        """Whether the provider found something wrong with the request, and can be quoted."""
        return self.outcome in _REJECTIONS

    async def open(self) -> None:
        """Ask, and wait for an answer, or for the first events of one; see ``outcome``."""
        outgoing = self._speech.request(
            self._asked,
            model=self.target.model.name,
            output_tokens=self.booking.output_tokens,
        )
        # Of what OpenAI's dialect has, chat completions alone take the order as it is given.
        if self._wants_logprobs and outgoing.path == "/chat/completions":
            outgoing = structs.replace(outgoing, body=with_logprobs(outgoing.body))
        try:
            if self.call.streamed:
                await self._open_stream(outgoing)
            else:
                await self._ask(outgoing)
        except NoAnswerError as failure:
            self.outcome, self._detail = failure.outcome, failure.detail
            if failure.outcome == "timeout" and self.is_cut_by_caller:
                self.outcome = "deadline_exceeded"
        except _LateError:
            self.outcome = "deadline_exceeded"
        except ValueError:
            self.outcome = "bad_response"
        except BaseException:
            self._end("cancelled")
            raise
        if self._stream is None or self.outcome != "ok":
            self._end(self.outcome)

    async def collect(self) -> Answer:
        """Return what the answer says, all of it; nothing of it has reached the caller.

        A stream is waited for to its end. If that does not come ``outcome`` is no longer ``ok``.
        """
        if self._reader is None:
            return read_answer(self._answer, streamed=False)
        outcome: AttemptOutcome = "server_error"
        try:
            pieces = [self._events]
            while events := await self._next(self._reader):
                pieces.append(events)
            self._events = b"".join(pieces)
            if self._reader.is_done and not self._reader.has_failed:
                outcome = "ok"
        except _LateError:
            outcome = "deadline_exceeded"
        except (NoAnswerError, ValueError):
            pass
        except BaseException:
            self._end("cancelled")
            raise
        self._end(outcome)
        return read_answer(self._events, streamed=True)

    def judged(self, confidence: float | None) -> None:
        """Note how sure the answer is."""
        self.confidence = confidence
        self.call.attempts[self._place] = structs.replace(
            self.call.attempts[self._place],
            confidence=None if confidence is None else round(confidence, 4),
        )

    def _until(self) -> float:
        """Return when the provider must have said something more, by the loop's clock."""
        now = asyncio.get_running_loop().time()
        until = now + self.target.upstream.timeout_s
        left_s = self.call.left_s()
        if left_s is None or now + left_s >= until:
            self.is_cut_by_caller = False
            return until
        self.is_cut_by_caller = self.call.is_hurried
        return now + left_s

    async def _ask(self, outgoing: Outgoing) -> None:
        upstream, trace = self.target.upstream, self._traceparent()
        answer = await upstream.ask(
            outgoing, key=self._key, trace=trace, until=self._until(), progress=self
        )
        self._answered(answer.status, answer.retry_after, answer.body)
        if self.outcome == "ok":
            reply = self._speech.reply(self._asked, answer.body)
            self._answer, self._usage = reply.body, reply.usage

    def _traceparent(self) -> bytes | None:
        """Return what tells the provider of the trace; the caller's own where we add nothing."""
        if self.call.trace is None or self._span_id is None:
            return self.call.headers.get(b"traceparent")
        return traceparent(self.call.trace, self._span_id)

    async def _open_stream(self, outgoing: Outgoing) -> None:
        upstream, trace = self.target.upstream, self._traceparent()
        stream = self._stream = await upstream.open(
            outgoing, key=self._key, trace=trace, until=self._until(), progress=self
        )
        if stream.status != OK:
            self._answered(stream.status, stream.retry_after, await self._rest_of(stream))
            return
        self.status, self.outcome = stream.status, "bad_response"
        if not stream.is_event_stream:
            return
        reader = self._reader = self._speech.reader(self._asked)
        # From here to the first event, however slowly it comes, is one silence.
        self._events = await self._next(reader, until=self._until())
        if self._events:
            self._ttft_ms = self._elapsed_ms()
            # An error as the first event is no answer.
            self.outcome = "server_error" if reader.has_failed else "ok"
            if self.outcome == "ok":
                self._began(self._ttft_ms / 1_000)

    def _began(self, after_s: float) -> None:
        target = self.target
        target.breaker.began(after_s=after_s)
        # Now, not at the end: a new process must know before half a minute of streams has ended.
        target.upstream.limiter.answered(
            (target.model.name, True), after_s, beside=self._beside, now=self._desk.monotonic()
        )

    async def _rest_of(self, stream: Stream) -> bytes:
        body = b""
        while len(body) < MAX_ERROR_BYTES and (chunk := await stream.read(until=self._until())):
            body += chunk
        return body

    def _answered(self, status: int, retry_after: str, body: bytes) -> None:
        self.status = status
        self.outcome = outcome_of(status)
        self._answer = body
        if self.outcome == "client_error":
            self.outcome = cause_of_rejection(body)
        elif self.outcome == "rate_limited":
            self._retry_after_s = retry_after_s(retry_after, now=self._desk.clock())

    # ── passing it on ──────────────────────────────────────────────────────────────────────

    async def deliver(self) -> Delivered:
        """Pass the answer on to the caller, or what the provider found wrong, or the deadline."""
        self.call.model = self.target.model.id
        if self._reader is not None and self.outcome == "ok":
            return await self._relay(self._reader)
        if self.outcome == "ok":
            await self.call.answer(OK, self._answer)
        elif self.is_rejected:
            await self._pass_error_on()
        else:
            refusal = deadline_exceeded()
            self.call.verdict, self.call.reason = "refused", refusal.code
            self.call.detail = refusal.message
            problem = describe(refusal, self.call.endpoint, request_id=self.call.id)
            await self.call.answer(problem.status, problem.body, extra=problem.headers)
        return self.delivered()

    def delivered(self) -> Delivered:
        """Return what reached the caller so far."""
        usage = self._usage if self._reader is None else self._reader.usage
        return Delivered(
            self.target,
            self.outcome,
            self._is_free,
            usage,
            self._answer_bytes,
            self.booking,
            self._place,
            self.is_paid,
        )

    @property
    def _is_free(self) -> bool:
        if not self.was_sent or self.status not in (None, OK):
            return True
        reader = self._reader
        if reader is not None and reader.has_failed and not reader.output_bytes:
            return True
        return not self._is_size_known and self.target.upstream.charge_unanswered == "nothing"

    @property
    def _is_size_known(self) -> bool:
        """Whether what came is all that was made. Of an answer not seen it may be any length."""
        if self._reader is not None and self._reader.output_bytes:
            return True
        # Of a stream that is hung up on no more is made.
        is_stopped = self.call.streamed and self.outcome in ("cancelled", "deadline_exceeded")
        return is_stopped or self.outcome == "ok"

    @property
    def _answer_bytes(self) -> int | None:
        """How many bytes bound the answer; ``None`` if the hold alone does."""
        if not self._is_size_known:
            return None if self.target.upstream.charge_unanswered == "full" else 0
        return len(self._answer) if self._reader is None else self._reader.output_bytes

    async def _pass_error_on(self) -> None:
        body = self._speech.rejection(self._asked, self._answer)
        if body is None:
            body = rejected(self.call.endpoint, self.call.id)
        await self.call.answer(self.status or OK, body)

    async def _relay(self, reader: StreamReader) -> Delivered:
        """Pass a stream on as it arrives."""
        call = self.call
        try:
            call.ttft_ms = call.elapsed_ms()
            call.mark("forward")  # so far, for Server-Timing
            await call.start(OK, EVENT_STREAM, length=None, extra=STREAM_HEADERS)
            outcome = await self._pass_events_on(reader)
        except BaseException:
            # SDKs hang up as soon as they have read the end: that is an answer like any other.
            self._end("ok" if reader.is_done else "cancelled")
            raise
        self._end(outcome)
        rest = b""
        if outcome != "ok" and not reader.has_failed:
            is_late = outcome == "deadline_exceeded"
            rest = reader.breaking_off(
                TOO_LATE if is_late else CUT_SHORT,
                code="deadline_exceeded" if is_late else "upstream_cut_short",
            )
        await call.send({"type": "http.response.body", "body": rest})
        return self.delivered()

    async def _pass_events_on(self, reader: StreamReader) -> AttemptOutcome:
        send, events = self.call.send, self._events
        self._events = b""
        await send({"type": "http.response.body", "body": events, "more_body": True})
        try:
            while events := await self._next(reader):
                # Waits while the caller does not read, and the provider with it.
                await send({"type": "http.response.body", "body": events, "more_body": True})
        except _LateError:
            return "deadline_exceeded"
        except (NoAnswerError, ValueError):
            pass
        return "ok" if reader.is_done else "cut_short"

    async def _next(self, reader: StreamReader, *, until: float | None = None) -> bytes:
        """Return the next events to pass on; empty at the end.

        Args:
            until: when they must be there; ``None``: no more than the provider may be silent.

        Raises:
            NoAnswerError: the provider broke off.
            ValueError: an event without end.
            _LateError: the caller's deadline passed.
        """
        stream = self._stream
        try:
            while stream is not None and not self._has_ended:
                chunk = await stream.read(until=until or self._until())
                if not chunk:
                    break
                if events := reader.feed(chunk):
                    return events
        except NoAnswerError as failure:
            # Whatever happened to the connection after the end of the answer.
            if not reader.is_done:
                if failure.outcome == "timeout" and self.is_cut_by_caller:
                    raise _LateError from failure
                raise
        return b""

    # ── how it ended ───────────────────────────────────────────────────────────────────────

    def abandon(self) -> None:
        """Hang up on the provider, if it is not over yet."""
        self._end("cancelled")

    def _elapsed_ms(self) -> float:
        return in_ms(perf_counter() - self._started)

    def _end(self, outcome: AttemptOutcome) -> None:
        """Let go of the connection; tell breaker, limiter, keys and record how it went."""
        if self._has_ended:
            return
        self._has_ended = True
        self.outcome = outcome
        if self._stream is not None:
            self._stream.close()
        duration_ms = self._elapsed_ms()
        began_ms = duration_ms if self._ttft_ms is None else self._ttft_ms
        self._teach(outcome, after_s=began_ms / 1_000)
        self._place = len(self.call.attempts)
        self.call.attempts.append(
            Attempt(
                model=self.target.model.id,
                provider=self.target.model.provider,
                kind=self._kind,
                outcome=outcome,
                detail=self._detail,
                http_status=self.status,
                ttft_ms=self._ttft_ms,
                duration_ms=duration_ms,
                started_ms=self._started_ms,
                span_id=self._span_id,
            )
        )
        self.call.mark("forward")

    def _teach(self, outcome: AttemptOutcome, *, after_s: float) -> None:
        upstream, breaker = self.target.upstream, self.target.breaker
        name = self.target.model.name
        now = self._desk.monotonic()
        limiter, keys = upstream.limiter, upstream.keys
        limiter.leave()
        match outcome:
            case "ok":
                breaker.succeeded(now, after_s=after_s)
                keys.answered(self._key, name)
                if not self.call.streamed:
                    limiter.answered((name, False), after_s, beside=self._beside, now=now)
            case "client_error" | "content_filter" | "context_too_long":
                breaker.succeeded(now, after_s=0.0)
                keys.answered(self._key, name)
            case "rate_limited":
                # It does not say that the provider is ill; a limit has its own remedy.
                breaker.abandoned()
                keys.limited(self._key, name, now, retry_after_s=self._retry_after_s)
                limiter.dropped()
            case "cancelled" | "deadline_exceeded" if after_s < breaker.rules.slow_after_s:
                # Or callers in a hurry could have a provider put to rest for everybody.
                breaker.abandoned()
            case _:
                if outcome == "key_refused":
                    keys.refused(self._key, name, now)
                elif outcome == "timeout":
                    limiter.dropped()
                breaker.failed(now, luck=self._desk.luck())
