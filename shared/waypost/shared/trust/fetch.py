"""One conditional GET of a bundle, bounded in bytes and in time.

``Download`` holds every rule and does no I/O; ``get`` and ``aget`` only move bytes into it.
"""

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from waypost.shared.errors import TrustError
from waypost.shared.trust.bundle import MAX_BUNDLE_BYTES

if TYPE_CHECKING:
    import httpx

__all__ = ["Download", "Fetched", "aget", "get"]

MAX_COMPRESSED_BYTES = 2**20
TOTAL_S = 3.0
CONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A body as downloaded, decompressed, unverified."""

    body: bytes
    etag: str | None


class Download:
    """Judges a response as it arrives. Every method raises TrustError."""

    def __init__(self, status: int, headers: Mapping[str, str], *, etag: str | None) -> None:
        self.unchanged = status == 304 and etag is not None
        if not self.unchanged and status != 200:
            # Redirects included: the manifest has one address, and the CDN may not name another.
            raise TrustError(f"the manifest's server answered {status}", code="unavailable")
        self._etag = headers.get("etag")
        self._chunks: list[bytes] = []
        self._received = 0
        self._size = 0
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip"):
            raise TrustError(f"the manifest came {coding!r}-coded, not gzip", code="format")
        self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if coding == "gzip" else None
        self._max_received = MAX_BUNDLE_BYTES if self._gzip is None else MAX_COMPRESSED_BYTES

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes off the wire."""
        self._received += len(chunk)
        if self._received > self._max_received:
            raise _too_large(self._max_received)
        if self._gzip is not None:
            try:
                # Bounded, or a kilobyte on the wire becomes a megabyte in memory.
                chunk = self._gzip.decompress(chunk, MAX_BUNDLE_BYTES + 1 - self._size)
            except zlib.error as exc:
                raise TrustError(f"the manifest's gzip is broken: {exc}", code="format") from exc
        self._size += len(chunk)
        if self._size > MAX_BUNDLE_BYTES:
            raise _too_large(MAX_BUNDLE_BYTES)
        self._chunks.append(chunk)

    def finish(self) -> Fetched | None:
        """Return the body, or ``None`` for "not modified"."""
        if self.unchanged:
            return None
        if self._gzip is not None and not self._gzip.eof:
            raise TrustError("the manifest's gzip ends early", code="format")
        return Fetched(b"".join(self._chunks), self._etag)


def get(client: "httpx.Client", url: str, *, etag: str | None) -> Fetched | None:
    """Return the bundle at ``url``, or ``None`` if it still is the one with ``etag``.

    Raises:
        TrustError: ``unavailable``, ``too_large`` or ``format``.
    """
    import httpx

    deadline = time.monotonic() + TOTAL_S
    try:
        with client.stream(
            "GET",
            url,
            headers=_headers(etag),
            timeout=httpx.Timeout(TOTAL_S, connect=CONNECT_S),
            follow_redirects=False,
        ) as response:
            download = Download(response.status_code, response.headers, etag=etag)
            for chunk in response.iter_raw():
                if time.monotonic() > deadline:
                    raise _too_slow()
                download.feed(chunk)
            return download.finish()
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise _unreachable(exc) from exc


async def aget(client: "httpx.AsyncClient", url: str, *, etag: str | None) -> Fetched | None:
    """Like ``get``; the deadline also covers a server that drips its headers."""
    import anyio
    import httpx

    try:
        with anyio.fail_after(TOTAL_S):
            async with client.stream(
                "GET",
                url,
                headers=_headers(etag),
                timeout=httpx.Timeout(TOTAL_S, connect=CONNECT_S),
                follow_redirects=False,
            ) as response:
                download = Download(response.status_code, response.headers, etag=etag)
                async for chunk in response.aiter_raw():
                    download.feed(chunk)
                return download.finish()
    except TimeoutError:
        raise _too_slow() from None
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise _unreachable(exc) from exc


def _headers(etag: str | None) -> dict[str, str]:
    # gzip alone: it is the coding whose expansion the standard library can bound.
    headers = {"Accept": "application/json", "Accept-Encoding": "gzip"}
    return headers if etag is None else {**headers, "If-None-Match": etag}


def _too_large(limit: int) -> TrustError:
    return TrustError(f"the manifest is longer than {limit} bytes", code="too_large")


def _too_slow() -> TrustError:
    return TrustError(f"the manifest took longer than {TOTAL_S} s", code="unavailable")


def _unreachable(exc: Exception) -> TrustError:
    return TrustError(
        f"the manifest cannot be fetched: {type(exc).__name__}: {exc}", code="unavailable"
    )
