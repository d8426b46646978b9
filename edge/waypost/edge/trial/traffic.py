"""Decision records as they lie on disk: a validator's SQLite file, JSON lines, or a JSON list."""

import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from waypost.shared.contracts import Policy, decode_policy
from waypost.shared.errors import StoreError

__all__ = ["Traffic"]

SQLITE = b"SQLite format 3\0"
CHUNK_BYTES = 2**20


class Traffic:
    """The records in one file.

    Attributes:
        total: how many there are.
        policies: the manifests that they were decided by, by digest, as far as they are kept.
    """

    def __init__(self, path: Path) -> None:
        """Look into the file at ``path``.

        Raises:
            StoreError: ``records_unavailable``, it cannot be read.
        """
        self._path = path
        self.policies: Mapping[str, Policy] = {}
        try:
            with path.open("rb") as stream:
                start = stream.read(len(SQLITE))
                self._is_sqlite = start == SQLITE
                self._is_list = start.lstrip()[:1] == b"["
                stream.seek(0)
                if self._is_list:
                    self._listed = msgspec.json.decode(stream.read(), type=list[Raw])
                    self.total = len(self._listed)
                elif not self._is_sqlite:
                    chunks = iter(lambda: stream.read(CHUNK_BYTES), b"")
                    self.total = sum(chunk.count(b"\n") for chunk in chunks)
            if self._is_sqlite:
                with closing(self._connect()) as db:
                    (self.total,) = db.execute("SELECT count(*) FROM bodies").fetchone()
                    found = db.execute("SELECT digest, body FROM policies").fetchall()
                # Hints are kept beside the manifests that they were for.
                self.policies = {
                    digest: decode_policy(body)
                    for digest, body in found
                    if _decode_kind(body).kind == "policy"
                }
        except OSError as exc:
            raise _unavailable(path, exc.strerror) from exc
        except (sqlite3.Error, msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
            raise _unavailable(path, str(exc)) from exc

    def bodies(self) -> Iterator[bytes | str | Raw]:
        """Give each record as JSON.

        Raises:
            StoreError: ``records_unavailable``, the file cannot be read on.
        """
        try:
            if self._is_list:
                yield from self._listed
            elif self._is_sqlite:
                with closing(self._connect()) as db:
                    (dictionary,) = db.execute("SELECT max(dictionary) FROM packing").fetchone()
                    for (body,) in db.execute("SELECT body FROM bodies ORDER BY seq"):
                        # What is no longer news was deflated against one of its own kind.
                        yield body if body[:1] == b"{" else _inflated(body, dictionary)
            else:
                with self._path.open("rb") as stream:
                    yield from (line for line in stream if not line.isspace())
        except (OSError, sqlite3.Error, zlib.error) as exc:
            raise _unavailable(self._path, str(exc)) from exc

    def _connect(self) -> sqlite3.Connection:
        # Read-only: the validator may be writing it.
        return sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True)


class _Kind(Struct):
    kind: str


_decode_kind = msgspec.json.Decoder(_Kind).decode


def _inflated(body: bytes, dictionary: bytes) -> bytes:
    return zlib.decompressobj(zdict=dictionary).decompress(body)


def _unavailable(path: Path, why: object) -> StoreError:
    return StoreError(f"cannot read {path}: {why}", code="records_unavailable")
