"""Keys are replaced, planned or in a hurry, and no honest client is locked out."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine
from securesystemslib.signer import Signer
from tuf.ngclient import Updater

from support.command import Command
from support.loopback import serving
from support.projects import a_project, publish_project
from waypost.edge.cli import _online_signers
from waypost.edge.project.project import Project
from waypost.edge.publishing.publish import publish, resign
from waypost.edge.publishing.repository import ROLES, ManifestRepository
from waypost.edge.publishing.signing_keys import load_keyring, load_signers
from waypost.edge.serving.app import create_app
from waypost.shared.contracts import Hints
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper, Projection
from waypost.shared.trust.bundle import pack_bundle

ONLINE = ("hints", "snapshot", "timestamp")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = a_project(tmp_path / "project")
    publish_project(project)
    return project


@pytest.fixture
def waypost(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    return Command(project.directory, monkeypatch, capsys)


class Watcher:
    """A client and a validator that started with the first root, and take what is published."""

    def __init__(self, project: Project) -> None:
        self.project = project
        root = project.root.read_bytes()
        self.keepers = {
            projection: ManifestKeeper(
                url=None, channel="prod", root=root, cache=None, projection=projection
            )
            for projection in ("client", "full")
        }
        self.follow()

    def follow(self) -> None:
        """Accept the bundles as they are; raises TrustError if one is refused."""
        for projection, keeper in self.keepers.items():
            tree = self.project.public if projection == "client" else self.project.private
            keeper.accept((tree / "v1/prod/bundle.json").read_bytes(), etag=None)

    @property
    def version(self) -> int:
        trusted = self.keepers["client"].current
        assert trusted is not None
        return trusted.policy.version


def listed(waypost: Command) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(waypost.good("keys", "list", "--json"))["keys"]
    return rows


def in_use(waypost: Command, role: str) -> list[str]:
    return [row["name"] for row in listed(waypost) if row["role"] == role and row["in_use"]]


def stolen(project: Project) -> dict[str, list[Signer]]:
    return load_signers(load_keyring(project.keys), project.keys, ROLES, passphrase=None)


# ── planned ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", ["targets", "hints", "snapshot", "timestamp"])
def test_old_and_new_sign_side_by_side_until_the_rotation_is_finished(
    project: Project, waypost: Command, role: str
) -> None:
    sleeper, awake = Watcher(project), Watcher(project)
    assert "--finish" in waypost.good("keys", "rotate", "--role", role)
    assert in_use(waypost, role) == [f"{role}-1", f"{role}-2"]
    awake.follow()
    publish_project(project)
    awake.follow()
    waypost.good("keys", "rotate", "--role", role, "--finish")
    assert in_use(waypost, role) == [f"{role}-2"]
    awake.follow()
    (project.keys / f"{role}-1.pem").unlink()
    newest = publish_project(project).version
    for watcher in (awake, sleeper):
        watcher.follow()
        assert watcher.version == newest


def test_a_key_of_the_root_is_replaced_in_one_step(project: Project, waypost: Command) -> None:
    watcher = Watcher(project)
    assert "--old" in waypost.refusal("keys", "rotate", "--role", "root")
    waypost.good("keys", "rotate", "--role", "root", "--old", "root-2")
    assert sorted(in_use(waypost, "root")) == ["root-1", "root-3", "root-4"]
    watcher.follow()


def test_while_keys_overlap_both_sign_the_timestamp(project: Project, waypost: Command) -> None:
    # So that a plain client finds it signed, whichever root its CDN node gives it.
    waypost.good("keys", "rotate", "--role", "timestamp")
    timestamp = json.loads((project.public / "metadata/timestamp.json").read_text())
    assert len(timestamp["signatures"]) == 2
    waypost.good("keys", "rotate", "--role", "timestamp", "--finish")
    timestamp = json.loads((project.public / "metadata/timestamp.json").read_text())
    assert len(timestamp["signatures"]) == 1


def test_a_client_that_slept_through_every_rotation_follows_in_one_go(
    project: Project, waypost: Command
) -> None:
    sleeper = Watcher(project)
    for role in ("timestamp", "targets", "snapshot", "hints"):
        waypost.good("keys", "rotate", "--role", role, "--emergency")
    waypost.good("keys", "rotate", "--role", "root", "--old", "root-1")
    newest = publish_project(project).version
    sleeper.follow()
    assert sleeper.version == newest


def test_the_shipped_root_is_the_newest(project: Project, waypost: Command) -> None:
    waypost.good("keys", "rotate", "--role", "timestamp")
    newest = project.public / "metadata/2.root.json"
    assert project.root.read_bytes() == newest.read_bytes()
    Watcher(project)


def test_a_deployment_that_lapsed_altogether_is_brought_back_root_first(
    project: Project, waypost: Command
) -> None:
    sleeper = Watcher(project)
    with time_machine.travel(time.time() + 400 * 86_400, tick=True):
        assert "expired" in waypost.refusal("publish")
        waypost.good("keys", "rotate", "--role", "root", "--old", "root-1")
        with pytest.raises(TrustError, match="targets"):
            sleeper.follow()
        waypost.good("publish")
        sleeper.follow()
        assert sleeper.version == 2


# ── in a hurry ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", ["targets", "hints", "snapshot", "timestamp"])
def test_what_a_revoked_key_signs_is_dropped(project: Project, waypost: Command, role: str) -> None:
    watcher = Watcher(project)
    thief = stolen(project)
    before = {path: path.read_bytes() for path in project.directory.rglob("*") if path.is_file()}
    waypost.good("keys", "revoke", f"{role}-1")
    watcher.follow()
    newest_roots = {
        str(path.relative_to(project.public)): path.read_bytes()
        for path in (project.public / "metadata").glob("*.root.json")
    }
    # The thief goes on from the old tree, with all the keys of the day, and shows the new root.
    for path in [path for path in project.directory.rglob("*") if path.is_file()]:
        path.unlink()
    for path, data in before.items():
        path.write_bytes(data)
    publish(
        project,
        channel="prod",
        signers=thief,
        hints_keys=[signer.public_key for signer in thief["hints"]],
        now=int(time.time()),
    )
    forged = json.loads((project.public / "v1/prod/bundle.json").read_bytes())["files"]
    forged |= {path: data.decode() for path, data in newest_roots.items()}
    with pytest.raises(TrustError) as caught:
        watcher.keepers["client"].accept(pack_bundle(forged), etag=None)
    assert caught.value.code == "signature"
    assert watcher.version == 1


def test_clients_forget_versions_that_a_thief_of_online_keys_drove_up(
    project: Project, waypost: Command
) -> None:
    watcher = Watcher(project)
    bundle = json.loads((project.public / "v1/prod/bundle.json").read_bytes())["files"]

    def read(path: str) -> bytes | None:
        return bundle[path].encode() if path in bundle else None

    thief = ManifestRepository(read, stolen(project), now=int(time.time()))
    for role in ONLINE:
        thief._versions[role] = 2_000_000_000
        thief.written[f"metadata/2000000000.{role}.json"] = read(f"metadata/1.{role}.json") or b""
    thief.written["metadata/timestamp.json"] = bundle["metadata/timestamp.json"].encode()
    thief.put_hints("prod", Hints(channel="prod", version=1, issued_at=0))
    thief.do_snapshot()
    thief.do_timestamp()
    watcher.keepers["client"].accept(pack_bundle(thief.bundle_files("prod", "client")), etag=None)
    publish_project(project)
    with pytest.raises(TrustError) as caught:
        watcher.follow()
    assert caught.value.code in ("older_than_seen", "rollback")
    waypost.good("keys", "revoke", "hints-1")  # takes snapshot's and timestamp's with it
    watcher.follow()
    assert watcher.version == 2


def test_a_stolen_key_of_the_root_goes_by_the_hands_of_the_others(
    project: Project, waypost: Command
) -> None:
    (project.keys / "root-1.pem").unlink()
    waypost.good("keys", "revoke", "root-1")
    assert in_use(waypost, "root") == ["root-2", "root-3"]
    assert "too_few_keys" in waypost.refusal("keys", "revoke", "root-2")


def test_what_cannot_be_signed_here_makes_no_key(project: Project, waypost: Command) -> None:
    for path in project.keys.glob("root-*.pem"):
        path.unlink()
    files, rows = sorted(project.keys.iterdir()), listed(waypost)
    assert "signatures_missing" in waypost.refusal("keys", "rotate", "--role", "timestamp")
    assert "signatures_missing" in waypost.refusal("keys", "revoke", "targets-1")
    assert (sorted(project.keys.iterdir()), listed(waypost)) == (files, rows)


def test_a_name_that_is_no_key_is_refused(project: Project, waypost: Command) -> None:
    assert "key_unknown" in waypost.refusal("keys", "revoke", "nobody")
    assert "key_unknown" in waypost.refusal("keys", "rotate", "--role", "hints", "--old", "root-1")
    assert "key_unknown" in waypost.refusal("keys", "rotate", "--role", "hints", "--finish")
    assert "there is no role" in waypost.refusal("keys", "rotate", "--role", "admin")


def test_one_key_serves_one_role(project: Project, waypost: Command) -> None:
    waypost.good("keys", "make", "alice", "--no-passphrase")
    waypost.good("keys", "add", "--role", "targets", "--key", "alice.pub")
    before = listed(waypost)
    assert "key_in_use" in waypost.refusal("keys", "add", "--role", "hints", "--key", "alice.pub")
    assert listed(waypost) == before


# ── the list ───────────────────────────────────────────────────────────────────────────────────


def test_the_list_says_who_holds_what_until_when_and_what_then_breaks(
    project: Project, waypost: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # a row a line
    waypost.good("keys", "make", "alice", "--no-passphrase")
    waypost.good("keys", "add", "--role", "targets", "--key", "alice.pub")
    (project.keys / "root-3.pem").unlink()
    rows = {row["name"]: row for row in listed(waypost)}
    assert (rows["alice"]["held"], rows["alice"]["role"]) == ("elsewhere", "targets")
    assert (rows["root-1"]["held"], rows["root-3"]["held"]) == ("here", "elsewhere")
    assert (rows["root-1"]["threshold"], rows["root-1"]["keys"]) == (2, 3)
    assert rows["timestamp-1"]["expires_at"] == pytest.approx(time.time() + 6 * 3_600, abs=60)
    shown = waypost.good("keys", "list")
    row = next(line for line in shown.splitlines() if "timestamp-1" in line)
    assert all(words in row for words in ("timestamp, 1 of 1", "here", "6 h", "the manifest"))


def test_a_key_that_only_the_metadata_names_is_listed_too(
    project: Project, waypost: Command
) -> None:
    keyring = json.loads((project.keys / "keyring.json").read_text())
    gone = keyring["keys"].pop(0)
    (project.keys / "keyring.json").write_text(json.dumps(keyring))
    row = next(row for row in listed(waypost) if row["keyid"] == gone["keyid"])
    assert (row["name"], row["held"], row["in_use"]) == (gone["keyid"][:8], "elsewhere", True)


# ── while servers run ──────────────────────────────────────────────────────────────────────────


def test_an_edge_signs_with_new_keys_without_being_started_anew(
    project: Project, waypost: Command
) -> None:
    load = _online_signers(project)
    before = load()["timestamp"][0].public_key.keyid
    waypost.good("keys", "rotate", "--role", "timestamp", "--emergency")
    (signer,) = load()["timestamp"]
    assert signer.public_key.keyid != before
    resign(project, signers=load(), now=int(time.time()) + 600)
    Watcher(project)


def test_no_reader_notices_rotations_and_revocations(project: Project, waypost: Command) -> None:
    root = project.root.read_bytes()
    app = create_app(project.public, private=project.private, private_token="for-validators")
    done = threading.Event()
    failures: list[str] = []
    versions: dict[Projection, set[int]] = {"client": set(), "full": set()}

    def poll(origin: str, projection: Projection) -> None:
        path = "" if projection == "client" else "full/"
        keeper = ManifestKeeper(
            url=f"{origin}/v1/prod/{path}bundle.json",
            channel="prod",
            root=root,
            cache=None,
            projection=projection,
        )
        headers = {"Authorization": "Bearer for-validators"}
        with httpx.Client(headers=headers) as client:
            while not done.is_set():
                try:
                    keeper.refresh(client)
                except TrustError as exc:
                    failures.append(f"{projection}: {exc.code}: {exc}")
                if keeper.current is not None:
                    versions[projection].add(keeper.current.versions["root"])

    with serving(app) as origin:
        pollers = [threading.Thread(target=poll, args=(origin, kind)) for kind in versions]
        for poller in pollers:
            poller.start()
        try:
            publish_project(project)
            waypost.good("keys", "rotate", "--role", "timestamp")
            waypost.good("keys", "rotate", "--role", "timestamp", "--finish")
            waypost.good("keys", "revoke", "targets-1")
            publish_project(project)
            time.sleep(0.2)
        finally:
            done.set()
            for poller in pollers:
                poller.join()
    assert failures == []
    assert all(max(seen) == 4 for seen in versions.values())


def test_a_plain_client_follows_the_published_roots(
    project: Project, waypost: Command, tmp_path: Path
) -> None:
    root = project.root.read_bytes()
    for role in ("timestamp", "targets"):
        waypost.good("keys", "rotate", "--role", role, "--emergency")
    with serving(create_app(project.public)) as origin:
        (tmp_path / "metadata").mkdir()
        updater = Updater(str(tmp_path / "metadata"), f"{origin}/metadata/", bootstrap=root)
        updater.refresh()
        assert updater.get_targetinfo("policy/prod.json") is not None
