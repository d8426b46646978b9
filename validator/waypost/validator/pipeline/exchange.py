"""One request on its way through the pipeline, and what becomes known of it."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from time import perf_counter
from typing import Any, Protocol, Self

from msgspec import Struct

from waypost.shared.contracts import Facts, Proposal
from waypost.shared.decision.engine import Decision
from waypost.shared.errors import InvalidRequestError
from waypost.shared.money import Usage
from waypost.shared.records import Attempt, Verdict
from waypost.shared.wire.headers import format_decision
from waypost.shared.wire.trace_context import TraceContext
from waypost.validator.dialects.adapter import InboundRequest, UntranslatableError
from waypost.validator.ledger import Crossed
from waypost.validator.manifest.active import ActiveManifest, Principal

__all__ = [
    "AdmittedRequest",
    "Exchange",
    "Headers",
    "Lines",
    "Receive",
    "Send",
    "decision_id",
    "format_cost",
    "in_ms",
    "pick_headers",
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]
Lines = tuple[tuple[bytes, bytes], ...]

# What is read of a request. All else is neither looked at nor passed on.
_READ = frozenset(
    {
        b"anthropic-beta",
        b"anthropic-version",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"dpop",
        b"idempotency-key",
        b"traceparent",
        b"waypost-deadline-ms",
        b"waypost-facts",
        b"waypost-proposal",
    }
)
# Of which several lines are one list; what that means is for whoever reads it.
_LISTS = frozenset({b"anthropic-beta", b"authorization", b"dpop"})


def pick_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers that are read, each once.

    Several lines of a list are joined with commas, as HTTP joins them; the token check refuses
    what that makes of its own.

    Raises:
        InvalidRequestError: ``header_repeated``: of two lines, a proxy may have read the other.
    """
    headers: Headers = {}
    for name, value in raw:
        if name in _READ:
            if name in headers:
                if name not in _LISTS:
                    text = name.decode()
                    raise InvalidRequestError(
                        f"Send {text} once.", code="header_repeated", param=text
                    )
                value = headers[name] + b", " + value
            headers[name] = value
    return headers


# Whose spending a caller may know: its own, not what all others of its tier have left.
_OWN_KINDS = frozenset({"account", "tenant", "user"})


def format_crossed(crossed: Iterable[Crossed]) -> bytes:
    """Return ``Waypost-Budget``: an RFC 9651 list of the soft limits that are used up."""
    items: list[str] = []
    for one in crossed:
        kind = one.scope.partition(":")[0]
        item = f"{kind};window={one.window}"
        if kind in _OWN_KINDS:
            item += f";warn_nusd={one.warn_nusd};used_nusd={one.used_nusd}"
        if one.resets_at is not None:
            item += f";resets_at={one.resets_at}"
        items.append(item)
    return ", ".join(items).encode()


def format_cost(cost_nusd: int, *, is_confirmed: bool, others_nusd: int) -> Lines:
    """Return ``Waypost-Cost``, an RFC 9651 dictionary.

    Args:
        others_nusd: what other attempts have been charged when the answer begins.
    """
    members = f"nusd={cost_nusd}, confirmed{'' if is_confirmed else '=?0'}"
    if others_nusd:
        members += f", others_nusd={others_nusd}"
    return ((b"waypost-cost", members.encode()),)


def in_ms(seconds: float) -> float:
    """Return milliseconds to the microsecond."""
    # A quotient prints as briefly as what ``round`` makes of it, at a fifth of the cost.
    return int(seconds * 1_000_000) / 1_000


def decision_id(at_ms: int, randomness: int) -> str:
    """Return a UUIDv7 (RFC 9562 §5.7): ids sort by time, so stores append.

    Args:
        randomness: at least 74 bits.
    """
    value = (
        at_ms << 80
        | 0x7 << 76
        | (randomness >> 62 & 0xFFF) << 64
        | 0b10 << 62
        | (randomness & 0x3FFF_FFFF_FFFF_FFFF)
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class BreakingOff(Protocol):
    """Writes the last events of a stream that ends as it should not."""

    def __call__(self, message: str, *, code: str) -> bytes: ...


class AdmittedRequest(Struct, frozen=True):
    """A request that may be served, before anything is spent on it."""

    principal: Principal
    active: ActiveManifest
    inbound: InboundRequest
    facts: Facts
    decision: Decision


class Exchange(Struct, kw_only=True, eq=False):
    """One request. Filled in step by step; the record is made of it at the end.

    Attributes:
        endpoint: the API it came by.
        at_ms: when it arrived, Unix milliseconds; ``now`` in seconds.
        started: when, by ``perf_counter``; ``marked`` is when its last step ended.
        has_whole_body: whether ``receive`` returns it at once.
        nonce: for the caller's next proof.
        untranslatable: why a provider cannot be asked this; the first that was found.
        body_digest: of a large body, for its idempotency key.
        is_counted: whether it counts as a request already, where the account is limited by them.
        sign: makes the receipt when the answer begins; ``None`` where nothing is signed.
        ends_at: by ``perf_counter``; ``is_hurried`` says that it is the caller's wish.
        answered_ms: how long the caller waited for all of the answer, where the request goes on
            unseen after that; ``None`` otherwise.
        breaking_off: writes the events that end a stream which has begun and must not go on;
            ``None`` where no stream is under way.
    """

    raw_headers: list[tuple[bytes, bytes]]
    method: str
    path: str
    receive: Receive
    send: Send
    endpoint: str
    id: str
    at_ms: int
    now: int
    started: float
    marked: float
    has_whole_body: bool = False
    steps_ms: dict[str, float] = {}
    headers: Headers = {}
    body: bytes = b""
    active: ActiveManifest | None = None
    principal: Principal | None = None
    nonce: str | None = None
    facts: Facts | None = None
    untranslatable: UntranslatableError | None = None
    proposal: Proposal | None = None
    repeats: str | None = None
    body_digest: str | None = None
    is_counted: bool = False
    is_canary: bool = False
    trace: TraceContext | None = None
    sign: "Callable[[Exchange], bytes] | None" = None
    decision: Decision | None = None
    verdict: Verdict = "refused"
    reason: str = ""
    detail: str | None = None
    attempts: list[Attempt] = []
    model: str | None = None
    usage: Usage | None = None
    reserved_nusd: int = 0
    cost_nusd: int = 0
    unconfirmed_nusd: int = 0
    crossed: tuple[Crossed, ...] = ()
    streamed: bool = False
    ends_at: float | None = None
    is_hurried: bool = False
    ttft_ms: float | None = None
    status: int = 0
    has_started: bool = False
    answered_ms: float | None = None
    breaking_off: "BreakingOff | None" = None

    @classmethod
    def begin(
        cls,
        scope: Message,
        receive: Receive,
        send: Send,
        *,
        endpoint: str,
        at: float,
        randomness: int,
        has_whole_body: bool = False,
        sign: "Callable[[Exchange], bytes] | None" = None,
    ) -> Self:
        """Return the exchange that ``scope`` begins.

        Args:
            endpoint: the API it came by.
            at: Unix seconds.
            randomness: at least 74 bits, for the id.
            has_whole_body: whether ``receive`` returns it at once.
            sign: makes the receipt; ``None``: nothing is signed.
        """
        at_ms, started = int(at * 1_000), perf_counter()
        return cls(
            raw_headers=scope["headers"],
            method=scope["method"],
            path=scope["path"],
            receive=receive,
            send=send,
            endpoint=endpoint,
            id=decision_id(at_ms, randomness),
            at_ms=at_ms,
            now=int(at),
            started=started,
            marked=started,
            has_whole_body=has_whole_body,
            sign=sign,
        )

    def take(self, decision: Decision) -> None:
        """Note what was decided; a later word replaces an earlier one."""
        self.decision = decision
        self.verdict, self.reason = decision.verdict, decision.reason

    def mark(self, step: str) -> None:
        """Note that ``step`` ended now, or more of it: several attempts are one ``forward``."""
        if self.answered_ms is not None:
            return  # what comes now nobody waits for
        now = perf_counter()
        before_s = self.steps_ms.get(step, 0.0) / 1_000
        self.steps_ms[step] = in_ms(before_s + now - self.marked)
        self.marked = now

    def end_after(self, limit_ms: int, *, says_caller: bool) -> None:
        """Have it end so long after its arrival; the earlier of several ends holds."""
        ends_at = self.started + limit_ms / 1_000
        if self.ends_at is None or ends_at < self.ends_at:
            self.ends_at, self.is_hurried = ends_at, says_caller

    def left_s(self) -> float | None:
        """Return the time that is left; ``None`` where nothing bounds it."""
        return None if self.ends_at is None else self.ends_at - perf_counter()

    @property
    def duration_ms(self) -> float:
        """How long the caller waited."""
        return self.elapsed_ms() if self.answered_ms is None else self.answered_ms

    def elapsed_ms(self) -> float:
        """Milliseconds since the arrival."""
        return in_ms(perf_counter() - self.started)

    async def start(
        self,
        status: int,
        content_type: bytes,
        *,
        length: int | None,
        extra: Lines = (),
    ) -> None:
        """Send the head of the response: what was decided, and how long each step took."""
        self.status = status
        decision = format_decision(
            decision_id=self.id,
            verdict=self.verdict,
            model=None if self.verdict == "refused" else self.model,
            reason=self.reason,
        )
        timing = ", ".join([f"{step};dur={ms}" for step, ms in self.steps_ms.items()])
        headers = [
            (b"content-type", content_type),
            (b"waypost-decision", decision.encode()),
            (b"server-timing", timing.encode()),
            (b"x-request-id", self.id.encode()),
            *extra,
        ]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        if self.active is not None:
            headers.append(self.active.header)
        if self.crossed:
            headers.append((b"waypost-budget", format_crossed(self.crossed)))
        if self.nonce is not None:
            headers.append((b"dpop-nonce", self.nonce.encode()))
        if self.endpoint == "messages":
            headers.append((b"request-id", self.id.encode()))  # where Anthropic's SDKs look
        if self.sign is not None:
            headers.append((b"waypost-receipt", self.sign(self)))
        self.has_started = True  # not before: what could not be written can still be an error
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: bytes = b"application/json",
        extra: Lines = (),
    ) -> None:
        """Send a whole response."""
        await self.start(status, content_type, length=len(body), extra=extra)
        await self.send({"type": "http.response.body", "body": body})

    async def break_off(self, message: str, *, code: str) -> None:
        """End the stream that is under way, if one is, with an error of the caller's API."""
        breaking_off, self.breaking_off = self.breaking_off, None
        if breaking_off is not None:
            await self.send(
                {"type": "http.response.body", "body": breaking_off(message, code=code)}
            )
