"""One TLS context for all of httpx's clients in a test's process.

A client reads the certificates that the machine trusts when it is made, which takes 30 ms and was
most of what the start of a validator cost. Clients with settings of their own still read them.
"""

import os
import ssl
from functools import cache
from typing import Any

import httpx
from httpx._transports import default

__all__ = ["share_default_context"]

_make = httpx.create_ssl_context


@cache
def _default(_cert_file: str | None, _cert_dir: str | None) -> ssl.SSLContext:
    return _make()


def _create(
    verify: ssl.SSLContext | str | bool = True,
    cert: Any = None,  # noqa: ANN401 - as httpx has it
    trust_env: bool = True,
) -> ssl.SSLContext:
    if verify is True and cert is None and trust_env:
        return _default(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    return _make(verify, cert, trust_env)


def share_default_context() -> None:
    """From here on, clients that differ in nothing use the same context."""
    default.create_ssl_context = _create  # type: ignore[attr-defined]
