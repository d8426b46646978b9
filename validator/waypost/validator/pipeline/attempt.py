"""One try at one provider: asked, told apart from failure, and passed on to the caller.

The rule: until ``open`` has something to pass on, nothing has reached the caller and another
model may be tried. From then on a failure is told, never papered over. However a try ends, it
ends once: breaker, limiter, keys and record learn of it.
"""

import asyncio
import logging
import random
from contextlib import suppress
from functools import partial
from time import perf_counter

import msgspec
from msgspec import UNSET, Struct, structs

from waypost.shared.contracts import Model
from waypost.shared.records import Attempt, AttemptKind, AttemptOutcome
from waypost.shared.wire.trace_context import traceparent
from waypost.validator.dialects.adapter import ProviderRequest, Reply, UnreadableError, heard
from waypost.validator.dialects.passthrough import StreamReader
from waypost.validator.dialects.told_cost import with_cost, with_cost_in_events
from waypost.validator.dialects.usage import NOTHING
from waypost.validator.http.problems import OK, deadline_exceeded, describe, outcome_of, rejected
from waypost.validator.http.provider_errors import read_complaint, says_error
from waypost.validator.lane import is_large
from waypost.validator.manifest.active import Target
from waypost.validator.pipeline.calls import with_calls
from waypost.validator.pipeline.cascade.answers import Answer, read_answer, with_logprobs
from waypost.validator.pipeline.charge import Charge, Evidence, charge_for
from waypost.validator.pipeline.exchange import (
    AdmittedRequest,
    Exchange,
    Lines,
    format_cost,
    in_ms,
)
from waypost.validator.pipeline.hold import Reservation
from waypost.validator.services import Services
from waypost.validator.upstream.breaker import ANYONE, Witness
from waypost.validator.upstream.causes import cause_of_error, cause_of_status
from waypost.validator.upstream.key_pool import retry_after_s
from waypost.validator.upstream.provider import NoAnswerError, Stream

__all__ = ["Delivered", "ProviderAttempt"]

logger = logging.getLogger(__name__)

MAX_ERROR_BYTES = 65_536
TELL_S = 1.0
# What comes before an answer, as pings and announcements do, is kept until some of the answer
# comes, so that another model can still be asked. Not for longer than this: pings keep callers, and
# proxies in between, from giving up.
HELD_BACK_S = 10.0
MAX_HELD_BACK_BYTES = 1_048_576  # a response is announced with its instructions and tools in it
# How long after its end an answer is waited on for the usage; then for the end of the stream.
# Those who tell the usage do so at once: it is known when the last token is.
USAGE_WAIT_S = 2.0
END_WAIT_S = 0.25
_CHATS = frozenset({"chat.completions", "completions"})
EVENT_STREAM = b"text/event-stream; charset=utf-8"
# Proxies in front of us would otherwise collect a stream before they pass it on.
STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

CUT_SHORT = "The provider broke off in the middle of the answer; what came so far is charged."
UNREADABLE = (
    "The provider sent something that cannot be read in the middle of the answer; what came so far"
    " is charged."
)
STOPPED = "The validator stopped in the middle of the answer; what came so far is charged."
TOO_LATE = "The deadline passed in the middle of the answer; what came so far is charged."

# What the provider found wrong with the request. It served nothing and charges nothing.
_REJECTIONS: frozenset[AttemptOutcome] = frozenset(
    {"client_error", "content_filter", "context_too_long", "foreign_state"}
)
# An answer in one piece that was asked to be long may take longer than a silence. The official SDKs
# of OpenAI and Anthropic wait ten minutes (their ``timeout``, read on 2026-11-28).
LONGEST_ANSWER_S = 600.0
SLOW_PACE = 2.0  # a model may write at half the speed that is expected of it


class Delivered(Struct, frozen=True):
    """What reached the caller, for the bill.

    Attributes:
        evidence: what is known of what it used.
        reservation: what pays for it; ``is_paid`` if it has already.
        place: among the request's attempts.
    """

    target: Target
    outcome: AttemptOutcome
    evidence: Evidence
    reservation: Reservation
    place: int
    is_paid: bool = False

    @property
    def is_free(self) -> bool:
        """Whether no provider charges for it: it was sent nothing, or refused."""
        return self.evidence.is_free


class _LateError(Exception):
    """The caller's deadline passed in the middle of the answer."""


class ProviderAttempt:
    """One request to one provider, and what came of it.

    Attributes:
        outcome: ``cancelled`` until it is known.
        status: of the provider's response; ``None`` without one.
        confidence: how sure the answer is, where a cascade judged it.
        reservation: what pays for it; ``is_paid`` if it has already.
        is_cut_by_caller: whether it is the caller's deadline that bounds it.
        is_outrun: whether another answered sooner, so that nobody will be told of this.
        was_sent: whether a byte of the request may have reached the provider.
    """

    __slots__ = (
        "_account",
        "_adapter",
        "_answer",
        "_beside",
        "_detail",
        "_done_at",
        "_events",
        "_facts",
        "_first_ms",
        "_has_ended",
        "_inbound",
        "_is_read",
        "_is_refused",
        "_key",
        "_kind",
        "_length_s",
        "_measured",
        "_path",
        "_place",
        "_reader",
        "_report",
        "_retry_after_s",
        "_services",
        "_span_id",
        "_started",
        "_started_ms",
        "_stream",
        "_ttft_ms",
        "_wants_logprobs",
        "confidence",
        "exchange",
        "is_cut_by_caller",
        "is_outrun",
        "is_paid",
        "outcome",
        "reservation",
        "status",
        "target",
        "was_sent",
    )

    def __init__(
        self,
        services: Services,
        exchange: Exchange,
        admitted: AdmittedRequest,
        target: Target,
        *,
        reservation: Reservation,
        key: int,
        kind: AttemptKind,
        wants_logprobs: bool = False,
    ) -> None:
        self.reservation = reservation
        self._wants_logprobs = wants_logprobs
        self._services = services
        self.exchange = exchange
        self._inbound = admitted.inbound
        self._account = admitted.principal.account
        self._measured = admitted.facts.measured
        self._facts = admitted.facts
        # What a provider has no words for was left out of the set.
        self._adapter = target.upstream.adapters[exchange.endpoint]
        if target.upstream.unspoken:
            now = services.monotonic()
            self._adapter = target.upstream.adapter(self._inbound, target.model.name, now) or (
                self._adapter
            )
        self._path = ""
        self._length_s = (
            0.0 if exchange.streamed else _length_s(admitted, target.model, reservation)
        )
        self.target = target
        self._key = key
        self._kind: AttemptKind = kind
        self._place = 0
        self._beside = target.upstream.limiter.in_flight
        self._started = perf_counter()
        self._started_ms = exchange.elapsed_ms()
        self._span_id = None if exchange.trace is None else f"{random.getrandbits(64) or 1:016x}"
        self._first_ms: float | None = None  # until a byte came that is an event's
        self._ttft_ms: float | None = None
        self._done_at: float | None = None
        self._answer = self._events = b""
        self._report = NOTHING
        self._is_refused = False
        self._reader: StreamReader | None = None
        self._stream: Stream | None = None
        self._retry_after_s: float | None = None
        self._detail: str | None = None
        self._has_ended = self._is_read = False
        self.is_cut_by_caller = self.is_outrun = self.is_paid = self.was_sent = False
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
        try:
            if is_large(self._inbound.body):
                provider_request = await self._services.lane.run(self._outgoing)
            else:
                provider_request = self._outgoing()
            if self.exchange.streamed:
                await self._open_stream(provider_request)
            else:
                await self._ask(provider_request)
        except NoAnswerError as failure:
            self.outcome, self._detail = failure.outcome, failure.detail
            if failure.outcome == "timeout" and self.is_cut_by_caller:
                self.outcome = "deadline_exceeded"
        except _LateError:
            self.outcome = "deadline_exceeded"
        except UnreadableError as exc:
            self._cannot_read(str(exc))
            self.outcome = "bad_response"
        except BaseException:
            self._end(self._given_up)
            raise
        if self._stream is None or self.outcome != "ok":
            self._end(self.outcome)

    def _outgoing(self) -> ProviderRequest:
        """Return what to send."""
        provider_request = self._adapter.request(
            self._inbound,
            model=self.target.model.name,
            output_tokens=self.reservation.output_tokens,
        )
        # Of what OpenAI's dialect has, chat completions alone take the order as it is given.
        if self._wants_logprobs and provider_request.path == "/chat/completions":
            provider_request = structs.replace(
                provider_request, body=with_logprobs(provider_request.body)
            )
        if self._measured.extras is not UNSET:
            body = with_calls(provider_request.body, self.target.model, self._measured)
            provider_request = structs.replace(provider_request, body=body)
        self._path = provider_request.path
        return provider_request

    async def collect(self) -> Answer:
        """Return what the answer says, all of it; nothing of it has reached the caller.

        A stream is waited for to its end. If that does not come ``outcome`` is no longer ``ok``.
        """
        if self._reader is None:
            return await self._read(self._answer, streamed=False)
        outcome: AttemptOutcome = "server_error"
        try:
            pieces = [self._events]
            while events := await self._next(self._reader):
                pieces.append(events)
            self._events = b"".join(pieces)
            outcome = self._how_it_ended(self._reader, broken="server_error")
        except _LateError:
            outcome = "deadline_exceeded"
        except NoAnswerError:
            pass
        except UnreadableError as exc:
            self._cannot_read(str(exc))
            outcome = "bad_response"
        except BaseException:
            self._end(self._given_up)
            raise
        self._end(outcome)
        return await self._read(self._events, streamed=True)

    async def _read(self, answer: bytes, *, streamed: bool) -> Answer:
        if is_large(answer):
            return await self._services.lane.run(partial(_read_answer, answer, streamed=streamed))
        return _read_answer(answer, streamed=streamed)

    def judged(self, confidence: float | None) -> None:
        """Note how sure the answer is."""
        self.confidence = confidence
        self.exchange.attempts[self._place] = structs.replace(
            self.exchange.attempts[self._place],
            confidence=None if confidence is None else round(confidence, 4),
        )

    def _until(self) -> float:
        """Return when the provider must have said something more, by the loop's clock."""
        now = asyncio.get_running_loop().time()
        until = now + max(self.target.upstream.timeout_s, self._length_s)
        left_s = self.exchange.left_s()
        if left_s is None or now + left_s >= until:
            self.is_cut_by_caller = False
            return until
        self.is_cut_by_caller = self.exchange.is_hurried
        return now + left_s

    async def _ask(self, provider_request: ProviderRequest) -> None:
        upstream, trace = self.target.upstream, self._traceparent()
        answer = await upstream.ask(
            provider_request, key=self._key, trace=trace, until=self._until(), progress=self
        )
        self._answered(answer.status, answer.retry_after, answer.body)
        if self.outcome == "ok":
            await self._take(answer.body)

    async def _take(self, body: bytes) -> None:
        """Take an answer in one piece.

        Raises:
            ValueError: it is none.
        """

        def read() -> Reply:
            return heard(self._adapter.reply, self._inbound, body)

        try:
            reply = await self._services.lane.run(read) if is_large(body) else read()
        except ValueError:
            if self._refuses(body):
                return
            # What it used is told all the same, as by a model that could not spell its call.
            with suppress(ValueError):
                self._report = heard(self._adapter.report, body)
            raise
        self._answer, self._report = reply.body, reply.report

    def _refuses(self, body: bytes) -> bool:
        """Whether ``body`` is an error or a page, whatever the status says: nobody answered.

        OpenRouter documents errors with status 200 (bifrost#5963, langchain#40362, 2026); a page is
        of a proxy or a login on the way.
        """
        text = body.lstrip()
        if not text or text.startswith(b"<"):
            self._is_refused, self.outcome = True, "bad_response"
            return True
        try:
            is_error = heard(_is_error, body)
        except ValueError:
            return False
        if is_error:
            with suppress(ValueError):
                self._report = heard(self._adapter.report, body)
            self._is_refused = not self._report.told_output
            self.outcome = cause_of_error(body)
            self._answer = body
        return is_error

    def _traceparent(self) -> bytes | None:
        """Return what tells the provider of the trace; the caller's own where we add nothing."""
        if self.exchange.trace is None or self._span_id is None:
            return self.exchange.headers.get(b"traceparent")
        return traceparent(self.exchange.trace, self._span_id)

    async def _open_stream(self, provider_request: ProviderRequest) -> None:
        upstream, trace = self.target.upstream, self._traceparent()
        stream = self._stream = await upstream.open(
            provider_request, key=self._key, trace=trace, until=self._until(), progress=self
        )
        if stream.status != OK:
            self._answered(stream.status, stream.retry_after, await self._rest_of(stream))
            return
        self.status, self.outcome = stream.status, "bad_response"
        if not stream.is_event_stream:
            await self._look_into(stream)
            return
        await self._await_answer(self._adapter.reader(self._inbound))

    async def _look_into(self, stream: Stream) -> None:
        """See what came in the place of a stream: it may be an error, or tell what it used."""
        until = asyncio.get_running_loop().time() + USAGE_WAIT_S
        with suppress(NoAnswerError, ValueError):
            body = await self._rest_of(stream, until=min(until, self._until()))
            if not self._refuses(body):
                self._report = heard(self._adapter.report, body)

    async def _await_answer(self, reader: StreamReader) -> None:
        """Read until some of an answer has come: as long as none has, there may be another try."""
        self._reader = reader
        # From here to the first event, however slowly it comes, is one silence.
        until: float | None = self._until()
        held_until = asyncio.get_running_loop().time() + HELD_BACK_S
        held: list[bytes] = []
        held_bytes = 0
        while events := await self._next(reader, until=until):
            until = None
            held.append(events)
            held_bytes += len(events)
            if self._first_ms is None:
                self._first_ms = self._elapsed_ms()
            if reader.has_begun or reader.has_failed or reader.fault:
                break
            is_late = asyncio.get_running_loop().time() >= held_until
            if is_late or held_bytes > MAX_HELD_BACK_BYTES:
                break
        self._events = b"".join(held)
        # An error before any of the answer is no answer, nor is an end without one.
        if reader.has_failed:
            self.outcome = "server_error" if reader.output_bytes else cause_of_error(reader.failure)
            # What is owed after it, if it is told after all.
            self._events += self._services.scrubber.bytes(heard(reader.end, is_whole=False))
        else:
            self.outcome = self._how_it_ended(reader, broken="ok" if events else "bad_response")
        if self.outcome == "ok":
            self._ttft_ms = self._elapsed_ms()
            self._began((self._first_ms or self._ttft_ms) / 1_000)

    def _how_it_ended(self, reader: StreamReader, *, broken: AttemptOutcome) -> AttemptOutcome:
        """Return what came of a stream of which no more is read."""
        if reader.has_failed:
            return broken
        if reader.is_done:
            return "ok"
        if reader.fault:
            self._cannot_read(reader.fault)
            return "bad_response"
        return broken

    def _cannot_read(self, why: str) -> None:
        # The kind alone: what providers send may quote the prompt.
        logger.warning(
            "request %s: what %s sent cannot be read: %s",
            self.exchange.id, self.target.model.provider, why,
        )  # fmt: skip

    async def _rest_of(self, stream: Stream, *, until: float | None = None) -> bytes:
        body = b""
        while len(body) < MAX_ERROR_BYTES:
            chunk = await stream.read(until=self._until() if until is None else until)
            if not chunk:
                break
            body += chunk
        return body

    def _answered(self, status: int, retry_after: str, body: bytes) -> None:
        self.status = status
        self.outcome = outcome_of(status)
        self._answer = body
        if status == OK:
            return
        self.outcome = cause_of_status(status, body, otherwise=self.outcome)
        if self.outcome == "rate_limited":
            self._retry_after_s = retry_after_s(retry_after, now=self._services.clock())
        elif self.outcome == "api_unsupported" and self.target.upstream.unspoken.has_spoken(
            self._path
        ):
            self.outcome = "bad_response"  # it has the API; something else was not found

    # ── passing it on ──────────────────────────────────────────────────────────────────────

    async def deliver(self) -> Delivered:
        """Pass the answer on to the caller, or what the provider found wrong, or the deadline."""
        self.exchange.model = self.target.model.id
        if self._reader is not None and self.outcome == "ok":
            return await self._relay(self._reader)
        if self.outcome == "ok":
            lines = await self._tell_cost() if self._services.tells_cost else ()
            await self.exchange.answer(OK, self._answer, extra=lines)
        elif self.is_rejected and self._reader is not None:
            return await self._relay(self._reader)
        elif self.is_rejected:
            await self._pass_error_on()
        else:
            refusal = deadline_exceeded()
            self.exchange.verdict, self.exchange.reason = "refused", refusal.code
            self.exchange.detail = refusal.message
            problem = describe(refusal, self.exchange.endpoint, request_id=self.exchange.id)
            await self.exchange.answer(problem.status, problem.body, extra=problem.headers)
        return self.delivered()

    async def _tell_cost(self) -> Lines:
        """Put the cost into the answer as far as the operator wants; return the header for it."""
        how, exchange = self._services.config.tell_cost, self.exchange
        try:
            charge = charge_for(self.delivered().evidence, self.target.model, self._facts)
        except Exception:
            logger.exception("request %s: its cost cannot be told", exchange.id)
            return ()
        if how.usage:
            work = partial(with_cost, self._answer, charge.cost_nusd)
            is_long = is_large(self._answer)
            self._answer = await self._services.lane.run(work) if is_long else work()
        if not how.header:
            return ()
        others = exchange.cost_nusd - (charge.cost_nusd if self.is_paid else 0)
        return format_cost(charge.cost_nusd, is_confirmed=charge.is_confirmed, others_nusd=others)

    def _with_cost(self, events: bytes, reader: StreamReader) -> bytes:
        """Return ``events`` with the cost in what tells the last usage, if that is among them."""
        endpoint = self.exchange.endpoint
        # Some tell a usage with each piece. Of chats the end is known; others name the event.
        if endpoint in _CHATS and not reader.is_done:
            return events
        try:
            charge = self._charge_so_far(reader)
        except Exception:
            logger.exception("request %s: its cost cannot be told", self.exchange.id)
            return events
        return with_cost_in_events(endpoint, events, charge.cost_nusd)

    def _charge_so_far(self, reader: StreamReader) -> Charge:
        return charge_for(
            Evidence(
                is_free=False,
                report=reader.report,
                has_output=True,
                is_final=reader.is_done or reader.has_last_word,
                output_bytes=reader.output_bytes,
                reported_bytes=reader.reported_bytes,
                held_nusd=self.reservation.amount_nusd,
                output_tokens=self.reservation.output_tokens,
            ),
            self.target.model,
            self._facts,
        )

    async def break_off(self) -> None:
        """End what the caller has the beginning of, as the validator itself ends."""
        reader = self._reader
        if reader is None or reader.is_done or reader.has_failed:
            return
        self.exchange.detail = STOPPED
        rest = reader.breaking_off(STOPPED, code="stopping")
        # A caller that does not read cannot be told.
        with suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                await self.exchange.send({"type": "http.response.body", "body": rest})

    def delivered(self) -> Delivered:
        """Return what reached the caller so far."""
        reader, answer_bytes = self._reader, self._answer_bytes
        # An answer in one piece tells its usage of all of it.
        evidence = Evidence(
            is_free=self._is_free,
            report=self._report if reader is None else reader.report,
            has_output=self.exchange.endpoint != "embeddings",
            is_final=reader is None or reader.is_done or reader.has_last_word,
            output_bytes=answer_bytes,
            reported_bytes=answer_bytes or 0 if reader is None else reader.reported_bytes,
            held_nusd=self.reservation.amount_nusd,
            output_tokens=self.reservation.output_tokens,
        )
        return Delivered(
            self.target,
            self.outcome,
            evidence,
            self.reservation,
            self._place,
            self.is_paid,
        )

    @property
    def _is_free(self) -> bool:
        if not self.was_sent or self._is_refused or self.status not in (None, OK):
            return True
        reader = self._reader
        if reader is not None and reader.has_failed and not reader.output_bytes:
            # Unless it says what it has used all the same.
            return not (reader.has_last_word and reader.report.told_output)
        return not self._is_size_known and self.target.upstream.charge_unanswered == "nothing"

    @property
    def _is_size_known(self) -> bool:
        """Whether what came is all that was made. Of an answer not seen it may be any length."""
        if self._reader is not None and self._reader.output_bytes:
            return True
        # Of a stream that is hung up on no more is made.
        ends = ("cancelled", "stopped", "deadline_exceeded")
        is_stopped = self.exchange.streamed and self.outcome in ends
        return is_stopped or self.outcome == "ok"

    @property
    def _answer_bytes(self) -> int | None:
        """How many bytes bound the answer; ``None`` if the hold alone does."""
        if not self._is_size_known:
            return None if self.target.upstream.charge_unanswered == "full" else 0
        return len(self._answer) if self._reader is None else self._reader.output_bytes

    async def _pass_error_on(self) -> None:
        try:
            body = heard(self._adapter.rejection, self._inbound, self._answer)
        except UnreadableError:
            body = None
        if body is None:
            body = rejected(self.exchange.endpoint, self.exchange.id, read_complaint(self._answer))
        # Neither a 200 nor a 429 is what it is: callers' SDKs would take it, or ask again.
        status = 400 if self.status in (None, OK, 429) else self.status
        await self.exchange.answer(status, self._services.scrubber.bytes(body))

    async def _relay(self, reader: StreamReader) -> Delivered:
        """Pass a stream on as it arrives."""
        exchange = self.exchange
        try:
            exchange.ttft_ms = exchange.elapsed_ms()
            exchange.mark("forward")  # so far, for Server-Timing
            exchange.breaking_off = reader.breaking_off
            await exchange.start(OK, EVENT_STREAM, length=None, extra=STREAM_HEADERS)
            outcome = await self._pass_events_on(reader)
        except BaseException:
            # SDKs hang up as soon as they have read the end: that is an answer like any other.
            self._end("ok" if reader.is_done and not reader.has_failed else self._given_up)
            raise
        self._end(outcome)
        rest = b"" if outcome == "ok" or reader.has_failed else self._told_of_end(reader, outcome)
        exchange.breaking_off = None
        await exchange.send({"type": "http.response.body", "body": rest})
        return self.delivered()

    def _told_of_end(self, reader: StreamReader, outcome: AttemptOutcome) -> bytes:
        if outcome == "deadline_exceeded":
            return reader.breaking_off(TOO_LATE, code="deadline_exceeded")
        why = UNREADABLE if outcome == "bad_response" else CUT_SHORT
        return reader.breaking_off(why, code="upstream_cut_short")

    async def _pass_events_on(self, reader: StreamReader) -> AttemptOutcome:
        send, events = self.exchange.send, self._events
        self._events = b""
        await send({"type": "http.response.body", "body": events, "more_body": True})
        try:
            while events := await self._next(reader):
                # Waits while the caller does not read, and the provider with it.
                await send({"type": "http.response.body", "body": events, "more_body": True})
        except _LateError:
            return "deadline_exceeded"
        except NoAnswerError:
            return "cut_short"
        except UnreadableError as exc:
            self._cannot_read(str(exc))
            return "bad_response"
        return self._how_it_ended(reader, broken="cut_short")

    async def _next(self, reader: StreamReader, *, until: float | None = None) -> bytes:
        """Return the next events to pass on; empty at the end.

        Args:
            until: when they must be there; ``None``: no more than the provider may be silent.

        Raises:
            NoAnswerError: the provider broke off.
            UnreadableError: it sent what cannot be read.
            _LateError: the caller's deadline passed.
        """
        stream = self._stream
        if stream is None or self._has_ended or self._is_read:
            return b""
        is_whole = False
        try:
            while not reader.is_over:
                chunk = await stream.read(until=until or self._patience(reader))
                if not chunk:
                    is_whole = True
                    break
                if events := heard(reader.feed, chunk):
                    return self._passable(events, reader)
        except (NoAnswerError, UnreadableError) as failure:
            # Whatever happens after the end of the answer.
            if not (reader.is_done or reader.has_failed):
                is_late = isinstance(failure, NoAnswerError) and failure.outcome == "timeout"
                if is_late and self.is_cut_by_caller:
                    raise _LateError from failure
                raise
        self._is_read = True
        return self._passable(heard(reader.end, is_whole=is_whole), reader)

    def _passable(self, events: bytes, reader: StreamReader) -> bytes:
        """Return ``events`` as the caller is to see them.

        That is without our keys, which a provider's error may quote, and with the cost if that is
        to be told.
        """
        if self._services.tells_cost_in_usage and b'"usage"' in events:
            events = self._with_cost(events, reader)
        return self._services.scrubber.bytes(events) if reader.has_failed and events else events

    def _patience(self, reader: StreamReader) -> float:
        """Return when the provider must have said more, by the loop's clock."""
        until = self._until()
        if not (reader.is_done or reader.has_failed):
            return until
        now = asyncio.get_running_loop().time()
        if self._done_at is None:
            self._done_at = now
        awaits_usage = reader.usage is None and not reader.has_failed
        return min(until, self._done_at + (USAGE_WAIT_S if awaits_usage else END_WAIT_S))

    # ── how it ended ───────────────────────────────────────────────────────────────────────

    def outrun(self) -> None:
        """Note that another was sooner, if it is not over yet."""
        self.is_outrun = not self._has_ended

    def abandon(self) -> None:
        """Hang up on the provider, if it is not over yet."""
        self._end(self._given_up)

    @property
    def _given_up(self) -> AttemptOutcome:
        return "stopped" if self._services.shutdown.is_cut else "cancelled"

    def _elapsed_ms(self) -> float:
        return in_ms(perf_counter() - self._started)

    def _end(self, outcome: AttemptOutcome) -> None:
        """Let go of the connection; tell breaker, limiter, keys and record how it went."""
        if self._has_ended:
            return
        self._has_ended = True
        self.outcome = outcome
        if self._stream is not None and outcome == "ok":
            self._stream.leave()
        elif self._stream is not None:
            self._stream.close()
        duration_ms = self._elapsed_ms()
        first_ms = duration_ms if self._first_ms is None else self._first_ms
        began_ms = duration_ms if self._ttft_ms is None else self._ttft_ms
        self._teach(outcome, after_s=first_ms / 1_000, began_s=began_ms / 1_000)
        self._place = len(self.exchange.attempts)
        self.exchange.attempts.append(
            Attempt(
                model=self.target.model.id,
                provider=self.target.model.provider,
                kind=self._kind,
                outcome="cancelled" if self.is_outrun and outcome == "ok" else outcome,
                detail=self._detail,
                http_status=self.status,
                ttft_ms=self._ttft_ms,
                duration_ms=duration_ms,
                started_ms=self._started_ms,
                span_id=self._span_id,
            )
        )
        self.exchange.mark("forward")

    def _who(self) -> Witness:
        """Return whose request it is, where the breaker cares."""
        return Witness.of(self._account, self._inbound.body)

    def _began(self, after_s: float) -> None:
        target = self.target
        breaker = target.breaker
        breaker.began(after_s=after_s, who=self._who() if breaker.asks_who else ANYONE)
        # Now, not at the end: a new process must know before half a minute of streams has ended.
        target.upstream.limiter.answered(
            (target.model.name, True), after_s, beside=self._beside, now=self._services.monotonic()
        )

    def _own_delay_s(self, after_s: float) -> float:
        """Return how late an answer began, as far as its length does not account for it."""
        if self.exchange.streamed:
            return after_s
        written_s = self._length_s
        told = self._report.output_tokens
        if told is not None:
            written_s = told * SLOW_PACE / self.target.model.tokens_per_s_prior
        return max(0.0, after_s - written_s)

    def _teach(self, outcome: AttemptOutcome, *, after_s: float, began_s: float) -> None:
        """Args:
        after_s: when the first event came, or the end: a model may think before it answers.
        began_s: when the answer began, or the end.
        """
        upstream, breaker = self.target.upstream, self.target.breaker
        name = self.target.model.name
        now = self._services.monotonic()
        limiter, keys = upstream.limiter, upstream.keys
        limiter.leave()
        delay_s = self._own_delay_s(after_s)
        is_slow = delay_s >= breaker.rules.slow_after_s
        who = self._who() if breaker.asks_who or is_slow else ANYONE
        match outcome:
            case "ok":
                breaker.succeeded(now, after_s=delay_s, who=who, rng=self._services.rng())
                keys.answered(self._key, name)
                if not self.exchange.streamed:
                    limiter.answered((name, False), began_s, beside=self._beside, now=now)
                upstream.unspoken.spoke(self._path)
            case "client_error" | "content_filter" | "context_too_long" | "foreign_state":
                breaker.succeeded(now, after_s=0.0, who=who)
                keys.answered(self._key, name)
            case "api_unsupported":
                # Nor does it say anything of the model.
                breaker.abandoned(who)
                upstream.unspoken.refused(self._path, now)
            case "rate_limited":
                # It does not say that the provider is ill; a limit has its own remedy.
                breaker.abandoned(who)
                keys.limited(self._key, name, now, retry_after_s=self._retry_after_s)
                limiter.dropped()
            case "stopped":
                breaker.abandoned(who)
            case "cancelled" | "deadline_exceeded" if not is_slow:
                # Or callers in a hurry could have a provider put to rest for everybody.
                breaker.abandoned(who)
            case _:
                if outcome == "key_refused":
                    keys.refused(self._key, name, now)
                elif outcome == "timeout":
                    limiter.dropped()
                breaker.failed(
                    now,
                    rng=self._services.rng(),
                    who=self._who(),
                    # Nothing of the request had been sent.
                    is_anyones=outcome == "connect_error",
                )


def _is_error(body: bytes) -> bool:
    return len(body) <= MAX_ERROR_BYTES and says_error(msgspec.json.decode(body))


def _read_answer(body: bytes, *, streamed: bool) -> Answer:
    """Return what an answer says; nothing if that cannot be read."""
    try:
        return heard(read_answer, body, streamed=streamed)
    except UnreadableError:
        return Answer()


def _length_s(admitted: AdmittedRequest, model: Model, reservation: Reservation) -> float:
    """Return how long an answer in one piece may take, if it is as long as was asked for."""
    asked = admitted.facts.measured.max_output_tokens
    if not asked:
        return 0.0
    tokens = min(asked, reservation.output_tokens)
    written_s = model.ttft_prior_ms / 1_000 + tokens * SLOW_PACE / model.tokens_per_s_prior
    return min(written_s, LONGEST_ANSWER_S)
