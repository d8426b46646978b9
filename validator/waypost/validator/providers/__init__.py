"""How each kind of provider wants to be spoken to: one module per dialect.

A dialect is pure: bytes in, bytes out. Connections, time-outs and status codes are
``waypost.validator.upstream``'s, so that a new dialect is one new module and its line in
``DIALECTS``.
"""

from typing import Protocol

from waypost.shared.money import Usage
from waypost.validator.providers import openai

__all__ = ["DIALECTS", "Dialect", "StreamReader"]


class StreamReader(Protocol):
    """Follows one streamed answer."""

    @property
    def usage(self) -> Usage | None:
        """What the provider says it used; ``None`` as long as it has not said."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the provider has ended the stream as it should."""
        ...

    @property
    def has_failed(self) -> bool:
        """Whether the provider reported an error inside the stream."""
        ...

    @property
    def output_bytes(self) -> int:
        """Bytes of answer so far: no tokenizer makes more tokens of them."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Return what to pass on now: whole events, less what the caller did not order.

        Raises:
            ValueError: an event that does not end.
        """
        ...

    def breaking_off(self, message: str, *, code: str) -> bytes:
        """Return the event that tells the caller of an end that should not be."""
        ...


class Dialect(Protocol):
    """One wire format for chat completions."""

    @property
    def PATH(self) -> str:
        """Appended to the provider's base URL."""
        ...

    def headers(self, api_key: str | None) -> dict[str, str]:
        """Return the headers of every request."""
        ...

    def request(
        self, body: bytes, *, model: str, max_tokens_field: str, output_tokens: int, streamed: bool
    ) -> bytes:
        """Return the caller's body as this provider is to see it."""
        ...

    def usage(self, body: bytes) -> Usage | None:
        """Return what an unstreamed answer says it used; ``None`` if it does not say.

        Raises:
            ValueError: it is not an answer.
        """
        ...

    def is_error(self, body: bytes) -> bool:
        """Whether ``body`` is an error as the caller's SDK understands it."""
        ...

    def reader(self, *, shows_usage: bool) -> StreamReader:
        """Return a reader for one stream.

        Args:
            shows_usage: whether the caller ordered the chunk that tells the usage.
        """
        ...


DIALECTS: dict[str, Dialect] = {"openai": openai}
