"""One conditional GET of a bundle, bounded in bytes and in time; and of roots it lacks.

``Download`` holds every rule and does no I/O; ``get`` and ``aget`` only move bytes into it.
"""

import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from waypost.shared.errors import TrustError
from waypost.shared.trust.bundle import MAX_BUNDLE_BYTES, MAX_ROOT_BYTES, root_path
from waypost.shared.wire.trace_context import current_traceparent

if TYPE_CHECKING:
    import httpx

__all__ = ["Chain", "Download", "Fetched", "aget", "aget_roots", "get", "get_roots"]

MAX_COMPRESSED_BYTES = 2**20
TOTAL_S = 3.0
CONNECT_S = 1.0

# 2,000 roots in ten seconds at 80 ms each.
ROOTS_AT_ONCE = 16
CHAIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A body as downloaded, decompressed, unverified."""

    body: bytes
    etag: str | None


@dataclass(frozen=True, slots=True)
class Chain:
    """Roots by repository path, unverified, and why there are no more of them, if there are not."""

    roots: Mapping[str, str] = field(default_factory=dict[str, str])
    error: TrustError | None = None


class Download:
    """Judges a response as it arrives. Every method raises TrustError."""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        *,
        etag: str | None,
        max_bytes: int = MAX_BUNDLE_BYTES,
    ) -> None:
        self.unchanged = status == 304 and etag is not None
        if not self.unchanged and status != 200:
            # Redirects included: the manifest has one address, and the CDN may not name another.
            raise TrustError(f"the manifest's server answered {status}", code="unavailable")
        self._etag = headers.get("etag")
        self._chunks: list[bytes] = []
        self._received = 0
        self._size = 0
        self._max_bytes = max_bytes
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip"):
            raise TrustError(f"the manifest came {coding!r}-coded, not gzip", code="format")
        self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS) if coding == "gzip" else None
        self._max_received = (
            max_bytes if self._gzip is None else min(max_bytes, MAX_COMPRESSED_BYTES)
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes off the wire."""
        self._received += len(chunk)
        if self._received > self._max_received:
            raise _too_large(self._max_received)
        if self._gzip is not None:
            try:
                # Bounded, or a kilobyte on the wire becomes a megabyte in memory.
                chunk = self._gzip.decompress(chunk, self._max_bytes + 1 - self._size)
            except zlib.error as exc:
                raise TrustError(f"the manifest's gzip is broken: {exc}", code="format") from exc
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._chunks.append(chunk)

    def finish(self) -> Fetched | None:
        """Return the body, or ``None`` for "not modified"."""
        if self.unchanged:
            return None
        if self._gzip is not None and not self._gzip.eof:
            raise TrustError("the manifest's gzip ends early", code="format")
        return Fetched(b"".join(self._chunks), self._etag)


def get(
    client: "httpx.Client", url: str, *, etag: str | None, max_bytes: int = MAX_BUNDLE_BYTES
) -> Fetched | None:
    """Return the bundle at ``url``, or ``None`` if it still is the one with ``etag``.

    A server that drips its headers costs the client its connections: ``client`` is then closed,
    since nothing else interrupts a blocking read.

    Raises:
        TrustError: ``unavailable``, ``too_large`` or ``format``.
    """
    import httpx

    deadline = time.monotonic() + TOTAL_S
    watchdog = threading.Timer(TOTAL_S, client.close)
    watchdog.daemon = True
    watchdog.start()
    try:
        with client.stream(
            "GET",
            url,
            headers=_headers(etag),
            timeout=httpx.Timeout(TOTAL_S, connect=CONNECT_S),
            follow_redirects=False,
        ) as response:
            download = Download(
                response.status_code, response.headers, etag=etag, max_bytes=max_bytes
            )
            # The body has a deadline of its own, which leaves the client as it is.
            watchdog.cancel()
            for chunk in response.iter_raw():
                if time.monotonic() > deadline:
                    raise _too_slow()
                download.feed(chunk)
            return download.finish()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RuntimeError) as exc:
        # A socket closed under a read fails in many ways.
        if time.monotonic() > deadline:
            raise _too_slow() from exc
        if isinstance(exc, httpx.HTTPError | httpx.InvalidURL):
            raise _unreachable(exc) from exc
        raise
    finally:
        watchdog.cancel()


async def aget(
    client: "httpx.AsyncClient", url: str, *, etag: str | None, max_bytes: int = MAX_BUNDLE_BYTES
) -> Fetched | None:
    """Like ``get``; a slow server is left without closing ``client``."""
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
                download = Download(
                    response.status_code, response.headers, etag=etag, max_bytes=max_bytes
                )
                async for chunk in response.aiter_raw():
                    download.feed(chunk)
                return download.finish()
    except TimeoutError:
        raise _too_slow() from None
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise _unreachable(exc) from exc


# ── roots that a bundle does not repeat ────────────────────────────────────────────────────────


def get_roots(client: "httpx.Client", tree: str, versions: Sequence[int]) -> Chain:
    """Return the roots of ``versions``, up to the first that cannot be had. Never raises.

    Args:
        tree: URL of the repository, which has the roots by their standard names.
        versions: ascending.
    """
    from concurrent.futures import ThreadPoolExecutor

    if not versions:
        return Chain()

    def fetch(version: int) -> str | TrustError:
        try:
            url = f"{tree}/{root_path(version)}"
            return _text(get(client, url, etag=None, max_bytes=MAX_ROOT_BYTES))
        except TrustError as exc:
            return exc

    collected = _Collected()
    with ThreadPoolExecutor(min(ROOTS_AT_ONCE, len(versions))) as pool:
        for batch in _batches(versions):
            if not collected.take(batch, list(pool.map(fetch, batch))):
                break
    return collected.chain()


async def aget_roots(client: "httpx.AsyncClient", tree: str, versions: Sequence[int]) -> Chain:
    """Like ``get_roots``."""
    import anyio

    async def fetch(version: int, into: dict[int, str | TrustError]) -> None:
        try:
            url = f"{tree}/{root_path(version)}"
            into[version] = _text(await aget(client, url, etag=None, max_bytes=MAX_ROOT_BYTES))
        except TrustError as exc:
            into[version] = exc

    collected = _Collected()
    for batch in _batches(versions):
        found: dict[int, str | TrustError] = {}
        async with anyio.create_task_group() as tasks:
            for version in batch:
                tasks.start_soon(fetch, version, found)
        if not collected.take(batch, [found[version] for version in batch]):
            break
    return collected.chain()


def _batches(versions: Sequence[int]) -> list[Sequence[int]]:
    return [versions[at : at + ROOTS_AT_ONCE] for at in range(0, len(versions), ROOTS_AT_ONCE)]


def _text(fetched: Fetched | None) -> str:
    body = b"" if fetched is None else fetched.body
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        raise TrustError(f"a root is not text: {exc}", code="format", role="root") from exc


class _Collected:
    """A chain as it grows, bounded in bytes and in time."""

    def __init__(self) -> None:
        self._roots: dict[str, str] = {}
        self._error: TrustError | None = None
        self._size = 0
        self._deadline = time.monotonic() + CHAIN_S

    def take(self, versions: Sequence[int], found: Sequence[str | TrustError]) -> bool:
        """Add the roots ``found``; whether to go on."""
        for version, text in zip(versions, found, strict=True):
            if isinstance(text, TrustError):
                message = f"root v{version} is missing, and with it all after it: {text}"
                self._error = TrustError(message, code="unavailable", role="root")
                return False
            self._roots[root_path(version)] = text
            self._size += len(text)
        if self._size > MAX_BUNDLE_BYTES or time.monotonic() > self._deadline:
            self._error = TrustError(
                f"the roots up to v{versions[-1]} took too long or too much: {self._size} bytes",
                code="too_large",
                role="root",
            )
        return self._error is None

    def chain(self) -> Chain:
        return Chain(self._roots, self._error)


def _headers(etag: str | None) -> dict[str, str]:
    # gzip alone: it is the coding whose expansion the standard library can bound.
    headers = {"Accept": "application/json", "Accept-Encoding": "gzip"}
    told = {"If-None-Match": etag, "traceparent": current_traceparent()}
    return headers | {name: value for name, value in told.items() if value is not None}


def _too_large(limit: int) -> TrustError:
    return TrustError(f"the manifest is longer than {limit} bytes", code="too_large")


def _too_slow() -> TrustError:
    return TrustError(f"the manifest took longer than {TOTAL_S} s", code="unavailable")


def _unreachable(exc: Exception) -> TrustError:
    return TrustError(
        f"the manifest cannot be fetched: {type(exc).__name__}: {exc}", code="unavailable"
    )
