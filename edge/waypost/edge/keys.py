"""Signing keys: made once, kept encrypted, listed by role.

``keyring.json`` holds public halves and says where each private half is, as a securesystemslib
URI: ``file:`` relative to it, or anything else that library can sign with. A machine has the
private halves it needs and no more: a release engineer's those of ``targets``, an edge's those
of ``hints``, ``snapshot`` and ``timestamp``.
"""

# securesystemslib spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PBES,
    load_key_and_certificates,
    serialize_key_and_certificates,
)
from msgspec import Struct
from securesystemslib.signer import CryptoSigner, Key, Signer

from waypost.edge.files import write_file
from waypost.edge.project import Project
from waypost.edge.repository import ROLES, ManifestRepository
from waypost.shared.errors import StoreError

__all__ = ["ONLINE_ROLES", "KeyEntry", "Keyring", "create_keys", "load_keyring", "load_signers"]

# How many keys a role gets, and how many of them must sign.
DEFAULT_KEYS: Mapping[str, tuple[int, int]] = {
    "root": (3, 2),
    "targets": (1, 1),
    "hints": (1, 1),
    "snapshot": (1, 1),
    "timestamp": (1, 1),
}

# What an edge signs by itself, day and night.
ONLINE_ROLES = ("hints", "snapshot", "timestamp")

# OWASP, Password Storage Cheat Sheet, 2023: PBKDF2-HMAC-SHA256. 80 ms a key on a small machine.
KDF_ROUNDS = 600_000


class KeyEntry(Struct, frozen=True, kw_only=True):
    """One key. ``uri`` says where its private half is; ``created_at`` is Unix seconds."""

    name: str
    role: str
    keyid: str
    uri: str
    created_at: int
    public: dict[str, Any]

    @property
    def key(self) -> Key:
        """The public half."""
        return Key.from_dict(self.keyid, dict(self.public))


class Keyring(Struct, frozen=True, kw_only=True):
    """The keys of a deployment, public halves only."""

    keys: tuple[KeyEntry, ...]
    thresholds: dict[str, int]
    schema: int = 1

    def of(self, role: str) -> list[Key]:
        """Return the public halves that sign for ``role``."""
        return [entry.key for entry in self.keys if entry.role == role]


def create_keys(project: Project, *, passphrase: str | None, now: int) -> Keyring:
    """Return a new keyring, written to the project with its trust root.

    Args:
        passphrase: encrypts the private halves; ``None`` leaves them readable.
        now: Unix seconds; the root lapses a year later.

    Raises:
        StoreError: ``keys_exist``, or the disk refused. Keys are never overwritten.
    """
    if project.root.exists() or (project.keys.exists() and any(project.keys.iterdir())):
        raise StoreError(f"{project.directory} has keys already", code="keys_exist")
    entries: list[KeyEntry] = []
    signers: dict[str, list[Signer]] = {}
    for role in ROLES:
        for place in range(1, DEFAULT_KEYS[role][0] + 1):
            private = Ed25519PrivateKey.generate()
            signer = CryptoSigner(private)
            name = f"{role}-{place}"
            suffix, data = _sealed(private, name, passphrase)
            write_file(project.keys / f"{name}{suffix}", data, mode=0o600)
            signers.setdefault(role, []).append(signer)
            entries.append(
                KeyEntry(
                    name=name,
                    role=role,
                    keyid=signer.public_key.keyid,
                    uri=f"file:{name}{suffix}",
                    created_at=now,
                    public=signer.public_key.to_dict(),
                )
            )
    project.keys.chmod(0o700)
    thresholds = {role: needed for role, (_, needed) in DEFAULT_KEYS.items()}
    keyring = Keyring(keys=tuple(entries), thresholds=thresholds)
    repository = ManifestRepository(_nothing, signers, now=now)
    repository.create_root({role: keyring.of(role) for role in ROLES}, thresholds)
    write_file(project.keys / "keyring.json", msgspec.json.format(msgspec.json.encode(keyring)))
    for path, data in repository.written.items():
        write_file(project.public / path, data)
        write_file(project.root, data)
    return keyring


def _nothing(_path: str) -> None:
    return None


def load_keyring(directory: Path) -> Keyring:
    """Return the keyring of ``directory``; raises StoreError (``keys_missing``)."""
    path = directory / "keyring.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Keyring)
    except FileNotFoundError:
        raise StoreError(
            f"{directory} has no keyring.json; make keys with: waypost keys new",
            code="keys_missing",
        ) from None
    except (OSError, msgspec.DecodeError) as exc:
        raise StoreError(f"cannot read {path}: {exc}", code="keys_missing") from exc


def needs_passphrase(keyring: Keyring, directory: Path, roles: Iterable[str]) -> bool:
    """Whether a private half at hand for ``roles`` is encrypted."""
    return any(
        entry.uri.endswith(".p12") and _is_at_hand(entry, directory)
        for entry in keyring.keys
        if entry.role in roles
    )


def load_signers(
    keyring: Keyring, directory: Path, roles: Iterable[str], *, passphrase: str | None
) -> dict[str, list[Signer]]:
    """Return what can sign for ``roles`` on this machine; roles without a key are left out.

    Raises:
        StoreError: ``key_locked`` for a wrong or missing passphrase, ``key_unusable``.
    """
    wanted = set(roles)
    signers: dict[str, list[Signer]] = {}
    for entry in keyring.keys:
        if entry.role in wanted and _is_at_hand(entry, directory):
            signers.setdefault(entry.role, []).append(_signer(entry, directory, passphrase))
    return signers


def _is_at_hand(entry: KeyEntry, directory: Path) -> bool:
    scheme, _, name = entry.uri.partition(":")
    return scheme != "file" or (directory / name).exists()


def _signer(entry: KeyEntry, directory: Path, passphrase: str | None) -> Signer:
    scheme, _, name = entry.uri.partition(":")
    try:
        if scheme != "file":
            return Signer.from_priv_key_uri(entry.uri, entry.key)
        private = _unsealed(directory / name, passphrase)
        signer = CryptoSigner(private)
    except (OSError, ValueError) as exc:
        raise StoreError(f"key {entry.name} is unusable: {exc}", code="key_unusable") from None
    if signer.public_key.keyid != entry.keyid:
        raise StoreError(f"{name} is not the key that the keyring lists", code="key_unusable")
    return signer


def _sealed(private: Ed25519PrivateKey, name: str, passphrase: str | None) -> tuple[str, bytes]:
    """Return the file's suffix and its bytes, in a form that openssl reads too."""
    if passphrase is None:
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return ".pem", pem
    # PKCS#12, because cryptography fixes PKCS#8's key derivation at 2,048 rounds.
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(KDF_ROUNDS)
        .key_cert_algorithm(PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(SHA256())
        .build(passphrase.encode())
    )
    return ".p12", serialize_key_and_certificates(name.encode(), private, None, None, encryption)


def _unsealed(path: Path, passphrase: str | None) -> Ed25519PrivateKey:
    data = path.read_bytes()
    if path.suffix == ".p12":
        if passphrase is None:
            raise StoreError(f"{path.name} needs its passphrase", code="key_locked")
        try:
            private: object = load_key_and_certificates(data, passphrase.encode())[0]
        except ValueError:
            raise StoreError(
                f"the passphrase does not open {path.name}", code="key_locked"
            ) from None
    else:
        private = load_pem_private_key(data, None)
    if not isinstance(private, Ed25519PrivateKey):
        raise StoreError(f"{path.name} is not an Ed25519 key", code="key_unusable")
    return private
