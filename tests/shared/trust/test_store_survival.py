"""The store through crashes, rot and clocks that go wrong: never a worse manifest than before."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import time_machine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.publisher import Publisher
from waypost.shared.errors import StoreError, TrustError
from waypost.shared.trust import ManifestKeeper
from waypost.shared.trust.store import State, Store, decode_state, encode_state

PUBLISHER = Publisher()
FIRST, SECOND = PUBLISHER.publish(), PUBLISHER.publish()


def keeper_of(cache: Path, publisher: Publisher = PUBLISHER) -> ManifestKeeper:
    return ManifestKeeper(url=None, channel="prod", root=publisher.root, cache=cache)


def version_of(keeper: ManifestKeeper) -> int:
    assert keeper.current is not None
    return keeper.current.policy.version


WRITER = """
import sys
from pathlib import Path
from waypost.shared.trust import ManifestKeeper, verifier
folder = Path(sys.argv[1])
keeper = ManifestKeeper(
    url=None, channel="prod", root=(folder / "root").read_bytes(), cache=folder / "state"
)
keeper.load()
at = 0 if keeper.current is None else keeper.current.policy.version
print("ready", at, flush=True)
for number in range(at + 1, 100):
    keeper.accept((folder / str(number)).read_bytes(), etag=None)
    print("took", number, flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_the_newest_it_took(tmp_path: Path) -> None:
    publisher = Publisher()
    (tmp_path / "root").write_bytes(publisher.root)
    for number in range(1, 100):
        (tmp_path / str(number)).write_bytes(publisher.publish())
    told = 0
    for pause_s in (0.0, 0.007, 0.013, 0.021, 0.05, 0.08):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout as lines:
            before = int(lines.readline().split()[1])
            assert before >= told  # nothing it had taken was lost
            time.sleep(pause_s)
            os.kill(process.pid, signal.SIGKILL)
            told = max([before, *(int(line.split()[1]) for line in lines if line.endswith("\n"))])
        process.wait()
        keeper = keeper_of(tmp_path / "state", publisher)
        keeper.load()
        # One more than it told: killed between the store and the telling.
        assert (version_of(keeper) if keeper.current else 0) in (told, told + 1)
    assert told > 0


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    cache = tmp_path_factory.mktemp("stored") / "state"
    keeper = keeper_of(cache)
    keeper.accept(FIRST, etag='"1"')
    return cache.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_a_store_that_rots_says_so_or_still_says_what_was_signed(
    tmp_path: Path, stored: bytes, data: st.DataObject
) -> None:
    cache = tmp_path / "state"
    at = data.draw(st.integers(0, len(stored) - 1))
    rot = data.draw(st.binary(max_size=8))
    cache.write_bytes(stored[:at] + rot + stored[at + len(rot) :])
    keeper = keeper_of(cache)
    if keeper.load() is None:
        assert keeper.last_error is not None
    else:
        assert version_of(keeper) == 1
    # And whatever was in it, it keeps no true manifest out.
    keeper.accept(SECOND, etag=None)
    again = keeper_of(cache)
    again.load()
    assert version_of(again) == 2


@pytest.mark.parametrize(
    "name", ["../../escaped", "/etc/escaped", "timestamp.json/x", "", "1.ROOT", "x" * 300, "a\x00b"]
)
def test_a_store_cannot_name_files_outside_the_verifier_s_directory(
    tmp_path: Path, stored: bytes, name: str
) -> None:
    state = decode_state(stored)
    cache = tmp_path / "state"
    bad = State(channel="prod", files=state.files, floor={**state.floor, name: "{}"})
    cache.write_bytes(encode_state(bad))
    keeper = keeper_of(cache)
    assert keeper.load() is None
    assert keeper.store_error is not None
    assert keeper.store_error.code == "store_corrupt"
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_store_of_a_later_version_is_neither_read_nor_written_over(
    tmp_path: Path, stored: bytes
) -> None:
    cache = tmp_path / "state"
    later = stored.replace(b"waypost-state/1", b"waypost-state/2")
    cache.write_bytes(later)
    keeper = keeper_of(cache)
    assert keeper.load() is None
    keeper.accept(FIRST, etag=None)
    assert version_of(keeper) == 1, "this process has its manifest in memory"
    assert keeper.store_error is not None
    assert keeper.store_error.code == "store_newer"
    assert cache.read_bytes() == later, "the later version's floor is kept"


def test_a_store_that_never_ends_is_not_read_whole(tmp_path: Path) -> None:
    cache = tmp_path / "state"
    with cache.open("wb") as file:
        file.truncate(2**30)  # sparse
    with pytest.raises(StoreError, match="more than"):
        Store(cache).read()


def test_a_link_in_place_of_the_store_is_replaced_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "state").symlink_to(precious)
    keeper_of(tmp_path / "state").accept(FIRST, etag=None)
    assert precious.read_text() == "precious"
    assert keeper_of(tmp_path / "state").load() is not None


def test_a_read_only_disk_still_gives_the_manifest_it_holds(tmp_path: Path) -> None:
    cache = tmp_path / "state"
    keeper_of(cache).accept(FIRST, etag=None)
    before = cache.read_bytes()
    script = f"""
import ctypes, os
from pathlib import Path
from waypost.shared.trust import ManifestKeeper
folder = Path({str(tmp_path)!r})
libc = ctypes.CDLL(None, use_errno=True)
private = libc.unshare(0x10000000 | 0x00020000)  # a user and a mount namespace of its own
bind, read_only = 4096, 4096 | 1 | 32
name = str(folder).encode()
if private or libc.mount(None, b"/", None, 1 << 18 | 16384, None) \\
    or libc.mount(name, name, None, bind, None) or libc.mount(None, name, None, read_only, None):
    print("no namespaces here")
    raise SystemExit
root, bundle = {PUBLISHER.root!r}, {SECOND!r}
keeper = ManifestKeeper(url=None, channel="prod", root=root, cache=folder / "state")
print(keeper.load().policy.version, keeper.accept(bundle, etag=None).policy.version,
      keeper.store_error.code)
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    if out.startswith("no namespaces"):
        pytest.skip("this kernel lets nobody mount a directory read-only")
    assert out.split() == ["1", "2", "store_unavailable"]
    assert cache.read_bytes() == before


# ── clocks ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("years", [-50, -1, 0])
def test_a_clock_set_back_brings_no_older_manifest_back(tmp_path: Path, years: int) -> None:
    cache = tmp_path / "state"
    keeper_of(cache).accept(SECOND, etag=None)
    with time_machine.travel(time.time() + years * 31_536_000, tick=True):
        keeper = keeper_of(cache)
        assert keeper.load() is not None
        with pytest.raises(TrustError) as caught:
            keeper.accept(FIRST, etag=None)
        assert caught.value.code == "older_than_seen"
        assert version_of(keeper) == 2


def test_a_clock_set_ahead_and_mended_locks_nobody_out(tmp_path: Path) -> None:
    cache = tmp_path / "state"
    keeper_of(cache).accept(FIRST, etag=None)
    with time_machine.travel(time.time() + 31_536_000 * 2, tick=True):
        keeper = keeper_of(cache)
        assert keeper.load() is None
        with pytest.raises(TrustError) as caught:
            keeper.accept(SECOND, etag=None)
        assert caught.value.code == "expired"
    again = keeper_of(cache)
    assert again.load() is not None
    assert again.accept(SECOND, etag=None).policy.version == 2
