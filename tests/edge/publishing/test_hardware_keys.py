"""Keys in a hardware module, by SoftHSM, and in a cloud's key service."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.clouds import key_service
from support.command import Command
from support.debian import needs
from support.projects import a_project
from waypost.edge.project.project import Project
from waypost.shared.trust import open_bundle

PIN = "4711"
URI = "hsm:2?label=waypost"
MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")
MODULE = next((path for path in MODULES if os.path.exists(path)), None)

needs_softhsm = needs("softhsm2-util")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token with one P-256 key, as a release engineer's smart card has it in slot 9c."""
    import pkcs11
    from pkcs11 import Attribute, KeyType
    from pkcs11.util.ec import encode_named_curve_parameters

    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(configuration))
        patch.setenv("PYKCS11LIB", str(MODULE))
        label = ["--free", "--label", "waypost", "--pin", PIN, "--so-pin", PIN]
        subprocess.run(["softhsm2-util", "--init-token", *label], check=True, capture_output=True)
        with (
            pkcs11.lib(str(MODULE))
            .get_token(token_label="waypost")
            .open(rw=True, user_pin=PIN) as session
        ):
            curve = session.create_domain_parameters(
                KeyType.EC,
                {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
                local=True,
            )
            curve.generate_keypair(id=b"\x02", label="waypost", store=True)
        yield folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return a_project(tmp_path / "project")


@pytest.fixture
def waypost(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    return Command(project.directory, monkeypatch, capsys)


def targets_key(waypost: Command) -> str:
    """The id of the newest key of targets."""
    rows: list[dict[str, Any]] = json.loads(waypost.good("keys", "list", "--json"))["keys"]
    return str([row["keyid"] for row in rows if row["role"] == "targets"][-1])


def accepted_signers(project: Project, version: int) -> set[str]:
    """Who signed the published targets; that a client takes them is checked first."""
    bundle = (project.public / "v1/prod/bundle.json").read_bytes()
    open_bundle(bundle, root=project.root.read_bytes(), channel="prod")
    text = (project.public / f"metadata/{version}.targets.json").read_text()
    return {signature["keyid"] for signature in json.loads(text)["signatures"]}


@needs_softhsm
@pytest.mark.usefixtures("token")
def test_a_key_in_a_hardware_module_signs_what_clients_accept(
    project: Project, waypost: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYPOST_KEY_PIN", PIN)
    waypost.good("keys", "add", "--role", "targets", "--key", URI, "--threshold", "2")
    keyid = targets_key(waypost)
    waypost.good("publish")
    assert keyid in accepted_signers(project, 1)


@needs_softhsm
@pytest.mark.usefixtures("token")
def test_a_holder_signs_a_draft_with_a_hardware_module(
    project: Project, waypost: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYPOST_KEY_PIN", PIN)
    waypost.good("keys", "add", "--role", "targets", "--key", URI, "--threshold", "2")
    waypost.good("publish", "--draft")
    waypost.good("sign", "draft.json", "--key", "keys/targets-1.pem", "--yes")
    waypost.good("sign", "draft.json", "--key", URI, "--yes")
    waypost.good("publish", "draft.json")
    assert len(accepted_signers(project, 1)) == 2


@needs_softhsm
@pytest.mark.usefixtures("token")
def test_a_wrong_pin_signs_nothing_and_is_not_told(
    project: Project, waypost: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    waypost.good("keys", "add", "--role", "targets", "--key", URI)
    monkeypatch.setenv("WAYPOST_KEY_PIN", "9999")
    refusal = waypost.refusal("publish")
    assert "key_unusable" in refusal
    assert "9999" not in refusal
    assert not (project.public / "v1").exists()


@needs_softhsm
@pytest.mark.usefixtures("token")
def test_a_module_without_the_key_is_refused(waypost: Command) -> None:
    for uri in ("hsm:7?label=waypost", "hsm:2?label=other"):
        waypost_refusal = waypost.refusal("keys", "add", "--role", "targets", "--key", uri)
        assert "key_unusable" in waypost_refusal or "PIN" in waypost_refusal


def test_a_key_in_a_cloud_s_key_service_signs_what_clients_accept(
    project: Project, waypost: Command
) -> None:
    key = ["--key", "awskms:alias/waypost"]
    with key_service() as private:
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (project.directory / "kms.pem").write_bytes(pem)
        assert "--public" in waypost.refusal("keys", "add", "--role", "targets", *key)
        waypost.good("keys", "add", "--role", "targets", *key, "--public", "kms.pem")
        keyid = targets_key(waypost)
        waypost.good("publish")
        assert keyid in accepted_signers(project, 1)
    # The service is gone, and so is its signature.
    assert "key_unusable" in waypost.refusal("publish")
