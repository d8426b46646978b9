"""An API spoken to providers that do not speak it, by way of ``neutral``. Pure.

``CALLERS`` has the callers' side of each API; the providers' side is their dialect's.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from waypost.validator.dialects.adapter import (
    InboundRequest,
    ProviderRequest,
    Reply,
    UntranslatableError,
)
from waypost.validator.dialects.passthrough import StreamReader
from waypost.validator.dialects.sse import EventReader
from waypost.validator.dialects.translation import chat, messages, responses
from waypost.validator.dialects.translation.neutral import (
    Answer,
    Failure,
    Prompt,
    Sink,
    StopReason,
    Writer,
)
from waypost.validator.dialects.usage import UsageReport
from waypost.validator.http.provider_errors import Complaint, read_complaint, says_error

__all__ = ["CALLERS", "CallerSide", "Decoder", "ProviderSide", "Translated"]


class CallerSide(Protocol):
    """An API as callers speak it."""

    @property
    def PARAMS(self) -> dict[str, str]:
        """What ``Prompt`` calls it → what this API calls it, where that differs."""
        ...

    def prompt(self, body: bytes) -> Prompt:
        """Return what a request says.

        Raises:
            UntranslatableError: it says something that ``Prompt`` cannot hold.
        """
        ...

    def answer(self, answer: Answer, inbound: InboundRequest) -> bytes:
        """Return an answer as this API has it."""
        ...

    def failure(self, failure: Failure, inbound: InboundRequest) -> bytes:
        """Return an error as this API has it."""
        ...

    def writer(self, inbound: InboundRequest) -> Writer:
        """Return what writes a stream as this API has it."""
        ...


class Decoder(Protocol):
    """Reads a provider's stream.

    Attributes:
        is_over: whether the provider has said that nothing more follows.
    """

    is_over: bool

    def see(self, payload: bytes, sink: Sink) -> None:
        """Give what an event says to ``sink``.

        Raises:
            Exception: it makes no sense.
        """
        ...


class ProviderSide(Protocol):
    """An API as providers speak it."""

    def path(self, model: str, *, streamed: bool) -> str:
        """Return where to ask, below the base URL."""
        ...

    def compose(self, prompt: Prompt) -> dict[str, object]:
        """Return the body that says ``prompt``, without model and bound.

        Raises:
            UntranslatableError: there are no words for something; ``param`` is ``Prompt``'s.
        """
        ...

    def provider_request(
        self,
        fields: dict[str, object],
        *,
        model: str,
        output_tokens: int,
        streamed: bool,
        max_tokens_field: str,
    ) -> ProviderRequest:
        """Return what ``compose`` returned, ready to send."""
        ...

    def answer(self, body: bytes, *, id: str) -> Answer:
        """Return what an unstreamed answer says.

        Args:
            id: for names that the provider leaves to us.

        Raises:
            ValueError: it is not an answer.
        """
        ...

    def report(self, body: bytes) -> UsageReport:
        """Return what an unstreamed answer says it used, whether or not it makes sense.

        Raises:
            ValueError: it is not even JSON.
        """
        ...

    def failure(self, body: bytes) -> Failure | None:
        """Return what an error says; ``None`` if it is not one."""
        ...

    def decoder(self, *, id: str) -> Decoder:
        """Return a reader of one stream."""
        ...


CALLERS: dict[str, CallerSide] = {
    "chat.completions": chat,
    "messages": messages,
    "responses": responses,
}


class Translated:
    """An ``Adapter`` between an API and a provider that speaks another."""

    __slots__ = ("_caller", "_max_tokens_field", "_provider", "_refuses", "kind")

    def __init__(
        self,
        endpoint: str,
        provider: ProviderSide,
        *,
        name: str,
        max_tokens_field: str,
        refuses: frozenset[str],
    ) -> None:
        """Args:
        name: of the provider's dialect.
        refuses: fields of ``Prompt`` that its models do not take.
        """
        self._caller = CALLERS[endpoint]
        self._provider = provider
        self._max_tokens_field = max_tokens_field
        self._refuses = refuses
        self.kind = f"{name} without {sorted(refuses)}"

    def path(self, model: str, *, streamed: bool) -> str:
        """See ``Adapter``."""
        return self._provider.path(model, streamed=streamed)

    def check(self, inbound: InboundRequest) -> None:
        """See ``Adapter``."""
        self._fields(inbound)

    def _fields(self, inbound: InboundRequest) -> dict[str, object]:
        """Return the request as the provider has it, made once for all that speak alike."""
        fields: dict[str, object] | None = inbound.kept.get(self.kind)
        if fields is None:
            prompt: Prompt | None = inbound.kept.get("prompt")
            if prompt is None:
                prompt = inbound.kept["prompt"] = self._caller.prompt(inbound.body)
            try:
                for name in self._refuses:
                    if getattr(prompt, name) is not None:
                        raise UntranslatableError(
                            f"The provider's models do not take {name}.", param=name
                        )
                fields = inbound.kept[self.kind] = self._provider.compose(prompt)
            except UntranslatableError as error:
                error.param = self._caller.PARAMS.get(error.param or "", error.param)
                raise
        return fields

    def request(
        self, inbound: InboundRequest, *, model: str, output_tokens: int
    ) -> ProviderRequest:
        """See ``Adapter``."""
        return self._provider.provider_request(
            self._fields(inbound),
            model=model,
            output_tokens=output_tokens,
            streamed=inbound.request.stream is True,
            max_tokens_field=self._max_tokens_field,
        )

    def reply(self, inbound: InboundRequest, body: bytes) -> Reply:
        """See ``Adapter``."""
        answer = self._provider.answer(body, id=inbound.id)
        return Reply(self._caller.answer(answer, inbound), self._provider.report(body))

    def report(self, body: bytes) -> UsageReport:
        """See ``Adapter``."""
        return self._provider.report(body)

    def rejection(self, inbound: InboundRequest, body: bytes) -> bytes | None:
        """See ``Adapter``."""
        failure = self._provider.failure(body)
        is_told = failure is not None and failure.message
        return self._caller.failure(failure, inbound) if failure is not None and is_told else None

    def reader(self, inbound: InboundRequest) -> StreamReader:
        """See ``Adapter``."""
        decoder = self._provider.decoder(id=inbound.id)
        return _Reader(decoder, self._caller.writer(inbound), self._provider.report)


class _Reader(EventReader):
    """Takes a provider's stream and gives the caller's, event by event.

    The end is written when the provider says that nothing follows, or no more is read: usage may
    come after the reason to stop.
    """

    __slots__ = (
        "_decoder",
        "_is_announced",
        "_is_closed",
        "_out",
        "_report_of",
        "_stop",
        "_writer",
    )

    def __init__(
        self, decoder: Decoder, writer: Writer, report_of: Callable[[bytes], UsageReport]
    ) -> None:
        super().__init__()
        self._report_of = report_of
        self._decoder = decoder
        self._writer = writer
        self._is_announced = self._is_closed = False
        self._stop: tuple[StopReason, str | None] | None = None
        self._out: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        for payload in self._payloads(data):
            if self.is_over:
                break
            self._read(payload)
            if self._decoder.is_over and not self.fault:
                self.is_over = True
                self._out.append(self._closing())
        events = b"".join(self._out)
        self._out.clear()
        return events

    def _see(self, payload: bytes) -> bool:
        try:
            self._decoder.see(payload, self)
        except ValueError:
            complaint = _complaint_of(payload)
            if complaint is None:
                raise
            self._see_unreadable(payload)
            self.fail(Failure(complaint.message, complaint.code, complaint.param))
        return True

    def _see_unreadable(self, payload: bytes) -> None:
        with suppress(Exception):
            self.tell(self._report_of(payload))

    def _closing(self) -> bytes:
        if self._stop is None or self.has_failed or self._is_closed:
            return b""
        self._is_closed = True
        return self._writer.finish(*self._stop, self.report.usage())

    def breaking_off(self, message: str, *, code: str) -> bytes:
        return self._writer.fail(Failure(message, code))

    # ── what the decoder sees ──────────────────────────────────────────────────────────────

    def begin(self, model: str) -> None:
        if not self._is_announced:
            self._is_announced = True
            self._out.append(self._writer.begin(model))

    def text(self, text: str) -> None:
        self._wrote(text)
        self._out.append(self._writer.text(text))

    def reasoning(self, text: str) -> None:
        self._wrote(text)
        self._out.append(self._writer.reasoning(text))

    def tool(self, slot: int, id: str, name: str) -> None:
        self._wrote(name)
        self._out.append(self._writer.tool(slot, id, name))

    def arguments(self, slot: int, text: str) -> None:
        self._wrote(text)
        self._out.append(self._writer.arguments(slot, text))

    def _wrote(self, text: str) -> None:
        self.has_begun = True
        self.output_bytes += len(text.encode())

    def used(self, report: UsageReport, *, is_last: bool = False) -> None:
        self.tell(report, is_last=is_last)

    def finish(self, stop: StopReason, stop_sequence: str | None = None) -> None:
        self.has_begun = self.is_done = True
        self._stop = (stop, stop_sequence)

    def fail(self, failure: Failure) -> None:
        self.has_failed = self.is_over = True
        self._out.append(self._writer.fail(failure))


def _complaint_of(payload: bytes) -> Complaint | None:
    """Return the error that an event is which its dialect does not have; ``None``: it is none."""
    return read_complaint(payload) if says_error(msgspec.json.decode(payload)) else None
