"""When the manifest is asked for again, and what becomes of the thread that asks."""

import os
import random
import threading
import time
from itertools import count

import httpx
import pytest

from support.worlds import a_policy
from waypost.client import Waypost, _refresh
from waypost.client._refresh import Refresher, next_delay_s
from waypost.client.testing import StaticManifest, static_waypost, unsigned_token


def test_clients_started_together_do_not_ask_together() -> None:
    delays = [next_delay_s(0, interval_s=30, chance=chance / 10) for chance in range(10)]
    assert min(delays) == 24
    assert 34 < max(delays) < 36
    assert len(set(delays)) == 10


def test_failures_back_off_up_to_five_minutes() -> None:
    ceilings = [next_delay_s(failures, interval_s=30, chance=1.0) for failures in range(1, 12)]
    assert ceilings[:5] == [2, 4, 8, 16, 32]
    assert ceilings[-1] == 300
    assert next_delay_s(10**6, interval_s=30, chance=0.0) > 0


def a_refresher(refresh: object, **options: object) -> Refresher:
    defaults = {"interval_s": 0.01, "monotonic": time.monotonic, "rng": random.random}
    return Refresher(refresh, **{**defaults, **options})  # type: ignore[arg-type]


def test_many_threads_start_one() -> None:
    started = threading.Event()

    def refresh() -> bool:
        started.set()
        return True

    refresher = a_refresher(refresh, interval_s=60.0)
    users = [threading.Thread(target=refresher.touch, args=(0.0,)) for _ in range(20)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert started.wait(5)
    assert [thread.name for thread in threading.enumerate()].count("waypost-refresh") == 1
    refresher.stop()


def test_an_idle_client_is_left_alone_until_it_is_used_again() -> None:
    now = 0.0
    asked = count()
    refresher = a_refresher(lambda: next(asked) >= 0, monotonic=lambda: now)
    refresher.touch(now)
    first = refresher._thread
    assert first is not None
    now = 1_000.0
    first.join(5)
    assert not first.is_alive()
    refresher.touch(now)
    assert refresher._thread is not None
    refresher.stop()


def test_a_fault_of_ours_does_not_end_the_refreshing(caplog: pytest.LogCaptureFixture) -> None:
    asked = count()
    recovered = threading.Event()

    def refresh() -> bool:
        if next(asked) == 0:
            raise ZeroDivisionError
        recovered.set()
        return True

    refresher = a_refresher(refresh, rng=lambda: 0.0)
    refresher.touch(time.monotonic())
    assert recovered.wait(5)
    refresher.stop()
    assert "not foreseen" in caplog.text


def test_news_that_keep_coming_do_not_keep_us_asking() -> None:
    now = 0.0
    asked = threading.Semaphore(0)

    def refresh() -> bool:
        asked.release()
        return True

    refresher = a_refresher(refresh, interval_s=1_000.0, monotonic=lambda: now)
    refresher.touch(now)
    assert asked.acquire(timeout=5)
    for _ in range(100):
        refresher.wake()
    assert not asked.acquire(timeout=0.05)
    now = _refresh.WAKE_GAP_S
    refresher.wake()
    assert asked.acquire(timeout=5)
    refresher.stop()


def test_where_no_thread_can_be_had_choosing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    wp = static_waypost(a_policy(), refresh_interval_s=30.0)
    assert wp.choose("Hello").model == "small"
    wp.close()


class SlowManifest(StaticManifest):
    """Takes its time, as a network does."""

    refreshing = threading.Event()

    def refresh(self, client: httpx.Client, /) -> bool:
        self.refreshing.set()
        time.sleep(0.1)
        return super().refresh(client)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_child_of_a_fork_refreshes_for_itself() -> None:
    manifest = SlowManifest(a_policy())
    wp = Waypost(token=unsigned_token, manifest=manifest, refresh_interval_s=0.01)
    wp._core.touch()
    assert manifest.refreshing.wait(5), "a refresh is under way when the process forks"
    with wp._tokens._lock:  # and so is the renewal of a token
        child = os.fork()
    if child == 0:
        manifest.publish(a_policy(version=43))
        deadline = time.monotonic() + 10
        while wp.choose("Hello").manifest_version != 43 and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if wp.manifest_version == 43 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert wp.choose("Hello").manifest_version == 42
    wp.close()
