"""The key ceremony: what it makes, and that nothing of it leaks or is lost."""

import stat
import subprocess
from pathlib import Path

import msgspec
import pytest
from tuf.api.metadata import Metadata, Root

from support.debian import needs
from support.holders import Holder
from waypost.edge.project.project import Project
from waypost.edge.publishing.repository import ROLES
from waypost.edge.publishing.signing_keys import (
    create_keys,
    load_keyring,
    load_signers,
    needs_passphrase,
)
from waypost.shared.errors import StoreError

NOW = 1_764_000_000
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def code_of(caught: pytest.ExceptionInfo[StoreError]) -> str:
    return caught.value.code


def test_the_root_names_three_holders_of_whom_two_must_sign(project: Project) -> None:
    create_keys(project, passphrase=None, now=NOW)
    root = Metadata[Root].from_bytes(project.root.read_bytes())
    root.verify_delegate("root", root)
    assert (len(root.signed.roles["root"].keyids), root.signed.roles["root"].threshold) == (3, 2)
    assert root.signed.consistent_snapshot
    assert root.signed.expires.timestamp() == NOW + 365 * 86_400
    assert project.root.read_bytes() == (project.public / "metadata/1.root.json").read_bytes()


def test_no_key_serves_two_roles(project: Project) -> None:
    keyring = create_keys(project, passphrase=None, now=NOW)
    keyids = [entry.keyid for entry in keyring.keys]
    assert len(keyids) == len(set(keyids)) == 7


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_private_halves_are_their_owner_s_alone(project: Project, passphrase: str | None) -> None:
    create_keys(project, passphrase=passphrase, now=NOW)
    assert stat.S_IMODE(project.keys.stat().st_mode) == 0o700
    files = [path for path in project.keys.iterdir() if path.name != "keyring.json"]
    assert len(files) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_encrypted_keys_sign_for_who_knows_the_passphrase(project: Project) -> None:
    create_keys(project, passphrase=PASSPHRASE, now=NOW)
    keyring = load_keyring(project.keys)
    assert needs_passphrase(keyring, project.keys, ["targets"])
    signers = load_signers(keyring, project.keys, ["targets"], passphrase=PASSPHRASE)
    (signer,) = signers["targets"]
    keyring.of("targets")[0].verify_signature(signer.sign(b"data"), b"data")
    for wrong in (None, "", "wrong"):
        with pytest.raises(StoreError) as caught:
            load_signers(keyring, project.keys, ["targets"], passphrase=wrong)
        assert code_of(caught) == "key_locked"
        assert PASSPHRASE not in str(caught.value)


@needs("openssl")
def test_encrypted_keys_are_in_a_format_that_openssl_opens(project: Project) -> None:
    create_keys(project, passphrase=PASSPHRASE, now=NOW)
    path = project.keys / "targets-1.p12"
    command = ["openssl", "pkcs12", "-in", str(path), "-passin", f"pass:{PASSPHRASE}", "-nodes"]
    out = subprocess.run([*command, "-info"], capture_output=True, check=True)
    assert b"BEGIN PRIVATE KEY" in out.stdout
    assert b"600000" in out.stderr  # rounds of key derivation


def test_keys_are_never_overwritten(project: Project) -> None:
    create_keys(project, passphrase=None, now=NOW)
    before = {path: path.read_bytes() for path in project.keys.iterdir()}
    with pytest.raises(StoreError) as caught:
        create_keys(project, passphrase=None, now=NOW)
    assert code_of(caught) == "keys_exist"
    assert {path: path.read_bytes() for path in project.keys.iterdir()} == before


@pytest.mark.parametrize(
    ("held", "thresholds", "code"),
    [
        (["root"], {}, "too_few_keys"),
        ([], {"root": 4}, "too_few_keys"),
        ([], {"targets": 0}, "too_few_keys"),
        (["targets", "hints"], {}, "key_in_use"),
    ],
)
def test_roles_that_could_not_be_signed_for_make_no_key(
    project: Project, held: list[str], thresholds: dict[str, int], code: str
) -> None:
    alice = Holder("alice", "")
    entries = [msgspec.structs.replace(alice.entry(), role=role) for role in held]
    with pytest.raises(StoreError) as caught:
        create_keys(project, passphrase=None, now=NOW, held=entries, thresholds=thresholds)
    assert code_of(caught) == code
    assert not project.keys.exists()


def test_a_machine_signs_with_the_keys_it_has(project: Project) -> None:
    create_keys(project, passphrase=None, now=NOW)
    for path in [*project.keys.glob("root-*"), *project.keys.glob("targets-*")]:
        path.unlink()
    keyring = load_keyring(project.keys)
    signers = load_signers(keyring, project.keys, ROLES, passphrase=None)
    assert sorted(signers) == ["hints", "snapshot", "timestamp"]


def test_a_key_file_that_is_not_the_listed_key_is_unusable(project: Project) -> None:
    create_keys(project, passphrase=None, now=NOW)
    (project.keys / "root-1.pem").replace(project.keys / "targets-1.pem")
    (project.keys / "hints-1.pem").write_text("not a key")
    keyring = load_keyring(project.keys)
    for role in ("targets", "hints"):
        with pytest.raises(StoreError) as caught:
            load_signers(keyring, project.keys, [role], passphrase=None)
        assert code_of(caught) == "key_unusable"


def test_an_unknown_kind_of_key_store_is_refused(project: Project) -> None:
    keyring = create_keys(project, passphrase=None, now=NOW)
    elsewhere = msgspec.structs.replace(
        keyring, keys=tuple(msgspec.structs.replace(key, uri="ufo:1") for key in keyring.keys)
    )
    with pytest.raises(StoreError) as caught:
        load_signers(elsewhere, project.keys, ["targets"], passphrase=None)
    assert code_of(caught) == "key_unusable"


@pytest.mark.parametrize("text", [None, "", "{}", "null"])
def test_without_a_keyring_the_error_says_how_to_make_one(
    project: Project, text: str | None
) -> None:
    if text is not None:
        project.keys.mkdir(parents=True)
        (project.keys / "keyring.json").write_text(text)
    with pytest.raises(StoreError) as caught:
        load_keyring(project.keys)
    assert code_of(caught) == "keys_missing"
