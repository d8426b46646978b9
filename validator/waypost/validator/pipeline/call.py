"""One request on its way through the pipeline, and what becomes known of it."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from time import perf_counter
from typing import Any

from msgspec import Struct

from waypost.shared.contracts import Facts, Proposal
from waypost.shared.engine import Decision
from waypost.shared.errors import InvalidRequestError
from waypost.shared.headers import format_decision
from waypost.shared.money import Usage
from waypost.shared.records import Attempt, Verdict
from waypost.shared.tracecontext import TraceContext
from waypost.validator.ledger import Crossed
from waypost.validator.serving import Caller, Serving
from waypost.validator.speech import Asked, UntranslatableError

__all__ = ["Call", "Considered", "Headers", "Receive", "Send", "decision_id", "pick_headers"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]

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


class Considered(Struct, frozen=True):
    """A request that may be served, before anything is spent on it."""

    caller: Caller
    serving: Serving
    asked: Asked
    facts: Facts
    decision: Decision


class Call:
    """One request. Filled in step by step; the record is made of it at the end.

    Attributes:
        endpoint: the API it came by.
        nonce: for the caller's next proof.
        untranslatable: why a provider cannot be asked this; the first that was found.
        ends_at: by ``perf_counter``; ``is_hurried`` says that it is the caller's wish.
    """

    __slots__ = (
        "_last",
        "at_ms",
        "attempts",
        "body",
        "caller",
        "cost_nusd",
        "crossed",
        "decision",
        "detail",
        "endpoint",
        "ends_at",
        "facts",
        "has_started",
        "headers",
        "id",
        "is_canary",
        "is_hurried",
        "method",
        "model",
        "nonce",
        "now",
        "path",
        "proposal",
        "raw_headers",
        "reason",
        "receipt",
        "receive",
        "repeats",
        "reserved_nusd",
        "send",
        "serving",
        "started",
        "status",
        "steps_ms",
        "streamed",
        "trace",
        "ttft_ms",
        "unconfirmed_nusd",
        "untranslatable",
        "usage",
        "verdict",
    )

    def __init__(
        self,
        scope: Message,
        receive: Receive,
        send: Send,
        *,
        endpoint: str = "chat.completions",
        at: float,
        randomness: int,
    ) -> None:
        """Args:
        endpoint: the API it came by.
        at: Unix seconds.
        randomness: at least 74 bits, for the id.
        """
        self.raw_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.endpoint = endpoint
        self.receive = receive
        self.send = send
        self.at_ms = int(at * 1_000)
        self.now = int(at)
        self.id = decision_id(self.at_ms, randomness)
        self.started = self._last = perf_counter()
        self.steps_ms: dict[str, float] = {}
        self.headers: Headers = {}
        self.body = b""
        self.serving: Serving | None = None
        self.caller: Caller | None = None
        self.nonce: str | None = None
        self.facts: Facts | None = None
        self.untranslatable: UntranslatableError | None = None
        self.proposal: Proposal | None = None
        self.repeats: str | None = None
        self.is_canary = False
        self.trace: TraceContext | None = None
        # Signs what is decided, when the answer begins; None where nothing is signed.
        self.receipt: Callable[[], bytes] | None = None
        self.decision: Decision | None = None
        self.verdict: Verdict = "refused"
        self.reason = ""
        self.detail: str | None = None
        self.attempts: list[Attempt] = []
        self.model: str | None = None
        self.usage: Usage | None = None
        self.reserved_nusd = 0
        self.cost_nusd = self.unconfirmed_nusd = 0
        self.crossed: tuple[Crossed, ...] = ()
        self.streamed = False
        self.ends_at: float | None = None
        self.is_hurried = False
        self.ttft_ms: float | None = None
        self.status = 0
        self.has_started = False

    def take(self, decision: Decision) -> None:
        """Note what was decided; a later word replaces an earlier one."""
        self.decision = decision
        self.verdict, self.reason = decision.verdict, decision.reason

    def mark(self, step: str) -> None:
        """Note that ``step`` ended now, or more of it: several attempts are one ``forward``."""
        now = perf_counter()
        took_ms = self.steps_ms.get(step, 0.0) + (now - self._last) * 1_000
        self.steps_ms[step] = round(took_ms, 3)
        self._last = now

    def end_after(self, limit_ms: int, *, says_caller: bool) -> None:
        """Have it end so long after its arrival; the earlier of several ends holds."""
        ends_at = self.started + limit_ms / 1_000
        if self.ends_at is None or ends_at < self.ends_at:
            self.ends_at, self.is_hurried = ends_at, says_caller

    def left_s(self) -> float | None:
        """Return the time that is left; ``None`` where nothing bounds it."""
        return None if self.ends_at is None else self.ends_at - perf_counter()

    def elapsed_ms(self) -> float:
        """Milliseconds since the arrival."""
        return round((perf_counter() - self.started) * 1_000, 3)

    async def start(
        self,
        status: int,
        content_type: bytes,
        *,
        length: int | None,
        extra: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Send the head of the response: what was decided, and how long each step took."""
        self.has_started = True
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
        if self.serving is not None:
            headers.append(self.serving.header)
        if self.crossed:
            headers.append((b"waypost-budget", format_crossed(self.crossed)))
        if self.nonce is not None:
            headers.append((b"dpop-nonce", self.nonce.encode()))
        if self.endpoint == "messages":
            headers.append((b"request-id", self.id.encode()))  # where Anthropic's SDKs look
        if self.receipt is not None:
            headers.append((b"waypost-receipt", self.receipt()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: bytes = b"application/json",
        extra: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Send a whole response."""
        await self.start(status, content_type, length=len(body), extra=extra)
        await self.send({"type": "http.response.body", "body": body})
