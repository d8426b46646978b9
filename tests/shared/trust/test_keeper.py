"""The last good manifest stays in use, whatever the network and the disk do."""

import fcntl
import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from securesystemslib.signer import CryptoSigner

from support.origin import Origin, Reply, serving
from support.publisher import Publisher
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper, verifier
from waypost.shared.trust.bundle import pack_bundle, unpack_bundle
from waypost.shared.trust.store import decode_state, encode_state

pytestmark = pytest.mark.anyio


def keeper_of(
    publisher: Publisher,
    cache: Path | None = None,
    *,
    url: str | None = None,
    now: Callable[[], float] = time.time,
) -> ManifestKeeper:
    return ManifestKeeper(url=url, channel="prod", root=publisher.root, cache=cache, now=now)


def refusal(keeper: ManifestKeeper, bundle: bytes) -> str:
    with pytest.raises(TrustError) as caught:
        keeper.accept(bundle, etag=None)
    assert keeper.last_error is caught.value
    return caught.value.code


def version_of(keeper: ManifestKeeper) -> int:
    assert keeper.current is not None
    return keeper.current.policy.version


# ── from the network ───────────────────────────────────────────────────────────────────────────


class Shelf:
    """What an origin serves, with an ETag that names it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def answer(self, headers: dict[str, str]) -> Reply:
        etag = f'"{hash(self.body)}"'
        if headers.get("if-none-match") == etag:
            return Reply(status=304, headers={"ETag": etag})
        return Reply(self.body, headers={"ETag": etag})


@pytest.fixture
def shelf(publisher: Publisher) -> Shelf:
    return Shelf(publisher.publish())


@pytest.fixture
def origin(shelf: Shelf) -> Iterator[Origin]:
    with serving(shelf.answer) as origin:
        yield origin


def test_a_refresh_takes_what_is_new_and_asks_for_no_more(
    publisher: Publisher, shelf: Shelf, origin: Origin
) -> None:
    keeper = keeper_of(publisher, url=origin.url)
    with httpx.Client() as client:
        assert keeper.refresh(client) is True
        first = keeper.current
        assert keeper.refresh(client) is False
        assert keeper.current is first
        shelf.body = publisher.publish()
        assert keeper.refresh(client) is True
    assert version_of(keeper) == 2
    assert "if-none-match" in origin.requests[1]


async def test_an_asynchronous_refresh_does_the_same(
    publisher: Publisher, shelf: Shelf, origin: Origin
) -> None:
    keeper = keeper_of(publisher, url=origin.url)
    async with httpx.AsyncClient() as client:
        assert await keeper.arefresh(client) is True
        assert await keeper.arefresh(client) is False
        shelf.body = publisher.publish()
        assert await keeper.arefresh(client) is True
        shelf.body = b"<html>"
        with pytest.raises(TrustError):
            await keeper.arefresh(client)
    assert version_of(keeper) == 2


def test_a_refused_refresh_leaves_the_last_good_manifest(
    publisher: Publisher, shelf: Shelf, origin: Origin
) -> None:
    keeper = keeper_of(publisher, url=origin.url)
    with httpx.Client() as client:
        keeper.refresh(client)
        good = keeper.current
        shelf.body = b"<html>it works</html>"
        with pytest.raises(TrustError):
            keeper.refresh(client)
        assert keeper.current is good
        assert keeper.last_error is not None
        assert keeper.last_error.code == "format"
        shelf.body = publisher.publish()
        assert keeper.refresh(client) is True
        assert keeper.last_error is None


def test_the_same_bytes_under_another_etag_are_not_verified_again(
    publisher: Publisher,
) -> None:
    body, etags = publisher.publish(), iter(('"a"', '"b"', '"c"'))
    with serving(lambda _: Reply(body, headers={"ETag": next(etags)})) as origin:
        keeper = keeper_of(publisher, url=origin.url)
        with httpx.Client() as client:
            assert keeper.refresh(client) is True
            assert keeper.refresh(client) is False
            assert keeper.refresh(client) is False
    assert [request.get("if-none-match") for request in origin.requests] == [None, '"a"', '"b"']


def test_not_modified_does_not_renew_a_manifest_that_has_lapsed(
    publisher: Publisher, origin: Origin
) -> None:
    now = time.time()
    keeper = keeper_of(publisher, url=origin.url, now=lambda: now)
    with httpx.Client() as client:
        keeper.refresh(client)
        assert keeper.is_fresh(now)
        now += 7 * 3_600
        with pytest.raises(TrustError) as caught:
            keeper.refresh(client)
    assert caught.value.code == "expired"
    assert not keeper.is_fresh(now)
    assert keeper.current is not None  # a validator may still serve within its grace


def test_a_keeper_without_a_url_says_so(publisher: Publisher) -> None:
    keeper = keeper_of(publisher)
    with httpx.Client() as client, pytest.raises(TrustError, match="no manifest URL"):
        keeper.refresh(client)
    assert not keeper.is_fresh(time.time())


# ── on disk ────────────────────────────────────────────────────────────────────────────────────


def test_a_restart_without_network_begins_with_the_stored_manifest(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "deep" / "state.json"
    keeper_of(publisher, cache).accept(publisher.publish(), etag='"1"')
    again = keeper_of(publisher, cache)
    assert again.load() is again.current
    assert version_of(again) == 1
    assert again.is_fresh(time.time())


def test_a_restart_asks_only_for_what_is_newer(
    publisher: Publisher, tmp_path: Path, origin: Origin
) -> None:
    with httpx.Client() as client:
        keeper_of(publisher, tmp_path / "state", url=origin.url).refresh(client)
        again = keeper_of(publisher, tmp_path / "state", url=origin.url)
        again.load()
        assert again.refresh(client) is False


def test_the_stored_file_is_its_owner_s_alone(publisher: Publisher, tmp_path: Path) -> None:
    cache = tmp_path / "state.json"
    keeper_of(publisher, cache).accept(publisher.publish(), etag=None)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.json.lock"]


def test_nothing_stored_is_not_an_error(publisher: Publisher, tmp_path: Path) -> None:
    keeper = keeper_of(publisher, tmp_path / "state.json")
    assert keeper.load() is None
    assert keeper.last_error is None


@pytest.mark.parametrize("cut", [0, 1, 100, 5_000])
def test_a_truncated_store_is_ignored_with_the_reason(
    publisher: Publisher, tmp_path: Path, cut: int
) -> None:
    cache = tmp_path / "state.json"
    keeper_of(publisher, cache).accept(publisher.publish(), etag=None)
    cache.write_bytes(cache.read_bytes()[:cut])
    keeper = keeper_of(publisher, cache)
    assert keeper.load() is None
    assert keeper.last_error is not None
    keeper.accept(publisher.publish(), etag=None)
    assert keeper_of(publisher, cache).load() is not None


def test_a_store_that_was_tampered_with_is_ignored_with_the_reason(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    keeper_of(publisher, cache).accept(publisher.publish(), etag=None)
    cache.write_bytes(cache.read_bytes().replace(b"acme-small", b"evil-small"))
    keeper = keeper_of(publisher, cache)
    assert keeper.load() is None
    assert keeper.last_error is not None
    assert keeper.last_error.code == "integrity"


def test_a_store_of_another_channel_is_ignored_with_the_reason(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    keeper_of(publisher, cache).accept(publisher.publish(), etag=None)
    other = ManifestKeeper(url=None, channel="canary", root=publisher.root, cache=cache)
    assert other.load() is None
    assert other.last_error is not None
    assert other.last_error.code == "semantic"


def test_a_named_pipe_in_place_of_the_store_does_not_block(
    publisher: Publisher, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "state.json")
    keeper = keeper_of(publisher, tmp_path / "state.json")
    assert keeper.load() is None
    assert keeper.last_error is not None


@pytest.mark.parametrize("place", ["/proc/nowhere/state.json", "/dev/full/state.json"])
def test_without_a_disk_the_keeper_works_from_memory(publisher: Publisher, place: str) -> None:
    keeper = keeper_of(publisher, Path(place))
    keeper.load()
    keeper.accept(publisher.publish(), etag=None)
    keeper.accept(publisher.publish(), etag=None)
    assert version_of(keeper) == 2
    assert keeper.store_error is not None


def test_a_machine_without_any_place_to_verify_in_says_so(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = publisher.publish()
    monkeypatch.setattr(verifier, "_MEMORY", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    assert refusal(keeper_of(publisher), bundle) == "unavailable"


def test_a_full_disk_costs_the_store_and_nothing_else(publisher: Publisher, tmp_path: Path) -> None:
    # A limit on file size stands in for a full disk: both fail in the middle of a write.
    cache = tmp_path / "state.json"
    keeper_of(publisher, cache).accept(publisher.publish(), etag=None)
    before = cache.read_bytes()
    bundle, root = tmp_path / "bundle", tmp_path / "root"
    bundle.write_bytes(publisher.publish())
    root.write_bytes(publisher.root)
    script = f"""
import resource, signal
from pathlib import Path
from waypost.shared.trust import ManifestKeeper, verifier
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
bundle, root = Path({str(bundle)!r}).read_bytes(), Path({str(root)!r}).read_bytes()
keeper = ManifestKeeper(url=None, channel="prod", root=root, cache=Path({str(cache)!r}))
keeper.load()
resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, 4_096))
print(keeper.accept(bundle, etag=None).policy.version, keeper.store_error.code)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert out.stdout.split() == [b"2", b"store_unavailable"]
    assert cache.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob(".waypost-*")) == []


def test_a_slower_process_does_not_take_the_store_back(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    slow, fast = keeper_of(publisher, cache), keeper_of(publisher, cache)
    first, second, third = (publisher.publish() for _ in range(3))
    slow.accept(first, etag=None)
    fast.load()
    fast.accept(third, etag=None)
    slow.accept(second, etag=None)
    assert version_of(slow) == 2
    again = keeper_of(publisher, cache)
    again.load()
    assert version_of(again) == 3


def test_a_store_that_lies_about_versions_does_not_keep_the_true_ones_out(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    stranger = Publisher()
    keeper_of(stranger, cache).accept(stranger.publish(version=2_000_000_000), etag=None)
    keeper = keeper_of(publisher, cache)
    assert keeper.load() is None
    keeper.accept(publisher.publish(), etag=None)
    again = keeper_of(publisher, cache)
    again.load()
    assert version_of(again) == 1


def test_a_store_locked_by_another_process_is_left_alone(
    publisher: Publisher, tmp_path: Path
) -> None:
    keeper = keeper_of(publisher, tmp_path / "state.json")
    with open(tmp_path / "state.json.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keeper.accept(publisher.publish(), etag=None)
        assert keeper.store_error is not None
        assert keeper.store_error.code == "store_locked"
        assert not (tmp_path / "state.json").exists()
    keeper.accept(publisher.publish(), etag=None)
    assert keeper.store_error is None


def _accept_all(root: bytes, cache: Path, bundles: list[bytes]) -> None:
    keeper = ManifestKeeper(url=None, channel="prod", root=root, cache=cache)
    for bundle in bundles:
        keeper.accept(bundle, etag=None)


def test_processes_that_write_at_once_leave_the_newest(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    bundles = [publisher.publish() for _ in range(6)]
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=_accept_all, args=(publisher.root, cache, bundles[start::2]))
        for start in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
        worker.close()
    again = keeper_of(publisher, cache)
    again.load()
    assert version_of(again) == 6


def test_threads_that_accept_at_once_end_with_the_newest(publisher: Publisher) -> None:
    keeper = keeper_of(publisher)
    bundles = [publisher.publish() for _ in range(8)]

    def accept(bundle: bytes) -> None:
        with suppress(TrustError):  # overtaken by a newer one
            keeper.accept(bundle, etag=None)

    threads = [threading.Thread(target=accept, args=(bundle,)) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert version_of(keeper) == 8


# ── the floor ──────────────────────────────────────────────────────────────────────────────────


def test_an_expired_manifest_still_blocks_rollback(publisher: Publisher) -> None:
    keeper = keeper_of(publisher)
    older = publisher.publish()
    assert refusal(keeper, publisher.publish(expires=int(time.time()) - 1)) == "expired"
    assert refusal(keeper, older) == "older_than_seen"


def test_the_floor_of_an_expired_manifest_survives_a_restart(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    first, older = publisher.publish(), publisher.publish()
    keeper = keeper_of(publisher, cache)
    keeper.accept(first, etag=None)
    refusal(keeper, publisher.publish(expires=int(time.time()) - 1))
    again = keeper_of(publisher, cache)
    again.load()
    assert version_of(again) == 1  # what was good stays good
    assert refusal(again, older) == "older_than_seen"


def test_a_manifest_whose_files_never_came_locks_nobody_out(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    keeper = keeper_of(publisher, cache)
    keeper.accept(publisher.publish(), etag=None)
    files = unpack_bundle(publisher.publish())
    half = {path: text for path, text in files.items() if not path.startswith("targets/policy/")}
    assert refusal(keeper, pack_bundle(half)) == "unavailable"
    again = keeper_of(publisher, cache)
    assert again.load() is not None
    again.accept(pack_bundle(files), etag=None)
    assert version_of(again) == 2


def test_a_manifest_signed_with_a_revoked_key_is_dropped_at_once(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    keeper = keeper_of(publisher, cache)
    keeper.accept(publisher.publish(), etag=None)
    publisher.replace_key("timestamp")
    # The new root arrives, and nothing that the new timestamp key signed.
    assert refusal(keeper, publisher.bundle()) == "signature"
    assert keeper.current is None
    again = keeper_of(publisher, cache)
    assert again.load() is None
    assert again.last_error is not None
    assert again.last_error.code == "signature"
    again.accept(publisher.publish(), etag=None)
    assert decode_state(cache.read_bytes()).floor.keys() >= {"2.root", "timestamp"}


@pytest.mark.parametrize("brings_roots", [True, False])
def test_what_was_revoked_still_blocks_older_documents_after_a_restart(
    publisher: Publisher, tmp_path: Path, brings_roots: bool
) -> None:
    cache = tmp_path / "state.json"
    keeper = keeper_of(publisher, cache)
    publisher.replace_key("timestamp")
    keeper.accept(publisher.publish(), etag=None)
    old = dict(publisher.files)
    newer = unpack_bundle(publisher.publish())
    if not brings_roots:  # the client has them already
        newer = {path: text for path, text in newer.items() if ".root." not in path}
    keeper.accept(pack_bundle(newer), etag=None)
    publisher.replace_key("snapshot")
    publisher.replace_key("timestamp")
    assert refusal(keeper, publisher.bundle()) == "signature"
    # A thief of the new online keys signs the older policy anew.
    roots = {path: data for path, data in publisher.files.items() if path.endswith(".root.json")}
    publisher.files = {**old, **roots}
    repository = publisher.repository()
    repository.do_snapshot(force=True)
    repository.do_timestamp()
    publisher.save(repository)
    again = keeper_of(publisher, cache)
    assert again.load() is None
    assert refusal(again, publisher.bundle()) == "rollback"


def test_a_stored_manifest_opens_only_above_the_newest_root_seen(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    keeper_of(publisher, cache).accept(publisher.publish(), etag=None)
    publisher.replace_key("targets")
    state = decode_state(cache.read_bytes())
    newer = publisher.files["metadata/2.root.json"].decode()
    cache.write_bytes(encode_state(replace(state, floor={**state.floor, "2.root": newer})))
    again = keeper_of(publisher, cache)
    assert again.load() is None
    assert again.last_error is not None
    assert again.last_error.code == "signature"


def test_what_is_stored_is_what_was_verified_not_what_was_handed_in(
    publisher: Publisher, tmp_path: Path
) -> None:
    # Of two timestamps of one version the first seen holds. So a bundle with another one, signed
    # with a stolen key and leading to an older policy, "verifies" by what was here before it.
    cache = tmp_path / "state.json"
    publisher.publish()
    old = dict(publisher.files)
    keeper = keeper_of(publisher, cache)
    keeper.accept(publisher.publish(), etag=None)
    publisher.files = old
    repository = publisher.repository()
    repository.do_timestamp(force=True)
    publisher.save(repository)
    assert keeper.accept(publisher.bundle(), etag=None).policy.version == 2
    again = keeper_of(publisher, cache)
    again.load()
    assert version_of(again) == 2


def test_a_manifest_that_a_newer_root_stands_behind_is_kept(publisher: Publisher) -> None:
    keeper = keeper_of(publisher)
    good = keeper.accept(publisher.publish(), etag=None)
    # Another holder of root, other online keys beside the old ones: nothing of it is revoked.
    repository = publisher.repository()
    with repository.edit_root() as root:
        root.add_key(CryptoSigner.generate_ed25519().public_key, "timestamp")
    publisher.save(repository)
    files = unpack_bundle(publisher.bundle())
    files["metadata/timestamp.json"] = "{}"
    assert refusal(keeper, pack_bundle(files)) == "format"
    assert keeper.current is good


def test_a_worker_drops_what_another_worker_learned_to_be_revoked(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    first, second = keeper_of(publisher, cache), keeper_of(publisher, cache)
    first.accept(publisher.publish(), etag=None)
    second.load()
    publisher.replace_key("targets")
    assert refusal(first, publisher.bundle()) == "signature"
    second.load()
    assert second.current is None


def test_a_running_keeper_believes_the_disk_no_more_than_the_network(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "state.json"
    old = tmp_path / "old.json"
    keeper_of(publisher, old).accept(publisher.publish(), etag=None)
    keeper = keeper_of(publisher, cache)
    newest = keeper.accept(publisher.publish(), etag=None)
    cache.write_bytes(old.read_bytes())
    assert keeper.load() is None
    assert keeper.last_error is not None
    assert keeper.last_error.code == "older_than_seen"
    assert keeper.current is newest
