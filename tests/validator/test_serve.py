"""``waypost validator serve`` as an operator meets it: one line when it is ready, one when not."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from support.publisher import Publisher
from support.tokens import AUDIENCE, App
from support.upstream import running_upstream
from support.validator import HELLO
from waypost.shared.trust import ManifestKeeper

WAYPOST = Path(sys.executable).with_name("waypost")


class Project:
    """A folder that a validator can be run in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = App()
        self.publisher = Publisher()
        self.file = folder / "validator.yaml"
        (folder / "root.json").write_bytes(self.publisher.root)
        self.write()

    def write(self, port: int = 9, manifest: str = "root: root.json") -> None:
        self.file.write_text(
            f"audience: {AUDIENCE}\nmanifest: {{{manifest}}}\nproviders:\n"
            f"  acme: {{base_url: 'http://127.0.0.1:{port}/v1', api_key: ACME_KEY}}\n"
            "budgets: {default: [{window: day, limit_usd: 1}]}\n"
        )

    def publish(self) -> None:
        cache = self.folder / "state/manifest.json"
        cache.parent.mkdir()
        bundle = self.publisher.publish(issuers=self.app.issuers())
        root = self.publisher.root
        ManifestKeeper(url=None, channel="prod", root=root, cache=cache).accept(bundle, etag=None)

    def start(self, *options: str, port: int = 0) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(WAYPOST, "validator", "serve", "--config", self.file),
                *("--port", str(port), *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "ACME_KEY": "sk-acme-secret"},
        )

    @contextmanager
    def serving(self, *options: str) -> Generator[str]:
        process = self.start(*options)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("waypost validator listening on http://127.0.0.1:"), line
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        assert out == ""
        assert "Traceback" not in err
        assert "sk-acme-secret" not in err

    def refused(self, *options: str, port: int = 0) -> str:
        process = self.start(*options, port=port)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert out == ""
        assert "Traceback" not in err
        return " ".join(err.split())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 2])
async def test_it_says_where_it_listens_and_serves_there(project: Project, workers: int) -> None:
    from anyio import to_thread

    async with running_upstream() as acme:
        project.publish()
        project.write(port=acme.port)
        serving = project.serving("--workers", str(workers))
        url = await to_thread.run_sync(serving.__enter__)
        try:
            token = project.app.bearer(now=int(time.time()))
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                for _ in range(4):
                    response = await client.post(
                        "/v1/chat/completions", json=HELLO, headers={"Authorization": token}
                    )
                    assert response.status_code == 200, response.text
        finally:
            await to_thread.run_sync(serving.__exit__, None, None, None)

    assert len(acme.seen) == 4


def test_a_port_in_use_is_one_clear_line(project: Project) -> None:
    project.publish()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = project.refused(port=taken.getsockname()[1])

    assert said.startswith("waypost: address_unavailable: cannot listen on 127.0.0.1 port ")
    assert said.endswith("Address already in use")


def test_without_a_manifest_it_does_not_start(project: Project) -> None:
    assert "manifest_missing: there is no manifest to serve" in project.refused()


def test_an_edge_that_does_not_answer_is_named(project: Project) -> None:
    project.write(manifest="root: root.json, url: 'http://127.0.0.1:9/v1/prod/bundle.json'")

    said = project.refused()

    assert "manifest_missing" in said
    assert "http://127.0.0.1:9/v1/prod/bundle.json" in said


def test_a_manifest_that_was_tampered_with_is_not_served(project: Project) -> None:
    project.publish()
    cache = project.folder / "state/manifest.json"
    cache.write_bytes(cache.read_bytes().replace(b"no_training", b"no_trainink"))

    assert "manifest_missing" in project.refused()


def test_a_wrong_setting_is_one_clear_line(project: Project) -> None:
    project.file.write_text(project.file.read_text().replace("api_key", "api_kez"))

    said = project.refused()

    assert "config_invalid" in said
    assert "validator.yaml:4: providers.acme.api_kez: there is no such field" in said
    assert "did you mean 'api_key'?" in said


def test_a_settings_file_that_is_not_there_says_how_to_get_one(project: Project) -> None:
    project.file.unlink()

    assert "`waypost init` writes one" in project.refused()
