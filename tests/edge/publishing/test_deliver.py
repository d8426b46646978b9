"""Publishing to a folder and to a bucket: what is there, when, and with which headers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from tuf.ngclient import Updater

from support.clouds import object_store
from support.command import Command
from support.projects import a_project, hide_model, publish_project
from waypost.edge.project.names import CACHE_FOR_EVER, CACHE_SHORT
from waypost.edge.project.project import Project
from waypost.edge.publishing.deliver import Place, deliver, place_at
from waypost.shared.errors import StoreError, TrustError
from waypost.shared.trust import ManifestKeeper, open_bundle

BUCKET, PREFIX = "manifests", "app/one"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = a_project(tmp_path / "project")
    publish_project(project)
    return project


@pytest.fixture
def origin() -> Iterator[str]:
    everybody_may_read = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{BUCKET}/*",
            }
        ],
    }
    with object_store() as origin:
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket=BUCKET)
        s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(everybody_may_read))
        s3.close()
        yield origin


@pytest.fixture(params=["folder", "bucket"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "www")
    request.getfixturevalue("origin")
    return f"s3://{BUCKET}/{PREFIX}"


class Watched:
    """A place that notes what is written to it, and checks it as a reader would."""

    def __init__(self, place: Place, root: bytes) -> None:
        self.place, self.root = place, root
        self.written: list[str] = []

    def names(self) -> set[str]:
        return self.place.names()

    def get(self, name: str) -> bytes | None:
        return self.place.get(name)

    def put(self, name: str, data: bytes, *, cache: str) -> None:
        self.place.put(name, data, cache=cache)
        self.written.append(name)
        bundle = self.place.get("v1/prod/bundle.json")
        if bundle is not None:
            open_bundle(bundle, root=self.root, channel="prod")


def test_a_place_shows_the_public_tree_and_nothing_else(project: Project, target: str) -> None:
    hide_model(project, "large")
    publish_project(project)
    place = place_at(target)
    deliver(project, place)
    files = {
        path.relative_to(project.public).as_posix(): path.read_bytes()
        for path in project.public.rglob("*.json")
    }
    assert place.names() == set(files)
    assert {name: place.get(name) for name in files} == files


def test_what_others_lead_to_is_there_before_the_way_in(project: Project, target: str) -> None:
    watched = Watched(place_at(target), project.root.read_bytes())
    for _ in range(2):
        watched.written.clear()
        deliver(project, watched)
        assert watched.written[-2:] == ["metadata/timestamp.json", "v1/prod/bundle.json"]
        publish_project(project)


def test_what_is_there_is_not_written_again(project: Project, target: str) -> None:
    place = place_at(target)
    assert deliver(project, place) > 5
    assert deliver(project, place) == 0
    publish_project(project)
    written = deliver(project, place)
    assert 0 < written < len(place.names())


def test_a_place_that_is_ahead_is_not_thrown_back(
    project: Project, target: str, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in project.public.rglob("*.json")}
    publish_project(project)
    place = place_at(target)
    deliver(project, place)
    newest = place.get("v1/prod/bundle.json")
    for path, data in before.items():
        path.write_bytes(data)
    with pytest.raises(TrustError) as caught:
        deliver(project, place)
    assert caught.value.code == "older_than_seen"
    assert place.get("v1/prod/bundle.json") == newest


def test_a_place_that_shows_another_deployment_is_left_alone(
    project: Project, target: str, tmp_path: Path
) -> None:
    other = a_project(tmp_path / "other")
    publish_project(other)
    place = place_at(target)
    deliver(other, place)
    with pytest.raises(StoreError) as caught:
        deliver(project, place)
    assert caught.value.code == "place_foreign"
    assert place.get("metadata/1.root.json") == other.root.read_bytes()


def test_a_bucket_answers_with_the_headers_of_the_edge(project: Project, origin: str) -> None:
    deliver(project, place_at(f"s3://{BUCKET}/{PREFIX}"))
    for name, cache in {
        "v1/prod/bundle.json": CACHE_SHORT,
        "metadata/timestamp.json": CACHE_SHORT,
        "metadata/1.root.json": CACHE_FOR_EVER,
    }.items():
        answer = httpx.get(f"{origin}/{BUCKET}/{PREFIX}/{name}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, cache)
        assert answer.headers["content-type"] == "application/json"


def test_clients_take_the_manifest_from_a_bucket(
    project: Project, origin: str, tmp_path: Path
) -> None:
    deliver(project, place_at(f"s3://{BUCKET}/{PREFIX}"))
    base = f"{origin}/{BUCKET}/{PREFIX}"
    root = project.root.read_bytes()
    keeper = ManifestKeeper(
        url=f"{base}/v1/prod/bundle.json", channel="prod", root=root, cache=None
    )
    with httpx.Client() as client:
        assert keeper.refresh(client) is True
        assert keeper.refresh(client) is False
    (tmp_path / "metadata").mkdir()
    updater = Updater(str(tmp_path / "metadata"), f"{base}/metadata/", bootstrap=root)
    updater.refresh()
    assert updater.get_targetinfo("policy/prod.json") is not None


def test_publish_and_resign_bring_the_tree_along(
    project: Project,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waypost = Command(project.directory, monkeypatch, capsys)
    assert target in waypost.good("publish", "--to", target)
    place = place_at(target)
    assert document(place)["version"] == 2
    (project.directory / "hints.json").write_text('[{"model": "small", "health": 10}]')
    waypost.good("hints", "publish", "hints.json", "--to", target)
    assert "10" in str(place.get("v1/prod/bundle.json"))
    assert waypost.good("edge", "resign", "--to", target)


def document(place: Place) -> dict[str, Any]:
    bundle = json.loads(place.get("v1/prod/bundle.json") or b"")
    text = next(text for path, text in bundle["files"].items() if path.startswith("targets/policy"))
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("target", ["s3://", "s3:///prefix", "s3://b?x=1", "gs://bucket"])
def test_a_place_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(StoreError) as caught:
        place_at(target)
    assert caught.value.code == "place_invalid"


def test_a_bucket_that_cannot_be_reached_is_an_error_that_names_it(
    project: Project, origin: str
) -> None:
    place = place_at("s3://no-such-bucket")
    with pytest.raises(StoreError, match="s3://no-such-bucket") as caught:
        deliver(project, place)
    assert caught.value.code == "place_unavailable"


def test_nothing_is_delivered_before_something_is_published(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        deliver(Project(tmp_path), place_at(str(tmp_path / "www")))
