"""Several workers as one: what one knows all know, what one refuses all refuse, none is orphaned."""

import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from msgspec import structs

from support.origin import Reply
from support.origin import serving as origin_serving
from support.serving import Project, Running, eventually
from support.tokens import App
from waypost.shared.contracts import IssuerKey, Issuers

ADMIN = "root: root.json, admin: true, refresh_s: 86400"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def issuers_with(app: App, *keys: IssuerKey) -> Issuers:
    """Return issuers of which ``app`` has these keys."""
    issuers = app.issuers()
    (issuer,) = issuers.issuers
    return structs.replace(issuers, issuers=(structs.replace(issuer, keys=keys),))


def put(running: Running, bundle: bytes) -> dict[str, object]:
    response = httpx.put(f"{running.url}/admin/bundle", content=bundle, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def status_at(running: Running, worker: int, project: Project) -> int:
    """Return what ``worker`` says to a token; no model is asked for that."""
    with running.only(worker):
        headers = {"Authorization": project.bearer()}
        return httpx.get(f"{running.url}/v1/models", headers=headers, timeout=30).status_code


def until_there_are(running: Running, count: int) -> list[int]:
    eventually(lambda: len(running.workers()) == count, f"{count} workers")
    return running.workers()


def until_all_serve(running: Running, project: Project, count: int) -> list[int]:
    """Return the workers once each of them takes connections."""
    workers = until_there_are(running, count)
    for worker in workers:
        status_at(running, worker, project)
    return workers


# ── what one knows ─────────────────────────────────────────────────────────────────────────────


def test_a_bundle_that_is_put_holds_at_every_worker_before_the_answer(project: Project) -> None:
    project.write(manifest=ADMIN)
    with project.running("--workers", "2") as running:
        workers = until_all_serve(running, project, 2)
        assert put(running, project.bundle())["pending_workers"] == 0
        assert [status_at(running, one, project) for one in workers] == [200, 200]

        revoked = structs.replace(project.app.public_key(), status="revoked")
        bundle = project.bundle(issuers_with(project.app, revoked))
        assert put(running, bundle)["pending_workers"] == 0
        assert [status_at(running, one, project) for one in workers] == [401, 401]

        with running.only(workers[0]):  # what stands still is told of, and learns it later
            assert put(running, project.bundle(project.app.issuers()))["pending_workers"] == 1
        eventually(lambda: status_at(running, workers[1], project) == 200, "it is told")


def test_a_newer_manifest_that_one_worker_finds_is_the_others_too(project: Project) -> None:
    newcomer = App(kid="app-2")
    bundles = [project.bundle()]
    with origin_serving(lambda _: Reply(bundles[-1])) as edge:
        where = f"root: root.json, refresh_s: 86400, url: '{edge.url}/v1/prod/bundle.json'"
        project.write(manifest=where)
        with project.running("--workers", "2") as running:
            workers = until_all_serve(running, project, 2)
            keys = project.app.public_key(), newcomer.public_key()
            bundles.append(project.bundle(issuers_with(project.app, *keys)))
            project.app = newcomer
            # A key that nobody knows has the one that is asked look for newer issuers.
            assert status_at(running, workers[0], project) == 200
            asked = len(edge.requests)
            time.sleep(1)  # both run again; by then the other must know

            assert status_at(running, workers[1], project) == 200
            assert len(edge.requests) == asked


def test_a_worker_that_comes_later_knows_it_though_nothing_could_be_written(
    project: Project,
) -> None:
    (project.folder / "state/manifest.json").mkdir(parents=True)  # no file can be there
    project.write(manifest=ADMIN)
    with project.running("--workers", "2") as running:
        old = until_all_serve(running, project, 2)
        put(running, project.bundle())
        for worker in old:
            os.kill(worker, signal.SIGKILL)

        eventually(lambda: not set(old) & set(running.workers()), "the old are gone")
        new = until_all_serve(running, project, 2)

        assert [status_at(running, one, project) for one in new] == [200] * 2
        assert "was ended by SIGKILL" in running.log.read_text()


# ── beginning and ending ───────────────────────────────────────────────────────────────────────


@contextmanager
def a_slow_root(project: Project) -> Generator[threading.Event]:
    """Have workers read the trusted root from a pipe, which says nothing until the event."""
    root, may = project.folder / "root.json", threading.Event()
    data = root.read_bytes()
    root.unlink()
    os.mkfifo(root)
    is_over = threading.Event()

    def feed() -> None:
        may.wait()
        while not is_over.is_set():
            try:
                handle = os.open(root, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads
                is_over.wait(0.02)
                continue
            with os.fdopen(handle, "wb") as pipe:
                pipe.write(data)
            is_over.wait(0.2)  # two readers of one pipe would share what is written

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield may
    finally:
        is_over.set()
        may.set()
        feeder.join()


def test_the_port_refuses_until_a_worker_can_serve_however_long_that_takes(
    project: Project,
) -> None:
    project.publish()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with a_slow_root(project) as may:
        process = project.start("--workers", "1", port=port, log=project.folder / "log")
        starting = Running(process, f"http://127.0.0.1:{port}", project.folder / "log")
        try:
            (worker,) = until_there_are(starting, 1)
            assert starting.refuses()
            may.set()
            assert process.stdout is not None
            assert process.stdout.readline().startswith("waypost validator listening on")
            assert starting.workers() == [worker]
            assert starting.get("/readyz").status_code == 200
        finally:
            process.send_signal(signal.SIGINT)
            assert starting.ended() == 0


def test_it_can_be_stopped_while_it_starts(project: Project) -> None:
    project.publish()
    with a_slow_root(project) as may:
        process = project.start("--workers", "2", log=project.folder / "log")
        starting = Running(process, "http://127.0.0.1:0", project.folder / "log")
        (worker,) = until_there_are(starting, 1)
        process.send_signal(signal.SIGTERM)
        may.set()  # it sits in a read, and sees only then that it is not wanted

        assert starting.ended() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_not_ready_is_a_phase_in_which_requests_are_served(project: Project) -> None:
    project.publish()
    with project.running("--workers", "2", "--grace-s", "3600") as running:
        until_all_serve(running, project, 2)
        with httpx.Client(base_url=running.url) as kept:
            kept.get("/livez")
            running.signal(signal.SIGTERM)
            eventually(lambda: running.get("/readyz").status_code == 503, "it is not ready")

            assert running.get("/readyz").json() == {"status": "stopping", "checks": {}}
            assert running.get("/livez").status_code == 200
            headers = {"Authorization": project.bearer()}
            served = kept.get("/v1/models", headers=headers)
            assert served.status_code == 200
            assert served.headers["connection"] == "close"

        running.signal(signal.SIGTERM)  # who asks twice is in a hurry
        assert running.ended() == 0
        assert running.refuses()


def test_workers_end_when_their_parent_is_killed(project: Project) -> None:
    project.publish()
    with project.running("--workers", "2") as running:
        pids = until_there_are(running, 2)
        running.signal(signal.SIGKILL)
        running.ended()

        eventually(lambda: not any(map(_runs, pids)), "the workers end")
        assert running.refuses()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody reaps orphans, what has ended is still to be seen.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(") ")[2][0] != "Z"


# ── SIGHUP ─────────────────────────────────────────────────────────────────────────────────────


def test_sighup_replaces_a_worker_by_one_with_the_settings_of_now(project: Project) -> None:
    project.publish()
    with project.running("--grace-s", "0.2") as running:
        (old,) = until_there_are(running, 1)
        project.file.write_text(project.file.read_text().replace("{root:", "{admin: true, root:"))
        running.signal(signal.SIGHUP)
        eventually(lambda: old not in running.workers(), "the old worker is gone")
        (new,) = running.workers()
        assert httpx.put(f"{running.url}/admin/bundle", content=b"{}").status_code == 400

        project.file.write_text("audiense: nobody\n")
        running.signal(signal.SIGHUP)
        eventually(lambda: "the old workers go on" in running.log.read_text(), "it says so")
        assert "there is no such field" in running.log.read_text()
        eventually(lambda: running.workers() == [new], "the one that failed is gone")
        assert status_at(running, new, project) == 200
