"""The APIs as they pass through: a provider that speaks one is asked in it, byte for byte.

One module per API, pure. A body passes as it came but for the model's name, the bound on the
answer, and, in a stream, the order to tell the usage at its end: without that nobody could
settle. The answer passes as it came. How the same is said in another API is the business of
``waypost.validator.dialects.translation``.
"""

from typing import Protocol

from waypost.shared.money import Usage
from waypost.shared.requests.apis import Request
from waypost.validator.dialects.passthrough import (
    chat,
    completions,
    embeddings,
    messages,
    responses,
)
from waypost.validator.dialects.usage import UsageReport

__all__ = ["APIS", "Api", "StreamReader"]


class StreamReader(Protocol):
    """Follows one streamed answer."""

    @property
    def report(self) -> UsageReport:
        """What the provider says it used, all that it said together."""
        ...

    @property
    def usage(self) -> Usage | None:
        """The usage, if it has been told of all that has come."""
        ...

    @property
    def has_begun(self) -> bool:
        """Whether any of the answer has come. Pings and announcements are none."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the answer has come to its end. Its usage may still follow."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing more that matters can follow."""
        ...

    @property
    def fault(self) -> str:
        """The kind of exception that an unreadable event met, and the reading ended with."""
        ...

    @property
    def has_failed(self) -> bool:
        """Whether the provider reported an error inside the stream."""
        ...

    @property
    def failure(self) -> bytes:
        """The data of the event that reported the error; empty if none did."""
        ...

    @property
    def output_bytes(self) -> int:
        """Bytes of answer so far: no tokenizer makes more tokens of them."""
        ...

    @property
    def reported_bytes(self) -> int:
        """Bytes of answer that had come when ``report`` was last told."""
        ...

    @property
    def has_last_word(self) -> bool:
        """Whether ``report`` is the last one, though the answer did not come to its end."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Return what to pass on now: whole events, less what the caller did not order.

        Raises:
            ValueError: an event that does not end.
        """
        ...

    def end(self, *, is_whole: bool) -> bytes:
        """Return what is left to pass on when nothing more is read.

        Args:
            is_whole: whether the body has come to its end.
        """
        ...

    def breaking_off(self, message: str, *, code: str) -> bytes:
        """Return the events that tell the caller of an end that should not be."""
        ...


class Api(Protocol):
    """One API as it passes through."""

    def bounded(
        self, body: bytes, *, model: str, output_tokens: int, streamed: bool, max_tokens_field: str
    ) -> bytes:
        """Return the caller's body as a provider of the same API is to see it.

        Args:
            body: has been found to be a request.
            max_tokens_field: what the provider calls the bound, where the API leaves a choice.
        """
        ...

    def report(self, body: bytes) -> UsageReport:
        """Return what an unstreamed answer says it used.

        Raises:
            ValueError: it is not an answer.
        """
        ...

    def is_error(self, body: bytes) -> bool:
        """Whether ``body`` is an error as the caller's SDK understands it."""
        ...

    def reader(self, request: Request) -> StreamReader:
        """Return a reader for the stream that answers ``request``."""
        ...


# By the name that facts and policies have for it.
APIS: dict[str, Api] = {
    "chat.completions": chat,
    "completions": completions,
    "embeddings": embeddings,
    "messages": messages,
    "responses": responses,
}
