"""One request's way to a validator and back, without I/O.

A generator says what is to be done next and is told what came of it; ``_transport`` has one
driver that blocks and one that awaits. So both send the same headers, fail over alike and
learn the same from an answer.

The body goes out as it came: the proposal travels in a header.
"""

import re
from collections.abc import Generator
from typing import Any, Protocol

from msgspec import Struct

from waypost.client._core import Core
from waypost.client._events import Answered, FailedOver
from waypost.client._facts import from_header
from waypost.client._token import AsyncTokens, Tokens
from waypost.shared.contracts import AUTO, Measured, Proposal
from waypost.shared.errors import InvalidRequestError, UpstreamError
from waypost.shared.requests.apis import ENDPOINT_BY_PATH, decode
from waypost.shared.tokens.unverified import UnverifiedClaims
from waypost.shared.wire.headers import (
    DECISION,
    FACTS,
    MANIFEST,
    PROPOSAL,
    format_facts,
    format_proposal,
    parse_decision,
    parse_facts,
)
from waypost.shared.wire.trace_context import current_traceparent

__all__ = ["Discard", "GetToken", "Race", "Refresh", "Send", "Step", "Watch", "exchange"]

GATEWAY_ERRORS = (502, 503, 504)

# Where an answer says how long it is: at its end, in the names of both APIs.
_USAGE = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,9})')
TAIL_BYTES = 4_096
MIN_TOKENS = 16  # fewer say more of the network than of the model's pace


class Headers(Protocol):
    def get(self, key: str, /) -> str | None: ...
    def multi_items(self) -> list[tuple[str, str]]: ...


class Answer(Protocol):
    status_code: int

    @property
    def headers(self) -> Headers: ...


class GetToken(Struct, frozen=True):
    """Get the token to send, another one than ``instead_of``."""

    instead_of: str | None = None


class Refresh(Struct, frozen=True):
    """Refresh the manifest, and wait for it."""


class Send(Struct, frozen=True):
    """Send the body to ``url`` with these headers, and no others."""

    url: str
    headers: list[tuple[str, str]]


class Discard(Struct, frozen=True):
    """Close an answer that the caller will not see."""

    answer: Any


class Race(Struct, frozen=True):
    """See which of these can be reached, and how fast; ``{}`` if that cannot be told."""

    bases: tuple[str, ...]


Step = GetToken | Refresh | Race | Send | Discard


def exchange(
    core: Core,
    tokens: Tokens | AsyncTokens,
    *,
    method: str,
    path: str,
    headers: Headers,
    body: bytes,
    unreachable: tuple[type[Exception], ...],
) -> Generator[Step, Any, tuple[Any, "Watch"]]:
    """Return the answer, and the watch to tell how its body fares.

    Args:
        path: with query, from ``Core.api_path``.
        unreachable: errors that mean nothing was sent yet.

    Raises:
        UpstreamError: ``no_endpoint``, neither manifest nor configuration names a validator.
        Exception: what the last send or the token source raised.
    """
    own: str | None = yield GetToken()
    token = own or _bearer(headers)
    claims = None if token is None else tokens.claims(token)
    region = None if claims is None else claims.signed.region
    targets = core.targets(region)
    if not targets:
        yield Refresh()
        targets = core.targets(region)
    if core.in_doubt(targets):
        found: dict[str, float | None] = yield Race(targets)
        core.raced(found)
        targets = core.targets(region)
    prepared, proposed, prompt = _prepare(core, path, headers, body, claims)
    failure: Exception = _nobody(core)
    for left, base in zip(range(len(targets) - 1, -1, -1), targets, strict=True):
        watch = Watch(core, base, proposed, region=region, prompt=prompt)
        try:
            answer = yield from _send(tokens, method, base, path, prepared, own)
            if answer.status_code == 401 and tokens.renewable:
                try:
                    renewed: str | None = yield GetToken(instead_of=own)
                except Exception:
                    # The 401 says more than a token source that fails.
                    renewed = own
                if renewed != own:
                    own = renewed
                    yield Discard(answer)
                    answer = yield from _send(tokens, method, base, path, prepared, own)
        except unreachable as exc:
            failure = exc
            retries = left > 0 and core.retries.spend()
            watch.unreachable(retries=retries)
            if not retries:
                break
        except BaseException as exc:
            watch.end(failed=isinstance(exc, Exception))
            raise
        else:
            watch.answered(answer)
            # No validator was behind this gateway, so nothing was done yet. Of a 502 and a 504
            # that cannot be known.
            undecided = answer.status_code == 503 and answer.headers.get(DECISION) is None
            if not (undecided and left > 0 and core.retries.spend()):
                return answer, watch
            watch.end()
            yield Discard(answer)
    raise failure


def _nobody(core: Core) -> UpstreamError:
    why = core.last_error
    told = "the manifest could not be fetched" if why is None else f"{why.code}: {why.message}"
    return UpstreamError(
        f"No validator is known yet, and no base_url is set: {told}.", code="no_endpoint"
    )


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = (headers.get("authorization") or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _send(
    tokens: Tokens | AsyncTokens,
    method: str,
    base: str,
    path: str,
    headers: list[tuple[str, str]],
    own: str | None,
) -> Generator[Step, Any, Answer]:
    """Send once, with the client's ``own`` token if it has one; anew if a nonce was wanted."""
    if own is None:
        answer: Answer = yield Send(base + path, headers)
        return answer
    kept = [(name, value) for name, value in headers if name.lower() not in _CREDENTIALS]
    prover = tokens.prover
    if prover is None:
        answer = yield Send(base + path, [*kept, ("Authorization", f"Bearer {own}")])
        return answer
    for attempt in (1, 2):
        answer = yield Send(base + path, [*kept, *prover.credentials(method, base, path, own)])
        has_nonce = prover.heard(base, answer.headers.get("dpop-nonce"))
        if attempt == 2 or answer.status_code != 401 or not has_nonce:
            break
        yield Discard(answer)
    return answer


_CREDENTIALS = frozenset({"authorization", "dpop"})


# Rebuilt for where the request really goes.
_REPLACED = frozenset({"host", "content-length", "transfer-encoding", FACTS.lower()})


def _prepare(
    core: Core, path: str, headers: Headers, body: bytes, claims: UnverifiedClaims | None
) -> tuple[list[tuple[str, str]], str | None, "Prompt | None"]:
    """Return the headers to send but for the token, the model proposed in them, and the prompt.

    The prompt is ``None`` where it is of no conversation.
    """
    core.touch()
    prepared = [item for item in headers.multi_items() if item[0].lower() not in _REPLACED]
    trace = current_traceparent()
    if trace is not None and headers.get("traceparent") is None:
        prepared.append(("traceparent", trace))
    said = headers.get(FACTS)
    try:
        declared = core.declared(None if said is None else from_header(parse_facts(said)))
    except InvalidRequestError:
        # It may hold a duty, so it goes out as it is, for the validator to refuse.
        return [*prepared, (FACTS, said or "")], None, None
    core.miss_blocks(declared)
    facts = format_facts(declared)
    if facts:
        prepared.append((FACTS, facts))
    written = headers.get(PROPOSAL)
    endpoint = ENDPOINT_BY_PATH.get(path.partition("?")[0])
    if endpoint is None or written is not None:
        return prepared, None, None
    session = core.session()
    measured = Measured()
    try:
        request = decode(endpoint, body)
        if session or request.model == AUTO:
            measured = core.measure(request, body, endpoint)
    except InvalidRequestError:
        return prepared, None, None
    proposal: Proposal | None = None
    prompt = None if session is None else Prompt(session, measured.input_tokens)
    if request.model == AUTO:
        choice = core.choose(measured, declared, claims, without_claims="no_token")
        if choice.model is not None:
            proposal = Proposal(
                model=choice.model,
                otherwise=choice.otherwise,
                route=choice.route,
                manifest=choice.manifest_version,
            )
    elif core.knows(request.model):
        proposal = Proposal(model=request.model, manifest=core.manifest_version)
    if proposal is None:
        return prepared, None, prompt
    return [*prepared, (PROPOSAL, format_proposal(proposal))], proposal.model, prompt


class Prompt(Struct, frozen=True):
    """The conversation that a request goes on with, and how long it is by now."""

    session: str
    input_tokens: int


class Watch:
    """What one request teaches about the model and the endpoint that served it."""

    def __init__(
        self,
        core: Core,
        endpoint: str,
        proposed: str | None,
        *,
        region: str | None = None,
        prompt: Prompt | None = None,
    ) -> None:
        self._core = core
        self._endpoint = endpoint
        self._proposed = proposed
        self._region = region
        self._prompt = prompt
        self._started_s = core.monotonic()
        self._model = proposed
        self._streams = False
        self._teaches = False
        self._first_ms: float | None = None
        self._tail = b""
        if proposed is not None:
            core.models.start(proposed, self, self._started_s)
        core.endpoints.start(endpoint, self, self._started_s)

    def _elapsed_ms(self) -> float:
        return (self._core.monotonic() - self._started_s) * 1_000

    def _failed(self, model: str, retry_after_s: int = 0) -> None:
        self._core.failed_model(
            model, self._elapsed_ms(), region=self._region, retry_after_s=retry_after_s
        )

    def unreachable(self, *, retries: bool) -> None:
        """Nobody listens at the endpoint; nothing was sent."""
        elapsed_ms = self._elapsed_ms()
        self._core.failed_endpoint(self._endpoint, elapsed_ms)
        self._core.tell(FailedOver(endpoint=self._endpoint, elapsed_ms=elapsed_ms, retries=retries))
        self.end()

    def answered(self, answer: Answer) -> None:
        """The headers of the answer are there."""
        core, headers = self._core, answer.headers
        version = headers.get(MANIFEST) or ""
        if version.isdecimal() and version.isascii():
            core.heard_of(int(version[:10]))
        decision = _decision(headers.get(DECISION))
        elapsed_ms = self._elapsed_ms()
        core.tell(
            _answered(self._endpoint, answer.status_code, elapsed_ms, self._proposed, decision)
        )
        failed = answer.status_code in GATEWAY_ERRORS
        if failed and not decision:
            # A gateway in front of the validator: it decided nothing.
            core.failed_endpoint(self._endpoint, elapsed_ms)
            return
        there_ms = _spent_ms(headers.get("server-timing"))
        core.reached_endpoint(
            self._endpoint, None if there_ms is None else max(0.0, elapsed_ms - there_ms)
        )
        model = decision.get("model")
        if not isinstance(model, str):
            # An outage names none: everything it tried has failed, what we proposed first.
            model = self._proposed if failed else None
        self._model = model
        fell_back = decision.get("verdict") == "accepted" and model != self._proposed
        if self._proposed is not None and (fell_back or decision.get("reason") == "out_of_service"):
            # The validator tried it, or knows from others that it is failing.
            self._failed(self._proposed)
        if self._model is None:
            return
        if failed:
            retry_after = headers.get("retry-after") or ""
            self._failed(self._model, int(retry_after[:6]) if retry_after.isdecimal() else 0)
        elif answer.status_code == 200:
            core.models.succeed(self._model)
            if self._prompt is not None:
                core.note_session(self._prompt.session, self._model, self._prompt.input_tokens)
            self._streams = (headers.get("content-type") or "").startswith("text/event-stream")
            # What another model cost before this one was tried is not this one's wait. And of a
            # compressed body nothing is read.
            self._teaches = not fell_back and headers.get("content-encoding") is None

    def chunk(self, data: bytes) -> None:
        """A piece of the body has arrived."""
        if not self._teaches:
            return
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._first_ms is None and self._model is not None:
            self._first_ms = self._elapsed_ms()
            # The first byte of an answer that comes as a whole says how long it is, not how slow.
            if self._streams:
                self._core.waited_for(self._model, self._first_ms, region=self._region)

    def complete(self) -> None:
        """The body has ended as it should."""
        tokens = _USAGE.findall(self._tail)
        if self._teaches and self._model is not None and tokens and int(tokens[-1]) >= MIN_TOKENS:
            self._core.took(
                self._model,
                tokens=int(tokens[-1]),
                ttft_ms=self._first_ms if self._streams else None,
                ms=self._elapsed_ms(),
                region=self._region,
            )
        self.end()

    def end(self, *, failed: bool = False) -> None:
        """The body was given up, or broke off; harmless if repeated."""
        if failed and self._model is not None:
            self._failed(self._model)
        self._model = None
        if self._proposed is not None:
            self._core.models.finish(self._proposed, self)
        self._core.endpoints.finish(self._endpoint, self)


def _decision(header: str | None) -> dict[str, Any]:
    try:
        return {} if header is None else dict(parse_decision(header))
    except InvalidRequestError:
        return {}


def _answered(
    endpoint: str, status: int, elapsed_ms: float, proposed: str | None, decision: dict[str, Any]
) -> Answered:
    said = {
        field: value
        for field, key in (
            ("decision_id", "id"),
            ("verdict", "verdict"),
            ("model", "model"),
            ("reason", "reason"),
        )
        if isinstance(value := decision.get(key), str)
    }
    return Answered(
        endpoint=endpoint, status=status, elapsed_ms=elapsed_ms, proposed=proposed, **said
    )


def _spent_ms(server_timing: str | None) -> float | None:
    """Return how long the validator had the request; ``None`` if it does not say."""
    if server_timing is None:
        return None
    return sum(float(ms) for ms in _DURATION.findall(server_timing[:1_000]))


_DURATION = re.compile(r";\s*dur=(\d{1,9}(?:\.\d{1,9})?)")
