"""How each kind of provider wants to be spoken to: one module per dialect.

A dialect is pure: bytes in, bytes out. A new one is one new module and its line in ``DIALECTS``
(docs/adr/0015).
"""

from collections.abc import Mapping, Set
from typing import Protocol

from waypost.validator.dialects.adapter import Adapter, Passthrough
from waypost.validator.dialects.providers import anthropic, gemini, openai
from waypost.validator.dialects.translation import CALLERS, ProviderSide, Translated

__all__ = ["DIALECTS", "SAMPLING", "Dialect", "adapters", "translations"]

# What a provider's models take or do not take as one, whatever its API says.
SAMPLING = frozenset({"temperature", "top_k", "top_p"})


class Dialect(ProviderSide, Protocol):
    """What one kind of provider speaks."""

    @property
    def NATIVE(self) -> Mapping[str, str]:
        """The APIs it speaks itself → their paths below the base URL."""
        ...

    @property
    def REFUSES(self) -> frozenset[str]:
        """The fields of ``Prompt`` that its models do not take, unless the operator says so."""
        ...

    @property
    def VERSION(self) -> str | None:
        """The ``anthropic-version`` to send where a caller sends none; ``None``: no such header."""
        ...

    def headers(self, api_key: str | None) -> dict[str, str]:
        """Return the headers of every request."""
        ...


DIALECTS: dict[str, Dialect] = {"anthropic": anthropic, "gemini": gemini, "openai": openai}


def translations(
    name: str, *, max_tokens_field: str, sampling: bool | None = None
) -> dict[str, Adapter]:
    """Return the APIs that a provider of the dialect ``name`` can be asked by in other words."""
    dialect = DIALECTS[name]
    refuses = dialect.REFUSES
    if sampling is not None:
        refuses = refuses - SAMPLING if sampling else refuses | SAMPLING
    return {
        endpoint: Translated(
            endpoint, dialect, name=name, max_tokens_field=max_tokens_field, refuses=refuses
        )
        for endpoint in CALLERS
    }


def adapters(
    name: str,
    *,
    max_tokens_field: str,
    apis: Set[str] | None = None,
    sampling: bool | None = None,
    betas: Set[str] = frozenset(),
) -> dict[str, Adapter]:
    """Return the APIs that a provider of the dialect ``name`` can be asked by, and how.

    Args:
        apis: those that it speaks itself, if not all of the dialect's.
        sampling: whether its models take ``temperature`` and the like, if not as the dialect's.
        betas: what may be passed on of ``anthropic-beta``.
    """
    dialect = DIALECTS[name]
    found = translations(name, max_tokens_field=max_tokens_field, sampling=sampling)
    for endpoint, path in dialect.NATIVE.items():
        if apis is None or endpoint in apis:
            found[endpoint] = Passthrough(
                endpoint,
                path,
                max_tokens_field=max_tokens_field,
                version=dialect.VERSION,
                betas=betas,
            )
    return found
