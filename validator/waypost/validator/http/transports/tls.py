"""Whom we believe in, and who we say we are, when a provider is reached by TLS."""

import ssl
from pathlib import Path

from waypost.validator.config.value_types import ConfigError

__all__ = ["tls_context"]


def tls_context(
    who: str, *, ca_file: Path | None, client_cert: Path | None, client_key: Path | None
) -> ssl.SSLContext:
    """Return what all connections to ``who`` are made with; read once, at start.

    Args:
        ca_file: PEM of the only authorities to believe in; ``None``: the system's.
        client_cert: PEM of our certificate and those between it and its root.
        client_key: PEM of its key; ``None``: it is in ``client_cert`` as well.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except FileNotFoundError as exc:
        raise _unusable(who, "ca_file", ca_file, "does not exist") from exc
    except ssl.SSLError as exc:
        mend = "holds no certificate in PEM; it begins with -----BEGIN CERTIFICATE-----"
        raise _unusable(who, "ca_file", ca_file, mend) from exc
    except OSError as exc:
        raise _unusable(who, "ca_file", ca_file, f"cannot be read: {exc.strerror}") from exc
    if client_cert is not None:
        _load_ours(context, who, client_cert, client_key)
    return context


def _load_ours(context: ssl.SSLContext, who: str, cert: Path, key: Path | None) -> None:
    for field, path in (("client_cert", cert), ("client_key", key)):
        if path is not None:
            _check_readable(who, field, path)

    def refuse() -> str:
        # Without it OpenSSL asks on the terminal, and the start would hang.
        raise _unusable(
            who, "client_key", key or cert, "is encrypted; give it without a pass phrase"
        )

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as exc:
        mend = "and client_key are no certificate and its key, in PEM, that belong together"
        raise _unusable(who, "client_cert", cert, mend) from exc


def _check_readable(who: str, field: str, path: Path) -> None:
    try:
        path.read_bytes()
    except FileNotFoundError as exc:
        raise _unusable(who, field, path, "does not exist") from exc
    except OSError as exc:
        raise _unusable(who, field, path, f"cannot be read: {exc.strerror}") from exc


def _unusable(who: str, field: str, path: Path | None, what: str) -> ConfigError:
    return ConfigError(f"{who}: {field}: {path} {what}")
