"""Where a client's key is kept, and who can read it there."""

import multiprocessing
import stat
import sys
from pathlib import Path

import keyring
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from keyring.backend import KeyringBackend
from keyring.backends import fail
from keyring.errors import KeyringLocked

from support.first_come import kept_thumbprint
from waypost.client._paths import user_data_dir
from waypost.client.dpop import DPoPKey, FileKeyStore, KeychainKeyStore
from waypost.shared.errors import StoreError


class Keychain(KeyringBackend):
    """A keychain of this process."""

    priority = 1

    def __init__(self, *, locked: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: dict[tuple[str, str], str] = {}
        self.locked = locked

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked("locked")
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise KeyringLocked("locked")
        self.entries[service, username] = password


@pytest.fixture
def keychain(monkeypatch: pytest.MonkeyPatch) -> Keychain:
    made = Keychain()
    monkeypatch.setattr(keyring, "get_keyring", lambda: made)
    return made


def test_a_key_in_a_file_is_the_same_in_the_next_run_and_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "dpop.pem"

    first, second = DPoPKey.kept(FileKeyStore(path)), DPoPKey.kept(FileKeyStore(path))

    assert first.thumbprint == second.thumbprint
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["dpop.pem"]


def test_processes_that_start_at_once_use_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert len(set(pool.map(kept_thumbprint, [tmp_path / "dpop.pem"] * 4))) == 1


def test_a_key_is_kept_in_the_keychain_where_there_is_one(keychain: Keychain) -> None:
    first, second = DPoPKey.kept(), DPoPKey.kept()

    assert first.thumbprint == second.thumbprint
    assert list(keychain.entries) == [("waypost", "dpop")]


def test_apps_that_must_not_share_a_key_have_names_of_their_own(keychain: Keychain) -> None:
    one, two = (DPoPKey.kept(KeychainKeyStore(name)) for name in ("one", "two"))

    assert one.thumbprint != two.thumbprint


def test_where_there_is_no_keychain_a_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "get_keyring", fail.Keyring)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")

    key = DPoPKey.kept()

    assert kept_thumbprint(tmp_path / "waypost" / "dpop.pem") == key.thumbprint


def test_a_keychain_that_stays_locked_is_told_and_not_gone_around(keychain: Keychain) -> None:
    keychain.locked = True

    with pytest.raises(StoreError, match="the keychain does not open"):
        DPoPKey.kept()


@pytest.mark.parametrize("content", [b"", b"x", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_file_that_holds_no_key_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dpop.pem"
    path.write_bytes(content)

    with pytest.raises(StoreError, match="no unencrypted P-256 key") as caught:
        DPoPKey.kept(FileKeyStore(path))
    assert caught.value.code == "key_unusable"


def test_a_key_of_another_curve_is_no_key_of_ours() -> None:
    other = generate_private_key(SECP384R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with pytest.raises(StoreError):
        DPoPKey.from_pem(pem)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match=r"cannot (read|write)"):
        DPoPKey.kept(FileKeyStore(tmp_path / "file" / "dpop.pem"))


@pytest.mark.parametrize(
    ("platform", "env", "expected"),
    [
        ("linux", {}, "/home/a/.local/share/waypost"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/waypost"),
        ("linux", {"XDG_DATA_HOME": "data"}, "/home/a/.local/share/waypost"),
        ("darwin", {}, "/home/a/Library/Application Support/waypost"),
        ("win32", {}, "/home/a/AppData/Local/waypost"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/waypost"),
    ],
)
def test_keys_live_where_the_platform_has_a_user_s_data(
    platform: str, env: dict[str, str], expected: str
) -> None:
    found = user_data_dir(platform=platform, env=env, home=Path("/home/a"))

    assert found.as_posix() == expected
