"""The edge's commands as a release engineer runs them: real processes, real sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tuf.ngclient import Updater

from support.command import Command
from support.projects import a_project, publish_project
from waypost.edge.project.project import Project
from waypost.edge.publishing import signing_keys as keys
from waypost.edge.publishing.signing_keys import load_keyring
from waypost.shared.trust import ManifestKeeper

COMMAND = [sys.executable, "-c", "from waypost.cli import main; main()"]
PASSPHRASE = "correct horse battery staple"


def waypost(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def edge(project: Project, **environment: str) -> Iterator[str]:
    """Serve ``project`` as ``waypost edge serve`` does; yields its URL."""
    process = subprocess.Popen(
        [*COMMAND, "edge", "serve", "--dir", str(project.directory), "--port", "0"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("waypost edge listening on http://127.0.0.1:"), line
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert "Traceback" not in errors


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return a_project(tmp_path / "project")


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("WAYPOST_KEY_PASSPHRASE", PASSPHRASE)
    monkeypatch.setattr(keys, "KDF_ROUNDS", 1_000)  # many openings, none by an attacker
    return Command(tmp_path, monkeypatch, capsys)


def test_from_nothing_to_a_published_manifest(command: Command) -> None:
    command.good("init", "demo")
    command.folder /= "demo"
    for line in (["keys", "new"], ["publish"], ["keys", "list"]):
        assert PASSPHRASE not in command.good(*line)
    published = json.loads(command.good("publish", "--json"))
    assert (published["channel"], published["version"]) == ("prod", 2)
    keys = json.loads(command.good("keys", "list", "--json"))
    roles = {"root", "targets", "hints", "snapshot", "timestamp"}
    assert {key["role"] for key in keys["keys"]} == roles
    assert keys["expires_at"]["timestamp"] > time.time()


def test_the_key_commands_refuse_in_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*arguments: str, passphrase: str = PASSPHRASE) -> str:
        monkeypatch.setenv("WAYPOST_KEY_PASSPHRASE", passphrase)
        done = command(*arguments)
        assert done.code in (1, 2)
        assert (done.out, done.err.count("\n")) == ("", 1)
        return done.err

    assert "keys_missing" in refusal("publish")
    assert "keys_missing" in refusal("keys", "list")
    assert "set WAYPOST_KEY_PASSPHRASE" in refusal("keys", "new", passphrase="")
    assert not (command.folder / "keys").exists()
    monkeypatch.setenv("WAYPOST_KEY_PASSPHRASE", PASSPHRASE)
    command.good("keys", "new")
    assert "keys_exist" in refusal("keys", "new")
    assert "set WAYPOST_KEY_PASSPHRASE" in refusal("publish", passphrase="")
    wrong = refusal("publish", passphrase="wrong")
    assert "key_locked" in wrong
    assert PASSPHRASE not in wrong
    assert "policy.yaml" in refusal("publish")
    assert "publish first" in refusal("edge", "serve", "--dir", "nowhere")
    assert "publish first" in refusal("edge", "serve")
    assert "publish first" in refusal("edge", "resign")
    assert "is not ROLE=" in refusal("keys", "new", "--key", "alice.pub")
    assert "is not a number" in refusal("keys", "new", "--threshold", "root=two")


def test_the_edge_serves_a_manifest_that_a_client_accepts(project: Project, tmp_path: Path) -> None:
    publish_project(project)
    with edge(project) as url, httpx.Client() as client:
        keeper = ManifestKeeper(
            url=f"{url}/v1/prod/bundle.json",
            channel="prod",
            root=project.root.read_bytes(),
            cache=tmp_path / "state.json",
        )
        assert keeper.refresh(client) is True
        assert keeper.refresh(client) is False
        publish_project(project)
        assert keeper.refresh(client) is True
        assert keeper.current is not None
        assert keeper.current.policy.version == 2


def test_the_edge_gives_validators_the_full_manifest(project: Project) -> None:
    publish_project(project)
    token = "for-validators-only"
    with edge(project, WAYPOST_EDGE_PRIVATE_TOKEN=token) as url:
        keeper = ManifestKeeper(
            url=f"{url}/v1/prod/full/bundle.json",
            channel="prod",
            root=project.root.read_bytes(),
            cache=None,
            projection="full",
        )
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}) as client:
            assert keeper.refresh(client) is True


def test_any_tuf_client_verifies_the_published_tree(project: Project, tmp_path: Path) -> None:
    publish_project(project)
    publish_project(project)
    with edge(project) as url:
        metadata, targets = tmp_path / "metadata", tmp_path / "targets"
        metadata.mkdir()
        targets.mkdir()
        updater = Updater(
            str(metadata),
            f"{url}/metadata/",
            str(targets),
            f"{url}/targets/",
            bootstrap=project.root.read_bytes(),
        )
        for path in ("policy/prod.json", "issuers/prod.json", "hints/prod.json"):
            info = updater.get_targetinfo(path)
            assert info is not None
            document = json.loads(Path(updater.download_target(info)).read_bytes())
            # What people did not change, hints, is not published anew.
            version = 1 if document["kind"] == "hints" else 2
            assert (document["channel"], document["version"]) == ("prod", version)


def test_the_edge_signs_the_timestamp_anew_at_start(project: Project) -> None:
    publish_project(project, age_s=3_600)
    before = timestamp_version(project)
    with edge(project):
        pass
    assert timestamp_version(project) == before + 1


def timestamp_version(project: Project) -> int:
    text = (project.public / "metadata/timestamp.json").read_text()
    return int(json.loads(text)["signed"]["version"])


def test_an_edge_without_keys_serves_and_signs_nothing(project: Project) -> None:
    publish_project(project)
    for entry in load_keyring(project.keys).keys:
        (project.keys / f"{entry.name}.pem").unlink()
    before = timestamp_version(project)
    with edge(project) as url:
        assert httpx.get(f"{url}/v1/prod/bundle.json").status_code == 200
    assert timestamp_version(project) == before


def test_a_port_in_use_is_an_error_of_one_line(project: Project) -> None:
    publish_project(project)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = waypost("edge", "serve", "--port", port, cwd=project.directory)
    nowhere = waypost("edge", "serve", "--host", "no.such.host.invalid", cwd=project.directory)
    for failed in (done, nowhere):
        assert failed.returncode == 1
        assert "address_unavailable" in failed.stderr
        assert "Traceback" not in failed.stderr
