"""The bundle: a TUF repository as one JSON document, ``{path: exact text}``.

Transport only. Nothing here says that a file may be believed; it only keeps what is absurd
(a path outside the repository, a file without end) away from the verifier. Pure.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from waypost.shared.errors import TrustError

__all__ = [
    "MAX_BUNDLE_BYTES",
    "MAX_ROOT_BYTES",
    "Projection",
    "missing_roots",
    "pack_bundle",
    "root_path",
    "target_path",
    "unpack_bundle",
]

Projection = Literal["client", "full"]

# A policy of 2,000 models makes a bundle of about 1.1 MB; see tests/shared/trust/test_bundle.py.
MAX_BUNDLE_BYTES = 4 * 2**20
MAX_FILE_BYTES = 2 * 2**20
MAX_FILES = 64
MAX_ROOT_BYTES = 64_000

# One a day for five years. Their metadata is kept and verified again from the shipped one on.
MAX_ROOTS = 2_048

# What TUF's consistent snapshots and our own target names can produce, and no more.
_PATH = re.compile(
    r"metadata/(?:[0-9]{1,10}\.[a-z]{1,32}|timestamp)\.json"
    r"|targets/[a-z]{1,32}/[0-9a-f]{64}\.[a-z0-9-]{1,64}\.json"
)


_ROOT = re.compile(r"metadata/([0-9]{1,10})\.root\.json")


class _Bundle(Struct, frozen=True):
    format: Literal["tuf-bundle/1"]
    files: dict[str, str]


class _Signed(Struct, frozen=True):
    version: int


class _Root(Struct, frozen=True):
    signed: _Signed


_decode = msgspec.json.Decoder(_Bundle).decode
_decode_root = msgspec.json.Decoder(_Root).decode


def target_path(channel: str, projection: Projection) -> str:
    """Return the TUF target path of the channel's policy."""
    return f"{'policy' if projection == 'client' else 'full'}/{channel}.json"


def root_path(version: int) -> str:
    """Return the repository path of a root."""
    return f"metadata/{version}.root.json"


def missing_roots(paths: Iterable[str], root: bytes) -> range:
    """Return the versions between ``root`` and the newest in ``paths`` that nobody has.

    They are contiguous: a bundle carries the newest, a client knows the oldest. Nothing here is
    verified, so the answer is only good for asking for more.
    """
    try:
        first = _decode_root(root).signed.version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return range(0)  # the verifier will say so
    have = {int(match[1]) for path in paths if (match := _ROOT.fullmatch(path)) is not None}
    low = first + 1
    while low in have:
        low += 1
    newer = [version for version in have if version > low]
    return range(low, min(newer, default=low))[:MAX_ROOTS]


def pack_bundle(files: Mapping[str, str]) -> bytes:
    """Return the bundle's bytes; equal files give equal bytes, and so an equal ETag."""
    return msgspec.json.encode(_Bundle("tuf-bundle/1", dict(sorted(files.items()))))


def unpack_bundle(bundle: bytes) -> dict[str, str]:
    """Return the files of a bundle, none of them verified.

    Raises:
        TrustError: ``too_large`` or ``format``.
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise TrustError(
            f"the bundle has {len(bundle)} bytes, at most {MAX_BUNDLE_BYTES} are read",
            code="too_large",
        )
    try:
        files = _decode(bundle).files
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise TrustError(f"not a bundle: {exc}", code="format") from exc
    check_files(files)
    return files


def check_files(files: Mapping[str, str]) -> None:
    """Raise TrustError (``too_large``, ``format``) for names and sizes no repository has."""
    if len(files) > MAX_FILES:
        raise TrustError(
            f"the bundle has {len(files)} files, at most {MAX_FILES} are read", code="too_large"
        )
    for path, text in files.items():
        if _PATH.fullmatch(path) is None:
            raise TrustError(f"the bundle names {path[:100]!r}, no repository path", code="format")
        if len(text) > MAX_FILE_BYTES:
            raise TrustError(
                f"{path} has {len(text)} characters, at most {MAX_FILE_BYTES} are read",
                code="too_large",
                role=path,
            )
