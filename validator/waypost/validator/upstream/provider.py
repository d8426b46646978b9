"""One provider: its address, keys and connections, what it is spared, what its failures mean."""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec import Struct

from waypost.shared.contracts import Model
from waypost.shared.records import AttemptOutcome
from waypost.validator.config.providers import ProviderConfig
from waypost.validator.dialects.adapter import (
    Adapter,
    InboundRequest,
    ProviderRequest,
    UntranslatableError,
)
from waypost.validator.dialects.providers import DIALECTS, adapters, translations
from waypost.validator.http.transports.interface import (
    ExchangeError,
    Progress,
    Reply,
    Stage,
    Transport,
)
from waypost.validator.http.transports.selection import open_transport
from waypost.validator.upstream.breaker import Breaker, BreakerRules
from waypost.validator.upstream.key_pool import KeyPool
from waypost.validator.upstream.limiter import Limiter
from waypost.validator.upstream.retry_budget import ExtraBudget
from waypost.validator.upstream.unspoken import Unspoken

__all__ = ["Answer", "NoAnswerError", "Stream", "Upstream"]

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 * 1_048_576  # pictures and sounds come as base64 inside the JSON

# How long a connection is kept whose answer is over and whose body is not: the end of the body
# comes a packet later, and then it can be used again.
DRAIN_S = 1.0

# W3C Trace Context §3.2, version 00. Nothing else that a caller sends reaches a header.
_TRACE = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_OUTCOMES: dict[Stage, AttemptOutcome] = {
    "connect": "connect_error",
    "timeout": "timeout",
    "broken": "server_error",
    "malformed": "bad_response",
}


class NoAnswerError(Exception):
    """A provider could not be asked, or did not answer, or not to the end."""

    def __init__(self, outcome: AttemptOutcome, detail: str | None = None) -> None:
        super().__init__(outcome)
        self.outcome: AttemptOutcome = outcome
        self.detail = detail


class Answer(Struct, frozen=True):
    """A whole response of a provider. ``retry_after`` is the header, empty if not sent."""

    status: int
    body: bytes
    retry_after: str = ""


OnRest = Callable[[str, str, str, frozenset[str]], None]


class Upstream:
    """One provider, for one event loop.

    Attributes:
        adapters: the APIs it can be asked by → how, as it is configured.
        unspoken: those that it said it does not have.
        keys: its credentials; a request is sent with the one whose place it names.
        limiter: how many requests it gets at once.
        retries: how many more it gets because others failed.
        charge_unanswered: what to charge for a request whose answer never came.
        opened: the breakers of its models that are not closed.
        on_rest: is told of each rest that is given here.
        certificate_fault: what is wrong with its certificate; empty if nothing is known.
    """

    def __init__(
        self,
        name: str,
        config: ProviderConfig,
        *,
        api_keys: Sequence[str],
        transport: Transport | None = None,
        on_rest: OnRest | None = None,
    ) -> None:
        """Args:
        transport: what carries requests; ``None``: what ``config`` asks for, whatever the
            environment says of proxies.
        on_rest: is told the provider, model and region that is given a rest, and the
            fingerprints of the accounts that met it.
        """
        self.name = name
        dialect = DIALECTS[config.dialect]
        self.adapters = adapters(
            config.dialect,
            max_tokens_field=config.max_tokens_field,
            apis=None if config.apis is None else frozenset(config.apis),
            sampling=config.sampling,
            betas=frozenset(config.betas),
        )
        # For an API that it turns out not to have, where it can be asked by another.
        self._stand_ins = translations(
            config.dialect, max_tokens_field=config.max_tokens_field, sampling=config.sampling
        )
        self.unspoken = Unspoken()
        self.timeout_s = config.timeout_s
        self.max_retries = config.retries
        self.charge_unanswered = config.charge_unanswered
        self.limiter = Limiter(config.max_concurrency)
        self.retries = ExtraBudget(config.retry_percent)
        self.opened: set[Breaker] = set()
        self.on_rest = on_rest
        self.certificate_fault = ""
        self._rules = BreakerRules(**config.breaker.model_dump())
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._credentials = [_lines(dialect.headers(key)) for key in api_keys or (None,)]
        self.keys = KeyPool(len(self._credentials))
        self._draining: set[asyncio.Task[None]] = set()
        self._transport = transport or open_transport(name, config, {})

    @property
    def is_well(self) -> bool:
        """Whether nothing is known against any of its models, keys and APIs."""
        return not self.opened and not self.keys.is_any_resting and not self.unspoken

    def adapter(self, asked: InboundRequest, model: str, now: float) -> Adapter | None:
        """Return how to ask ``model`` for this; ``None`` while it is known not to have the API."""
        own = self.adapters.get(asked.endpoint)
        if own is None or not self.unspoken:
            return own
        streamed = asked.request.stream is True
        if not self.unspoken.is_silent(own.path(model, streamed=streamed), now):
            return own
        other = self._stand_ins.get(asked.endpoint)
        if other is None or self.unspoken.is_silent(other.path(model, streamed=streamed), now):
            return None
        try:
            other.check(asked)
        except UntranslatableError:
            return None
        return other

    def wake(self, asked: InboundRequest, model: str, now: float) -> None:
        """Have it asked by this API again soon, though it said that it does not have it."""
        own = self.adapters.get(asked.endpoint)
        if own is not None and self.unspoken:
            self.unspoken.wake(own.path(model, streamed=asked.request.stream is True), now)

    def unspoken_s(self, asked: InboundRequest, model: str, now: float) -> float:
        """Return how long it is not asked by this API; 0 if it is."""
        own = self.adapters.get(asked.endpoint)
        if own is None or not self.unspoken:
            return 0.0
        return self.unspoken.rests_s(own.path(model, streamed=asked.request.stream is True), now)

    def breaker(self, model: Model) -> Breaker:
        """Return the breaker of ``model`` here, the same under every manifest."""
        key = (model.name, model.region)
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._breakers[key] = Breaker(
                self._rules, opened=self.opened, tell=partial(self._rests, *key)
            )
        return breaker

    def _rests(self, model: str, region: str, accounts: frozenset[str]) -> None:
        if self.on_rest is not None:
            self.on_rest(self.name, model, region, accounts)

    def doubt(
        self, model: str, region: str, *, now: float, accounts: frozenset[str] = frozenset()
    ) -> None:
        """Heed that ``model`` was given a rest elsewhere; one that is not served here is not."""
        breaker = self._breakers.get((model, region))
        if breaker is not None:
            breaker.doubt(now, accounts)

    async def ask(
        self,
        asked: ProviderRequest,
        *,
        key: int,
        trace: bytes | None,
        until: float,
        progress: Progress | None = None,
    ) -> Answer:
        """Return the provider's answer, whole, whatever its status.

        Args:
            key: place of the credential.
            until: when it must be there, by the loop's clock.
            progress: is told when it has been sent, whatever is raised.

        Raises:
            NoAnswerError: there was none.
        """
        headers = self._credentials[key] + asked.headers + _trace_line(trace)
        try:
            with await self._transport.send(
                asked.body, path=asked.path, headers=headers, until=until, progress=progress
            ) as response:
                answer = await response.read_all(until=until, at_most=MAX_ANSWER_BYTES)
                self._sent()
                return Answer(response.status, answer, response.retry_after)
        except ExchangeError as failure:
            raise self._no_answer(failure) from failure

    async def open(
        self,
        asked: ProviderRequest,
        *,
        key: int,
        trace: bytes | None,
        until: float,
        progress: Progress | None = None,
    ) -> "Stream":
        """Return the provider's answer as it arrives, to be closed at the end.

        Raises:
            NoAnswerError: there was none.
        """
        headers = self._credentials[key] + asked.headers + _trace_line(trace)
        try:
            response = await self._transport.send(
                asked.body, path=asked.path, headers=headers, until=until, progress=progress
            )
        except ExchangeError as failure:
            raise self._no_answer(failure) from failure
        self._sent()
        return Stream(response, self._draining)

    @property
    def certificate_expires_at(self) -> float | None:
        """When its certificate expires, Unix seconds; ``None`` until it has been seen."""
        return self._transport.certificate_expires_at

    def _sent(self) -> None:
        if self.certificate_fault:
            self.certificate_fault = ""
            logger.info("provider %s: the certificate is good again", self.name)

    def _no_answer(self, failure: ExchangeError) -> NoAnswerError:
        fault = failure.detail
        if failure.stage != "connect" or not fault.startswith("certificate "):
            return NoAnswerError(_OUTCOMES[failure.stage])
        if fault != self.certificate_fault:  # once, not for each request
            self.certificate_fault = fault
            logger.error("provider %s: %s; nothing is sent to it", self.name, fault)
        return NoAnswerError(_OUTCOMES[failure.stage], fault)

    async def close(self) -> None:
        """Close all connections."""
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        await self._transport.close()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def _trace_line(trace: bytes | None) -> str:
    if trace is None or not _TRACE.fullmatch(trace):
        return ""
    return f"traceparent: {trace.decode()}\r\n"


class Stream:
    """A response whose body is still arriving."""

    __slots__ = ("_draining", "_response", "is_event_stream", "retry_after", "status")

    def __init__(self, response: Reply, draining: set[asyncio.Task[None]]) -> None:
        """Args:
        draining: holds the tasks that wait for the ends of bodies.
        """
        self.status = response.status
        self.retry_after = response.retry_after
        self.is_event_stream = response.content_type.lower().startswith(
            "text/event-stream"
        ) and response.content_encoding.lower() in ("", "identity")
        self._response = response
        self._draining = draining

    async def read(self, *, until: float) -> bytes:
        """Return the next bytes as they come off the wire; empty at the end.

        Raises:
            NoAnswerError: it broke off, or nothing came until then.
        """
        try:
            return await self._response.read(until=until)
        except ExchangeError as failure:
            raise NoAnswerError(_OUTCOMES[failure.stage]) from failure

    def close(self) -> None:
        """Let go of the connection; before the end of the body that hangs up."""
        self._response.close()

    def leave(self) -> None:
        """Let go of the connection after the answer; it is used again if its body ends soon."""
        if self._response.is_whole:
            self._response.close()
            return
        task = asyncio.create_task(self._drain())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _drain(self) -> None:
        until = asyncio.get_running_loop().time() + DRAIN_S
        try:
            while await self._response.read(until=until):
                pass
        except ExchangeError:
            pass
        finally:
            self._response.close()
