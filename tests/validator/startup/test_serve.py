"""``waypost validator serve`` as an operator meets it: one line when it is ready, one when not."""

import socket
import time
from pathlib import Path

import httpx
import pytest

from support.serving import Project
from support.upstream import running_upstream
from support.validator import HELLO


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
    assert said.endswith("Address already in use; choose another with --port; 0 takes a free one")


def test_without_a_manifest_it_does_not_start(project: Project) -> None:
    said = project.refused()

    assert "manifest_missing: there is no manifest to serve" in said
    assert said.endswith("(`waypost edge serve`), or correct manifest.url in validator.yaml")


def test_every_provider_whose_key_is_unset_is_named_at_once(project: Project) -> None:
    project.write()
    wanted = "base_url: 'https://llm.example/v1', api_key"
    settings = project.file.read_text().replace(
        "budgets:", f"  b: {{{wanted}: UNSET_B}}\n  c: {{{wanted}s: [ACME_KEY, UNSET_C]}}\nbudgets:"
    )
    project.file.write_text(settings)

    said = project.refused()

    assert "b (UNSET_B), c (UNSET_C); set them, or take these providers out" in said
    assert "acme" not in said


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
