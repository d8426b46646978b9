"""An API spoken to providers that do not speak it, by way of ``neutral``. Pure.

``CALLERS`` has the callers' side of each API; the providers' side is their dialect's.
"""

from typing import Protocol

from waypost.shared.money import Usage
from waypost.validator.apis import StreamReader
from waypost.validator.events import EventReader
from waypost.validator.speech import Asked, Outgoing, Reply, UntranslatableError
from waypost.validator.translation import chat, messages, responses
from waypost.validator.translation.neutral import (
    Answer,
    Failure,
    Prompt,
    Sink,
    StopReason,
    Writer,
)

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

    def answer(self, answer: Answer, asked: Asked) -> bytes:
        """Return an answer as this API has it."""
        ...

    def failure(self, failure: Failure, asked: Asked) -> bytes:
        """Return an error as this API has it."""
        ...

    def writer(self, asked: Asked) -> Writer:
        """Return what writes a stream as this API has it."""
        ...


class Decoder(Protocol):
    """Reads a provider's stream."""

    def see(self, payload: bytes, sink: Sink) -> None:
        """Give what an event says to ``sink``.

        Raises:
            ValueError: it makes no sense.
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

    def outgoing(
        self,
        fields: dict[str, object],
        *,
        model: str,
        output_tokens: int,
        streamed: bool,
        max_tokens_field: str,
    ) -> Outgoing:
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
    """A ``Speech`` between an API and a provider that speaks another."""

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
        """See ``Speech``."""
        return self._provider.path(model, streamed=streamed)

    def check(self, asked: Asked) -> None:
        """See ``Speech``."""
        self._fields(asked)

    def _fields(self, asked: Asked) -> dict[str, object]:
        """Return the request as the provider has it, made once for all that speak alike."""
        fields: dict[str, object] | None = asked.kept.get(self.kind)
        if fields is None:
            prompt: Prompt | None = asked.kept.get("prompt")
            if prompt is None:
                prompt = asked.kept["prompt"] = self._caller.prompt(asked.body)
            try:
                for name in self._refuses:
                    if getattr(prompt, name) is not None:
                        raise UntranslatableError(
                            f"The provider's models do not take {name}.", param=name
                        )
                fields = asked.kept[self.kind] = self._provider.compose(prompt)
            except UntranslatableError as error:
                error.param = self._caller.PARAMS.get(error.param or "", error.param)
                raise
        return fields

    def request(self, asked: Asked, *, model: str, output_tokens: int) -> Outgoing:
        """See ``Speech``."""
        return self._provider.outgoing(
            self._fields(asked),
            model=model,
            output_tokens=output_tokens,
            streamed=asked.request.stream is True,
            max_tokens_field=self._max_tokens_field,
        )

    def reply(self, asked: Asked, body: bytes) -> Reply:
        """See ``Speech``."""
        answer = self._provider.answer(body, id=asked.id)
        return Reply(self._caller.answer(answer, asked), answer.usage)

    def rejection(self, asked: Asked, body: bytes) -> bytes | None:
        """See ``Speech``."""
        failure = self._provider.failure(body)
        is_told = failure is not None and failure.message
        return self._caller.failure(failure, asked) if failure is not None and is_told else None

    def reader(self, asked: Asked) -> StreamReader:
        """See ``Speech``."""
        return _Reader(self._provider.decoder(id=asked.id), self._caller.writer(asked))


class _Reader(EventReader):
    """Takes a provider's stream and gives the caller's, event by event."""

    __slots__ = ("_decoder", "_has_begun", "_out", "_writer")

    def __init__(self, decoder: Decoder, writer: Writer) -> None:
        super().__init__()
        self._decoder = decoder
        self._writer = writer
        self._has_begun = False
        self._out: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        for payload in self._payloads(data):
            if not (self.is_done or self.has_failed):
                self._decoder.see(payload, self)
        events = b"".join(self._out)
        self._out.clear()
        return events

    def breaking_off(self, message: str, *, code: str) -> bytes:
        return self._writer.fail(message, code=code)

    # ── what the decoder sees ──────────────────────────────────────────────────────────────

    def begin(self, model: str) -> None:
        if not self._has_begun:
            self._has_begun = True
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
        self.output_bytes += len(text.encode())

    def used(self, usage: Usage) -> None:
        self.usage = usage

    def finish(self, stop: StopReason, stop_sequence: str | None = None) -> None:
        self.is_done = True
        self._out.append(self._writer.finish(stop, stop_sequence, self.usage))

    def fail(self, failure: Failure) -> None:
        self.has_failed = True
        self._out.append(self._writer.fail(failure.message, code=failure.code))
