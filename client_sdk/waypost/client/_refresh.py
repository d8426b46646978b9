"""Refreshes the manifest in the background, as long as the client is in use.

One daemon thread per client, for the sync and the async one alike: verifying takes a few
milliseconds of CPU that no event loop should give, and a thread outlives the loop it was
started from. It is started by the first use, pauses when nobody chooses for a while, and is
started anew in the child of a fork.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Refresher", "next_delay_s"]

_log = logging.getLogger("waypost")

IDLE_S = 300.0  # without use for this long, nobody is served by a newer manifest
JITTER = 0.2  # of the interval, so that clients started together do not ask together
BACKOFF_S, BACKOFF_MAX_S = 1.0, 300.0
BACKOFF_MIN_S = 0.2
WAKE_GAP_S = 5.0  # a CDN may lag behind the validator that says there is a newer manifest


def next_delay_s(failures: int, *, interval_s: float, chance: float) -> float:
    """Return how long to wait for the next refresh.

    After a failure an exponential back-off with full jitter, so that a recovering server meets
    its clients one by one.

    Args:
        failures: in a row.
        chance: a number in [0, 1).
    """
    if failures == 0:
        return interval_s * (1 + JITTER * (2 * chance - 1))
    ceiling_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failures, 20))
    return max(BACKOFF_MIN_S, ceiling_s * chance)


class Refresher:
    """Runs ``refresh`` now and then, from the first ``touch`` until ``stop``."""

    def __init__(
        self,
        refresh: Callable[[], bool],
        *,
        interval_s: float,
        monotonic: Callable[[], float],
        rng: Callable[[], float],
    ) -> None:
        """Args:
        refresh: asks once; whether that went well. Must not raise.
        """
        self._refresh = refresh
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._rng = rng
        self._used_s = 0.0
        self._refreshed_s = float("-inf")
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def touch(self, now_s: float) -> None:
        """Say that the client is in use at ``now_s`` (monotonic); starts the thread."""
        self._used_s = now_s
        if self._thread is None and not self._stopped:
            self._start()

    def wake(self, *, at_once: bool = False) -> None:
        """Refresh soon: somebody has seen a newer manifest, or that the network is back."""
        if at_once or self._monotonic() - self._refreshed_s >= WAKE_GAP_S:
            self._wake.set()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stopped = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stopped:
                return
            thread = threading.Thread(target=self._run, name="waypost-refresh", daemon=True)
            # No thread where there are none (Pyodide), or no more to be had: the manifest then
            # ages until it expires, and the validator decides.
            with suppress(RuntimeError):
                thread.start()
            self._thread = thread

    def _run(self) -> None:
        failures = 0
        while not self._stopped:
            failures = 0 if self._refreshed() else failures + 1
            self._refreshed_s = self._monotonic()
            delay_s = next_delay_s(failures, interval_s=self._interval_s, chance=self._rng())
            self._wake.wait(delay_s)
            self._wake.clear()
            with self._lock:
                if self._monotonic() - self._used_s > IDLE_S:
                    self._thread = None
                    return

    def _refreshed(self) -> bool:
        try:
            return self._refresh()
        except Exception:
            # A fault of ours must not end the thread, and with it all later manifests.
            _log.exception("refreshing the manifest failed in a way that was not foreseen")
            return False

    def after_fork(self) -> None:
        """Forget the thread, which the child does not have, and locks it may have held."""
        self._thread = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
