"""How each kind of provider wants to be spoken to: one module per dialect.

A dialect is pure: bytes in, bytes out. A new one is one new module and its line in ``DIALECTS``
(docs/adr/0015).
"""

from collections.abc import Mapping
from typing import Protocol

from waypost.validator.providers import anthropic, openai
from waypost.validator.speech import Native, Speech

__all__ = ["DIALECTS", "Dialect", "speeches"]


class Dialect(Protocol):
    """What one kind of provider speaks."""

    @property
    def NATIVE(self) -> Mapping[str, str]:
        """The APIs it speaks itself → their paths below the base URL."""
        ...

    @property
    def VERSION(self) -> str | None:
        """The ``anthropic-version`` to send where a caller sends none; ``None``: no such header."""
        ...

    def headers(self, api_key: str | None) -> dict[str, str]:
        """Return the headers of every request."""
        ...


DIALECTS: dict[str, Dialect] = {"anthropic": anthropic, "openai": openai}


def speeches(dialect: Dialect, *, max_tokens_field: str) -> dict[str, Speech]:
    """Return the APIs that a provider of this dialect can be asked by, and how."""
    return {
        endpoint: Native(endpoint, path, max_tokens_field=max_tokens_field, version=dialect.VERSION)
        for endpoint, path in dialect.NATIVE.items()
    }
