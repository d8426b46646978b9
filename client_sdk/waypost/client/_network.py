"""How to reach others: proxies, certificates, and which endpoint answers first."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from queue import Empty, Queue
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

__all__ = ["Network", "RetryBudget"]

STAGGER_S = 0.25  # RFC 8305 §5, Connection Attempt Delay
CONNECT_TIMEOUT_S = 5.0
MAX_RACERS = 4


@cache
def public_cas() -> "ssl.SSLContext":
    """Return what servers are verified by: reading the CAs takes 30 ms, so once for all clients."""
    import httpx

    return httpx.create_ssl_context()


class Network:
    """The proxy and the certificates to use.

    Attributes:
        proxy: for everything; ``None``: as ``proxy_for`` says.
    """

    def __init__(self, *, proxy: str | None = None, verify: "ssl.SSLContext | None" = None) -> None:
        """Args:
        proxy: URL of a proxy for everything; ``None`` uses what the environment says, as
            ``HTTPS_PROXY`` and ``NO_PROXY``.
        verify: ``None`` for the public CAs, or ``SSL_CERT_FILE``.
        """
        self._verify = verify
        self.proxy = proxy
        self._rtts: dict[str, str | None] = {}  # by origin: reading the environment takes 0.2 ms

    @property
    def verify(self) -> "ssl.SSLContext":
        """What to verify servers by."""
        return self._verify or public_cas()

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy on the way to ``url``; ``None`` for the direct way."""
        if self.proxy is not None:
            return self.proxy
        origin = "/".join(url.split("/", 3)[:3])
        try:
            return self._rtts[origin]
        except KeyError:
            way = self._rtts[origin] = _proxy_by_environment(url)
            return way

    def forget(self) -> None:
        """Look anew for the way to each: the device is on another network."""
        self._rtts.clear()

    def race(self, bases: Sequence[str]) -> dict[str, float | None]:
        """Return how long a connection to each took, in ms, until the first was there.

        Happy eyeballs (RFC 8305) over endpoints: each gets a head start before the next. ``None``
        is one that refused; one that has not answered yet is absent. Empty where it cannot be
        known: behind a proxy, or where there are no threads.
        """
        bases = bases[:MAX_RACERS]
        if any(self.proxy_for(base) is not None for base in bases):
            return {}
        done: Queue[tuple[str, float | None]] = Queue()
        found: dict[str, float | None] = {}
        with suppress(RuntimeError):  # no thread to be had
            for base in bases:
                threading.Thread(target=_connect, args=(base, done), daemon=True).start()
                if _first(done, found, STAGGER_S):
                    return found
            deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
            while len(found) < len(bases) and time.monotonic() < deadline_s:
                if _first(done, found, STAGGER_S):
                    break
        return found


def _proxy_by_environment(url: str) -> str | None:
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    if not proxies:
        return None
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _first(
    done: "Queue[tuple[str, float | None]]", found: dict[str, float | None], wait_s: float
) -> bool:
    """Whether somebody has answered within ``wait_s``; a refusal ends the wait as well."""
    try:
        base, ms = done.get(timeout=wait_s)
    except Empty:
        return False
    found[base] = ms
    return ms is not None


def _connect(base: str, done: "Queue[tuple[str, float | None]]") -> None:
    import socket

    started_s = time.monotonic()
    parts = urlsplit(base)
    ms: float | None = None
    with suppress(OSError, ValueError):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT_S):
            ms = (time.monotonic() - started_s) * 1_000
    done.put((base, ms))


class RetryBudget:
    """Whether one more try is affordable: when everything fails, trying again makes it worse.

    As gRPC throttles retries (A6): each try costs one, each success earns a tenth, and below
    half there are none.
    """

    MAX, EARNED = 10.0, 0.1

    def __init__(self) -> None:
        self._tokens = self.MAX

    def earn(self) -> None:
        """Count a success."""
        self._tokens = min(self.MAX, self._tokens + self.EARNED)

    def spend(self) -> bool:
        """Return whether to try again, and pay for it."""
        if self._tokens <= self.MAX / 2:
            return False
        self._tokens -= 1.0
        return True
