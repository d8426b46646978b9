"""When providers' certificates expire: told days ahead, and by date when it has happened."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

__all__ = ["day", "expires_at", "expiry_of", "presented_expiry"]


def expires_at(transport: Any) -> float | None:  # noqa: ANN401 - a loop's own class
    """Return when the certificate at the other end expires, Unix seconds; ``None``: no TLS."""
    return expiry_of(transport.get_extra_info("peercert"))


def expiry_of(certificate: Mapping[str, Any] | None) -> float | None:
    """Return when a certificate expires, as ``SSLSocket.getpeercert`` describes it."""
    if not certificate or "notAfter" not in certificate:
        return None
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


async def presented_expiry(host: str, port: int) -> float | None:
    """Return when the certificate that a server shows expires, whoever signed it.

    Nothing is sent. A handshake that fails for the certificate does not say by how long.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with suppress(OSError, ValueError):
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
        try:
            wire = writer.get_extra_info("ssl_object")
            certificate = x509.load_der_x509_certificate(wire.getpeercert(binary_form=True))
            return certificate.not_valid_after_utc.timestamp()
        finally:
            writer.close()
    return None


def day(instant: float) -> str:
    """Return the day of an instant, UTC."""
    return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d}"
