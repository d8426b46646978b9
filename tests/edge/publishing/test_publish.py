"""Publishing: what is signed, what is seen, and when."""

import hashlib
import os
import threading
import time
from pathlib import Path

import msgspec
import pytest

from support.projects import a_project, hide_model, publish_project
from waypost.edge.project.project import Project
from waypost.edge.publishing import publish as publishing
from waypost.edge.publishing.publish import publish, publish_hints, resign, role_keys
from waypost.edge.publishing.repository import LIFETIME_S, ROLES, ManifestRepository
from waypost.edge.publishing.signing_keys import load_keyring, load_signers
from waypost.shared.contracts import Hint
from waypost.shared.errors import PolicyError, StoreError, TrustError, WaypostError
from waypost.shared.trust import ManifestKeeper, Trusted, open_bundle

ONLINE = ("hints", "snapshot", "timestamp")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return a_project(tmp_path / "project")


def bundle_of(project: Project, channel: str = "prod") -> bytes:
    return (project.public / "v1" / channel / "bundle.json").read_bytes()


def opened(project: Project, channel: str = "prod") -> Trusted:
    return open_bundle(bundle_of(project, channel), root=project.root.read_bytes(), channel=channel)


def tree_of(project: Project) -> dict[str, bytes]:
    return {
        str(path.relative_to(project.directory)): path.read_bytes()
        for tree in (project.public, project.private)
        for path in tree.rglob("*")
        if path.is_file()
    }


def test_what_was_written_is_what_clients_read(project: Project) -> None:
    published = publish_project(project)
    trusted = opened(project)
    assert trusted.policy.version == published.version == 1
    assert len(trusted.policy.models) == published.models
    assert trusted.policy_digest == published.policy_digest
    assert trusted.expires_at == published.expires_at
    assert trusted.issuers.issuers


def test_each_publication_takes_over_from_the_last(project: Project) -> None:
    keeper = ManifestKeeper(url=None, channel="prod", root=project.root.read_bytes(), cache=None)
    for version in (1, 2, 3):
        assert publish_project(project).version == version
        assert keeper.accept(bundle_of(project), etag=None).policy.version == version


def test_channels_live_side_by_side(project: Project) -> None:
    publish_project(project)
    publish_project(project, channel="canary")
    assert opened(project).policy.channel == "prod"
    assert opened(project, "canary").policy.channel == "canary"
    assert opened(project).versions["timestamp"] == opened(project, "canary").versions["timestamp"]


@pytest.mark.parametrize("channel", ["", "../prod", "Prod", "a/b", "x" * 65, "prod\n"])
def test_a_channel_name_cannot_leave_its_place(project: Project, channel: str) -> None:
    with pytest.raises(PolicyError):
        publish_project(project, channel=channel)


def test_names_with_a_version_or_a_digest_never_change_their_bytes(project: Project) -> None:
    publish_project(project)
    before = tree_of(project)
    hide_model(project, "large")
    publish_project(project)
    after = tree_of(project)
    mutable = [path for path in before if after[path] != before[path]]
    assert sorted(mutable) == [
        "private/v1/prod/bundle.json",
        "public/metadata/timestamp.json",
        "public/v1/prod/bundle.json",
    ]
    for path, data in after.items():
        if "/targets/" in path:
            assert Path(path).name.split(".")[0] == hashlib.sha256(data).hexdigest()


def test_a_private_model_is_for_validators_alone(project: Project) -> None:
    publish_project(project)
    public_before = tree_of(project)
    hide_model(project, "large")
    assert publish_project(project).private_models == 1
    full = open_bundle(
        (project.private / "v1/prod/bundle.json").read_bytes(),
        root=project.root.read_bytes(),
        channel="prod",
        projection="full",
    )
    assert "large" in full.compiled.models
    assert "large" not in opened(project).compiled.models
    new = {path: data for path, data in tree_of(project).items() if path not in public_before}
    for path, data in {**new, "bundle": bundle_of(project)}.items():
        if not path.startswith("private/"):
            assert b'"large"' not in data
            assert full.policy_digest.encode() not in data


def test_a_wrong_policy_file_publishes_nothing(project: Project) -> None:
    publish_project(project)
    before = tree_of(project)
    project.policy.write_text("tiers: [free]\nmodels: {}\n")
    with pytest.raises(WaypostError):
        publish_project(project)
    project.policy.unlink()
    with pytest.raises(WaypostError):
        publish_project(project)
    assert tree_of(project) == before


def test_without_the_policy_s_key_nothing_is_published(project: Project) -> None:
    publish_project(project)
    before = tree_of(project)
    keyring = load_keyring(project.keys)
    with pytest.raises(StoreError) as caught:
        publish(
            project,
            channel="prod",
            signers=load_signers(keyring, project.keys, ONLINE, passphrase=None),
            hints_keys=keyring.of("hints"),
            now=int(time.time()),
        )
    assert caught.value.code == "signatures_missing"
    assert tree_of(project) == before


def test_what_clients_would_refuse_is_not_published(project: Project) -> None:
    publish_project(project)
    before = tree_of(project)
    keyring = load_keyring(project.keys)
    signers = load_signers(keyring, project.keys, ROLES, passphrase=None)
    late = int(time.time()) - 7 * 3_600  # expired from the start
    with pytest.raises(TrustError):
        publish(project, channel="prod", signers=signers, hints_keys=keyring.of("hints"), now=late)
    assert tree_of(project) == before


def test_a_publication_after_a_lost_tree_is_not_let_through_as_new(project: Project) -> None:
    # Clients have seen version 2; a tree that starts again at 1 would lock them out.
    publish_project(project)
    publish_project(project)
    (project.public / "metadata/timestamp.json").unlink()
    with pytest.raises(TrustError) as caught:
        publish_project(project)
    assert caught.value.code in ("older_than_seen", "rollback")


def test_a_damaged_tree_is_an_error_that_names_the_file(project: Project) -> None:
    publish_project(project)
    (project.public / "metadata/timestamp.json").write_text("{")
    with pytest.raises(StoreError, match=r"timestamp\.json") as caught:
        publish_project(project)
    assert caught.value.code == "tree_damaged"


def test_signing_anew_extends_the_life_and_keeps_the_content(project: Project) -> None:
    publish_project(project)
    first = opened(project)
    keyring = load_keyring(project.keys)
    signers = load_signers(keyring, project.keys, ONLINE, passphrase=None)
    later = int(time.time()) + 600
    resign(project, signers=signers, now=later)
    second = open_bundle(
        bundle_of(project),
        root=project.root.read_bytes(),
        channel="prod",
        previous=first.bundle,
    )
    assert second.expires_at == later + LIFETIME_S["timestamp"]
    assert second.policy_digest == first.policy_digest
    assert second.versions["timestamp"] == 2
    assert second.versions["snapshot"] == 1


def test_signing_anew_renews_snapshot_and_hints_before_they_lapse(project: Project) -> None:
    publish_project(project)
    keyring = load_keyring(project.keys)
    signers = load_signers(keyring, project.keys, ONLINE, passphrase=None)
    later = int(time.time()) + 4 * 86_400
    resign(project, signers=signers, now=later)
    lapses = {keys.role: keys.expires_at or 0 for keys in role_keys(project)}
    assert {role: lapses[role] - later for role in ONLINE} == {
        role: LIFETIME_S[role] for role in ONLINE
    }
    assert opened(project).versions["snapshot"] == 2


def test_what_was_observed_is_forgotten_when_signed_anew_and_what_is_drained_is_not(
    project: Project,
) -> None:
    publish_project(project)
    tell(project, Hint(model="small", health=0, drain=True), Hint(model="large", health=0))
    keyring = load_keyring(project.keys)
    signers = load_signers(keyring, project.keys, ONLINE, passphrase=None)
    soon, later = int(time.time()) + 3_600, int(time.time()) + 13 * 3_600

    resign(project, signers=signers, now=soon)
    assert len(opened(project).hints.models) == 2  # type: ignore[union-attr]
    resign(project, signers=signers, now=later)
    assert opened(project).hints.models == (Hint(model="small", drain=True),)  # type: ignore[union-attr]


def test_signing_anew_before_anything_was_published_does_nothing(project: Project) -> None:
    before = tree_of(project)
    resign(project, signers={}, now=int(time.time()))
    assert tree_of(project) == before


def test_an_edge_without_the_private_tree_signs_the_public_one(project: Project) -> None:
    publish_project(project)
    for path in sorted(project.private.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    keyring = load_keyring(project.keys)
    signers = load_signers(keyring, project.keys, ONLINE, passphrase=None)
    resign(project, signers=signers, now=int(time.time()) + 600)
    assert opened(project).versions["timestamp"] == 2
    assert not list(project.private.rglob("*.json"))


def test_a_crash_between_two_files_is_mended_by_the_next_turn(project: Project) -> None:
    publish_project(project)
    old = bundle_of(project)
    publish_project(project)
    new = bundle_of(project)
    (project.public / "v1/prod/bundle.json").write_bytes(old)  # died before the bundle
    assert opened(project).policy.version == 1
    keyring = load_keyring(project.keys)
    resign(
        project,
        signers=load_signers(keyring, project.keys, ONLINE, passphrase=None),
        now=int(time.time()),
    )
    assert opened(project).policy.version == 2
    assert bundle_of(project) == new


def test_a_reader_never_sees_a_half_published_state(project: Project) -> None:
    publish_project(project)
    root = project.root.read_bytes()
    seen: set[int] = set()
    done = threading.Event()
    failures: list[str] = []

    def read() -> None:
        previous: bytes | None = None
        while not done.is_set():
            bundle = bundle_of(project)
            try:
                trusted = open_bundle(bundle, root=root, channel="prod", previous=previous)
            except TrustError as exc:
                failures.append(f"{exc.code}: {exc}")
                return
            previous = bundle
            seen.add(trusted.policy.version)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(6):
            publish_project(project)
    finally:
        done.set()
        reader.join()
    assert failures == []
    assert len(seen) > 1


def test_the_timestamp_appears_after_all_that_it_leads_to(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    replace = os.replace

    def watch(source: str, target: Path) -> None:
        if Path(target).is_relative_to(project.directory):
            order.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    publish_project(project)
    assert order[-3:] == ["timestamp.json", "bundle.json", "bundle.json"]
    assert "timestamp.json" not in order[:-3]


def test_two_publishers_at_once_publish_one_after_the_other(project: Project) -> None:
    threads = [threading.Thread(target=publish_project, args=(project,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened(project).policy.version == 4


def test_no_cache_may_serve_a_bundle_longer_than_it_lives() -> None:
    from waypost.edge.project.names import CACHE_SHORT

    ages = [int(part.partition("=")[2]) for part in CACHE_SHORT.split(", ")[1:]]
    assert sum(ages) <= LIFETIME_S["timestamp"] - publishing.RESIGN_EVERY_S


def test_documents_are_named_by_what_they_are(project: Project) -> None:
    publish_project(project)
    repository = ManifestRepository(lambda path: tree_of(project).get(f"public/{path}"), {}, now=0)
    assert sorted(repository.targets().targets) == ["issuers/prod.json", "policy/prod.json"]
    issuers = next((project.public / "targets/issuers").iterdir())
    assert msgspec.json.decode(issuers.read_bytes())["kind"] == "issuers"


# ── hints ──────────────────────────────────────────────────────────────────────────────────────


def tell(project: Project, *hints: Hint) -> int:
    """Publish hints as an edge does: with the online keys alone."""
    keyring = load_keyring(project.keys)
    signers = load_signers(keyring, project.keys, ONLINE, passphrase=None)
    now = int(time.time())
    return publish_hints(project, hints, channel="prod", signers=signers, now=now).version


def test_hints_reach_clients_without_the_keys_of_people(project: Project) -> None:
    publish_project(project)
    for path in [*project.keys.glob("root-*"), *project.keys.glob("targets-*")]:
        path.unlink()
    assert tell(project, Hint(model="small", ttft_ms=123, health=40)) == 2
    trusted = opened(project)
    assert trusted.hints is not None
    assert trusted.hints.models == (Hint(model="small", ttft_ms=123, health=40),)
    assert trusted.policy.version == 1


def test_a_new_policy_keeps_what_the_fleet_sees(project: Project) -> None:
    publish_project(project)
    tell(project, Hint(model="small", drain=True))
    publish_project(project)
    trusted = opened(project)
    assert trusted.policy.version == 2
    assert trusted.hints is not None
    assert trusted.hints.models == (Hint(model="small", drain=True),)


@pytest.mark.parametrize("model", ["smal", "large"])
def test_hints_name_public_models_only(project: Project, model: str) -> None:
    hide_model(project, "large")  # hints are for everybody to read, names included
    publish_project(project)
    before = tree_of(project)
    with pytest.raises(PolicyError) as caught:
        tell(project, Hint(model=model))
    assert caught.value.code == "hints_invalid"
    assert tree_of(project) == before


def test_hints_without_a_policy_are_refused(project: Project) -> None:
    with pytest.raises(StoreError) as caught:
        tell(project, Hint(model="small"))
    assert caught.value.code == "nothing_published"
