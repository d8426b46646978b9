"""Runs ``tuf.ngclient.Updater``, unmodified, on files in memory.

Imports tuf, so it is imported late. Each run gets a private directory, since an Updater's
directory must not be shared (concurrent runs fail on its root symlink); it is seeded with the
metadata verified before, which the Updater verifies again. The trusted root is always the one
that ships with the program, never a cached one.
"""

# tuf spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from waypost.shared.errors import TrustCode, TrustError
from waypost.shared.trust.bundle import MAX_ROOT_BYTES, MAX_ROOTS
from waypost.shared.trust.expiry import mend_of

__all__ = ["Verified", "verify"]

_CONFIG = UpdaterConfig(
    max_root_rotations=MAX_ROOTS,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=4_096,
    snapshot_max_length=16_384,
    targets_max_length=262_144,
)
_METADATA, _TARGETS = "metadata/", "targets/"
_TOP_LEVEL = ("root", "timestamp", "snapshot", "targets")

# Linux keeps it in memory: a third faster, and at hand where every disk is read-only.
_MEMORY = "/dev/shm"  # noqa: S108 - a private directory is made inside


@dataclass(frozen=True, slots=True)
class Verified:
    """What the Updater vouches for.

    Attributes:
        error: why the bundle is refused; the rest of the fields but ``floor`` is then void.
        targets: bytes by target path.
        files: repository path → text of what was relied upon, roots apart. Not all of it need be
            in what was handed in: of two timestamps of one version the first one seen holds.
        versions: of each role, ``root`` included.
        authors: ids of the keys that the root lets sign ``targets``.
        expires_at: the earliest expiry among the roles behind the required targets.
        expires: of each role behind the targets, Unix seconds.
        floor: metadata that verified, by file name without ``.json``.
    """

    error: TrustError | None
    targets: dict[str, bytes]
    files: dict[str, str]
    versions: dict[str, int]
    authors: frozenset[str]
    expires_at: int
    expires: dict[str, int]
    floor: dict[str, str]


def verify(
    files: Mapping[str, str],
    *,
    root: bytes,
    floor: Mapping[str, str],
    required: tuple[str, ...],
    optional: tuple[str, ...],
) -> Verified:
    """Return the targets that ``files`` prove, or why they prove nothing.

    Args:
        files: repository path → text, unverified.
        floor: as an earlier run returned it.
        required: target paths without which the bundle is refused.
        optional: target paths that may be missing or expired.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="waypost-", dir=_directory()) as directory:
            _seed(Path(directory), floor)
            return _run(Path(directory), files, root, floor, required, optional)
    except OSError as exc:
        error = TrustError(f"no temporary directory to verify in: {exc}", code="unavailable")
        return Verified(error, {}, {}, {}, frozenset(), 0, {}, dict(floor))


def _run(
    directory: Path,
    files: Mapping[str, str],
    root: bytes,
    floor: Mapping[str, str],
    required: tuple[str, ...],
    optional: tuple[str, ...],
) -> Verified:
    fetcher = _BundleFetcher(files)
    targets: dict[str, bytes] = {}
    used: dict[str, str] = {}
    error: TrustError | None = None
    expires_at = 0
    versions: dict[str, int] = {}
    expires: dict[str, int] = {}
    authors: frozenset[str] = frozenset()
    try:
        updater = Updater(
            str(directory), _METADATA, fetcher=fetcher, config=_CONFIG, bootstrap=root
        )
        updater.refresh()
        for path in required:
            targets[path] = _target(updater, fetcher, path)
            used[fetcher.asked] = targets[path].decode()
        roles = _trusted_roles(directory, required)
        authors = frozenset(roles["root"].roles["targets"].keyids)
        expires_at = min(int(role.expires.timestamp()) for role in roles.values())
        for path in optional:
            with suppress(DownloadHTTPError, ExpiredMetadataError):
                targets[path] = _target(updater, fetcher, path)
                used[fetcher.asked] = targets[path].decode()
        roles = _trusted_roles(directory, targets)
        versions = {name: role.version for name, role in roles.items()}
        expires = {name: int(role.expires.timestamp()) for name, role in roles.items()}
    except (RepositoryError, DownloadError) as exc:
        error = _refusal(exc, fetcher.asked)
    except Exception as exc:  # hostile input must not find a way around refusal
        error = TrustError(f"not a repository: {type(exc).__name__}", code="format")
    learned = _harvest(directory)
    if error is not None and (error.code, error.role) == ("expired", "timestamp"):
        # TUF 5.4.5 stores a timestamp only after its expiry was checked. It is authentic, and
        # without it an older one could return.
        learned["timestamp"] = files["metadata/timestamp.json"]
    for name, version in versions.items():
        if name != "root":
            used[f"{_METADATA}{'' if name == 'timestamp' else f'{version}.'}{name}.json"] = learned[
                name
            ]
    return Verified(
        error,
        targets,
        used,
        versions,
        authors,
        expires_at,
        expires,
        {**floor, **learned},
    )


class _BundleFetcher(FetcherInterface):
    """Serves the bundle's files; remembers which was asked for last, to name it in errors."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files
        self.asked = ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.asked = url
        text = self._files.get(url)
        if text is None:
            raise DownloadHTTPError(f"{url} is not in the bundle", 404)
        return iter((text.encode(),))

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Like the inherited method, without its temporary file."""
        data = b"".join(self.fetch(url))
        if len(data) > max_length:
            raise DownloadLengthMismatchError(
                f"{url} has {len(data)} bytes, at most {max_length} are read"
            )
        return data


def _target(updater: Updater, fetcher: _BundleFetcher, path: str) -> bytes:
    info: TargetFile | None = updater.get_targetinfo(path)
    if info is None:
        fetcher.asked = path
        raise DownloadHTTPError(f"no role has signed a target {path}", 404)
    # Verified and returned from the same bytes: a file in between could change in between.
    data = fetcher.download_bytes(_TARGETS + info.get_prefixed_paths()[0], info.length)
    info.verify_length_and_hashes(data)
    return data


# ── the Updater's directory: metadata it has verified, and nothing else ────────────────────────


def _directory() -> str | None:
    return _MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None


def _seed(directory: Path, floor: Mapping[str, str]) -> None:
    (directory / "root_history").mkdir()
    for name, text in floor.items():
        folder = directory / "root_history" if name.endswith(".root") else directory
        (folder / f"{name}.json").write_text(text, encoding="utf-8", newline="")


def _harvest(directory: Path) -> dict[str, str]:
    found = [*directory.glob("*.json"), *directory.glob("root_history/*.json")]
    return {
        path.name.removesuffix(".json"): path.read_bytes().decode()
        for path in found
        if path.name != "root.json"
    }


def _trusted_roles(directory: Path, targets: Iterable[str]) -> dict[str, Any]:
    """Return the ``tuf.api.metadata.Signed`` of each role behind ``targets``."""
    # ``full/prod.json`` is signed by the delegated role ``full``, ``policy/…`` by no other.
    behind = {*_TOP_LEVEL, *(path.partition("/")[0] for path in targets)}
    # By tuf's own parser: another one might read other versions out of the same bytes.
    return {
        name: Metadata[Any].from_file(str(path)).signed
        for name in sorted(behind)
        if (path := directory / f"{name}.json").exists()
    }


# ── refusals, in our words ─────────────────────────────────────────────────────────────────────


_LAGS = "New timestamp version"
# tuf finds out late that an earlier role has expired, so the file asked for last is not it.
_EXPIRED = re.compile(r"(?:Final |New )?([a-z]+)(?:\.json)? is expired")


def _refusal(exc: Exception, asked: str) -> TrustError:
    role = _role_of(asked)
    code: TrustCode
    match exc:
        case UnsignedMetadataError():
            code = "signature"
        case ExpiredMetadataError():
            code = "expired"
            match = _EXPIRED.fullmatch(str(exc))
            role = match[1] if match is not None else role
        case BadVersionNumberError():
            # A CDN node may lag behind another; only what contradicts itself is an attack.
            code = "older_than_seen" if str(exc).startswith(_LAGS) else "rollback"
        case DeserializationError():
            code = "format"
        case DownloadLengthMismatchError() if role in ("root", "timestamp"):
            code = "too_large"
        case LengthOrHashMismatchError() | DownloadLengthMismatchError():
            code = "integrity"
        case DownloadError():
            code = "unavailable"
        case _:
            code = "format"
    message = f"{role or 'bundle'}: {exc}"
    if code == "expired":
        message = f"{role} has expired: {mend_of(role)}"
    return TrustError(message, code=code, role=role)


def _role_of(path: str) -> str:
    """``metadata/9.targets.json`` → ``targets``; a target's path stays as it is."""
    if not path.startswith(_METADATA):
        return path.removeprefix(_TARGETS)
    return path.removeprefix(_METADATA).removesuffix(".json").rpartition(".")[2]
