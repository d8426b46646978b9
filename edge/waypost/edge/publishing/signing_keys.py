"""Signing keys: made once, kept encrypted, listed by role.

``keyring.json`` is an address book: public halves, and where each private half is, as a
securesystemslib URI: ``file:`` relative to it, or anything else that library can sign with.
Which of them count is said by the signed metadata alone. A machine has the private halves it
needs and no more: a release engineer's those of ``targets``, an edge's those of ``hints``,
``snapshot`` and ``timestamp``.
"""

# securesystemslib spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PBES,
    load_key_and_certificates,
    serialize_key_and_certificates,
)
from msgspec import Struct
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    CryptoSigner,
    HSMSigner,
    Key,
    Signer,
    SSlibKey,
)

from waypost.edge.project.atomic_write import write_file
from waypost.edge.project.project import Project
from waypost.edge.publishing.repository import ROLES, ManifestRepository
from waypost.shared.errors import StoreError

__all__ = [
    "ONLINE_ROLES",
    "KeyEntry",
    "Keyring",
    "Secrets",
    "create_keys",
    "forget_keys",
    "given_key",
    "holder_signer",
    "list_key",
    "load_keyring",
    "load_signers",
    "make_key",
    "needs_passphrase",
    "public_pem",
    "root_keys",
]

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

# Asked with "pin" or "passphrase"; returns it.
Secrets = Callable[[str], str]


class KeyEntry(Struct, frozen=True, kw_only=True):
    """One key.

    Attributes:
        uri: where its private half is; empty if only its holder knows.
        created_at: when it was listed here, Unix seconds.
        replaces: id of the key that it takes over from.
    """

    name: str
    role: str
    keyid: str
    uri: str = ""
    created_at: int
    public: dict[str, Any]
    replaces: str = ""

    @property
    def key(self) -> Key:
        """The public half."""
        return Key.from_dict(self.keyid, dict(self.public))


class Keyring(Struct, frozen=True, kw_only=True):
    """The keys of a deployment, public halves only."""

    keys: tuple[KeyEntry, ...]
    schema: int = 1

    def of(self, role: str) -> list[Key]:
        """Return the public halves listed for ``role``."""
        return [entry.key for entry in self.keys if entry.role == role]

    def named(self, name: str) -> KeyEntry | None:
        """Return the key with this name, or with a key id that begins so."""
        for entry in self.keys:
            if name == entry.name or (len(name) >= 8 and entry.keyid.startswith(name)):
                return entry
        return None


def create_keys(
    project: Project,
    *,
    passphrase: str | None,
    now: int,
    held: Sequence[KeyEntry] = (),
    thresholds: Mapping[str, int] | None = None,
) -> Keyring:
    """Return a new keyring, written to the project with its trust root.

    The root is left out if it takes signatures of ``held`` keys: see ``publish.draft_root``.

    Args:
        passphrase: encrypts the private halves; ``None`` leaves them readable.
        now: Unix seconds; the root lapses a year later.
        held: keys that exist already. A role that has one gets none made here.
        thresholds: how many must sign, by role, where it is not the default.

    Raises:
        StoreError: ``keys_exist``, or the disk refused. Keys are never overwritten.
            ``too_few_keys``, ``key_in_use``.
    """
    if project.root.exists() or (project.keys.exists() and any(project.keys.iterdir())):
        raise StoreError(f"{project.directory} has keys already", code="keys_exist")
    counts = Counter(entry.role for entry in held)
    _check_held(held, counts, thresholds or {})
    entries = list(held)
    for role in ROLES:
        for place in range(1, 1 + (0 if counts[role] else DEFAULT_KEYS[role][0])):
            name = f"{role}-{place}"
            made = make_key(project.keys, name, role=role, passphrase=passphrase, now=now)
            entries.append(made)
    keyring = Keyring(keys=tuple(entries))
    _save(keyring, project.keys)
    project.keys.chmod(0o700)
    if not any(entry.role == "root" for entry in held):
        signers = load_signers(keyring, project.keys, ["root"], passphrase=passphrase)
        repository = ManifestRepository(_nothing, signers, now=now)
        repository.create_root(*root_keys(keyring, thresholds))
        for path, data in repository.written.items():
            write_file(project.public / path, data)
            write_file(project.root, data)
    return keyring


def _check_held(
    held: Sequence[KeyEntry], counts: Mapping[str, int], thresholds: Mapping[str, int]
) -> None:
    for role in ROLES:
        keys = counts.get(role) or DEFAULT_KEYS[role][0]
        needed = thresholds.get(role, DEFAULT_KEYS[role][1])
        if not 1 <= needed <= keys:
            raise StoreError(
                f"{needed} keys must sign {role}, and it would have {keys}; say --threshold",
                code="too_few_keys",
            )
    for told in ([entry.keyid for entry in held], [entry.name for entry in held]):
        if len(set(told)) < len(told):
            raise StoreError(
                "each role wants keys of its own, and each key a name", code="key_in_use"
            )


def root_keys(
    keyring: Keyring, thresholds: Mapping[str, int] | None
) -> tuple[dict[str, list[Key]], dict[str, int]]:
    """Return what a first root says: keys and thresholds by role."""
    keys = {role: keyring.of(role) for role in ROLES}
    wanted = thresholds or {}
    needed = {role: wanted.get(role, default) for role, (_, default) in DEFAULT_KEYS.items()}
    return keys, needed


def make_key(
    directory: Path, name: str, *, role: str, passphrase: str | None, now: int
) -> KeyEntry:
    """Return a new key, its private half written to ``directory`` and nowhere else.

    Raises:
        StoreError: ``keys_exist``: a key is never written over.
    """
    private = Ed25519PrivateKey.generate()
    public = CryptoSigner(private).public_key
    suffix, data = _sealed(private, name, passphrase)
    path = directory / f"{name}{suffix}"
    if path.exists():
        raise StoreError(f"{path} exists already", code="keys_exist")
    write_file(path, data, mode=0o600)
    return KeyEntry(
        name=name,
        role=role,
        keyid=public.keyid,
        uri=f"file:{path.name}",
        created_at=now,
        public=public.to_dict(),
    )


def given_key(key: str, *, role: str, public: bytes | None, now: int, secrets: Secrets) -> KeyEntry:
    """Return the entry of a key that exists.

    Args:
        key: a file with its public half in PEM, whose holder signs elsewhere; or the URI of its
            private half, in any scheme that securesystemslib signs with.
        public: the public half in PEM, for URIs other than ``hsm:``, which tells it itself.

    Raises:
        StoreError: ``key_unusable``.
    """
    uri, name = "", Path(key).stem
    try:
        if key.partition(":")[0] in SIGNER_FOR_URI_SCHEME:
            uri, name = key, ""
            found = _hsm_key(key, secrets) if public is None else _public(public)
        else:
            found = _public(Path(key).read_bytes())
    except Exception as exc:  # each kind of store has errors of its own
        raise StoreError(f"{key} is no usable key: {_said(exc)}", code="key_unusable") from None
    return KeyEntry(
        name=name or f"{role}-{found.keyid[:8]}",
        role=role,
        keyid=found.keyid,
        uri=uri,
        created_at=now,
        public=found.to_dict(),
    )


def _public(pem: bytes) -> SSlibKey:
    return SSlibKey.from_crypto(load_pem_public_key(pem))


def _hsm_key(uri: str, secrets: Secrets) -> SSlibKey:
    parts = urlsplit(uri)
    if parts.scheme != HSMSigner.SCHEME:
        raise ValueError("say its public half, too: --public FILE")
    label = parse_qs(parts.query).get("label", [None])[0]
    return HSMSigner.import_(int(parts.path) if parts.path else None, label, secrets)[1]


def public_pem(entry: KeyEntry) -> bytes:
    """Return the public half of an Ed25519 key in PEM, to send to others."""
    raw = bytes.fromhex(entry.public["keyval"]["public"])
    key = Ed25519PublicKey.from_public_bytes(raw)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def list_key(directory: Path, entry: KeyEntry) -> Keyring:
    """Return the keyring of ``directory`` with one key more.

    Raises:
        StoreError: ``key_in_use``: one key serves one role, and one name one key.
    """
    keyring = load_keyring(directory)
    for other in keyring.keys:
        if entry.keyid == other.keyid or entry.name == other.name:
            raise StoreError(
                f"{other.name} of {other.role} is listed already; each role wants keys of its own",
                code="key_in_use",
            )
    keyring = msgspec.structs.replace(keyring, keys=(*keyring.keys, entry))
    _save(keyring, directory)
    return keyring


def forget_keys(directory: Path, keyids: Iterable[str]) -> None:
    """Take keys off the list, if there is one. Their private halves stay where they are."""
    gone = set(keyids)
    if gone and (directory / "keyring.json").exists():
        keyring = load_keyring(directory)
        kept = tuple(entry for entry in keyring.keys if entry.keyid not in gone)
        _save(msgspec.structs.replace(keyring, keys=kept), directory)


def _save(keyring: Keyring, directory: Path) -> None:
    write_file(directory / "keyring.json", msgspec.json.format(msgspec.json.encode(keyring)))


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
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise StoreError(f"cannot read {path}: {exc}", code="keys_missing") from exc


def needs_passphrase(keyring: Keyring, directory: Path, roles: Iterable[str]) -> bool:
    """Whether a private half at hand for ``roles`` is encrypted."""
    return any(
        entry.uri.endswith(".p12") and _is_at_hand(entry, directory)
        for entry in keyring.keys
        if entry.role in roles
    )


def load_signers(
    keyring: Keyring,
    directory: Path,
    roles: Iterable[str],
    *,
    passphrase: str | None,
    secrets: Secrets | None = None,
) -> dict[str, list[Signer]]:
    """Return what can sign for ``roles`` on this machine; roles without a key are left out.

    Args:
        passphrase: opens the encrypted files.
        secrets: asked by stores other than files, such as a hardware module for its PIN.

    Raises:
        StoreError: ``key_locked`` for a wrong or missing passphrase, ``key_unusable``.
    """
    wanted = set(roles)
    signers: dict[str, list[Signer]] = {}
    for entry in keyring.keys:
        if entry.role in wanted and _is_at_hand(entry, directory):
            signers.setdefault(entry.role, []).append(
                _signer(entry, directory, passphrase, secrets)
            )
    return signers


def holder_signer(key: str, keyring: Keyring | None, *, secrets: Secrets) -> Signer:
    """Return what signs with one holder's key.

    Args:
        key: a private key file, or a URI that ``keyring`` lists.

    Raises:
        StoreError: ``key_locked``, ``key_unusable``, ``key_unknown``.
    """
    for entry in keyring.keys if keyring is not None else ():
        if entry.uri == key and not key.startswith("file:"):
            return _signer(entry, Path(), None, secrets)
    path = Path(key)
    if not path.is_file():
        raise StoreError(
            f"{key} is neither a key file nor a URI that the keyring lists", code="key_unknown"
        )
    passphrase = secrets("passphrase") if path.suffix == ".p12" else None
    try:
        return CryptoSigner(_unsealed(path, passphrase))
    except (OSError, ValueError) as exc:
        raise StoreError(f"key {key} is unusable: {exc}", code="key_unusable") from None


def _is_at_hand(entry: KeyEntry, directory: Path) -> bool:
    scheme, _, name = entry.uri.partition(":")
    return bool(entry.uri) and (scheme != "file" or (directory / name).exists())


def _signer(
    entry: KeyEntry, directory: Path, passphrase: str | None, secrets: Secrets | None
) -> Signer:
    scheme, _, name = entry.uri.partition(":")
    try:
        if scheme != "file":
            return Signer.from_priv_key_uri(entry.uri, entry.key, secrets)
        signer = CryptoSigner(_unsealed(directory / name, passphrase))
    except StoreError:
        raise
    except Exception as exc:  # each kind of store has errors of its own
        raise StoreError(
            f"key {entry.name} is unusable: {_said(exc)}", code="key_unusable"
        ) from None
    if signer.public_key.keyid != entry.keyid:
        raise StoreError(f"{name} is not the key that the keyring lists", code="key_unusable")
    return signer


def _said(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


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
