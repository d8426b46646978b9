"""The manifest's place on disk: one file, replaced whole, for one process at a time.

It holds only what verifies itself, so a reader trusts none of it; see ``ManifestKeeper.load``.
"""

import os
import stat
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from waypost.shared.errors import StoreError
from waypost.shared.trust.bundle import MAX_BUNDLE_BYTES

__all__ = ["State", "Store", "decode_state", "encode_state"]

MAX_STATE_BYTES = 4 * MAX_BUNDLE_BYTES  # the rest is room for a long chain of roots
LOCK_TRIES, LOCK_PAUSE_S = 20, 0.025

FORMAT: Final = "waypost-state/1"

# Becomes a file name in the verifier's directory, so it must not lead out of it.
_Role = Annotated[str, Meta(pattern=r"^(?:[0-9]{1,10}\.root|[a-z]{1,32})\Z")]


class State(Struct, frozen=True, kw_only=True):
    """What survives a restart.

    Attributes:
        files: the bundle accepted last; empty before the first.
        floor: newest metadata that ever verified, accepted or not.
        etag: of the bundle, as its server named it.
        root: version of the root that stood behind ``files`` when they were accepted.
    """

    channel: str
    files: dict[str, str]
    floor: dict[_Role, str]
    etag: str | None = None
    root: int = 0
    format: Literal["waypost-state/1"] = FORMAT


class _Format(Struct):
    format: str = ""


encode_state = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(State).decode
_decode_format = msgspec.json.Decoder(_Format).decode


def decode_state(data: bytes) -> State:
    """Return the state.

    Raises:
        StoreError: ``store_newer``, in the format of a later version; else ``store_corrupt``.
    """
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        found = _format_of(data)
        if found.startswith("waypost-state/") and found != FORMAT:
            raise StoreError(
                f"the stored manifest is of a later version of Waypost ({found[:40]})",
                code="store_newer",
            ) from exc
        raise StoreError(f"the stored manifest is unreadable: {exc}", code="store_corrupt") from exc


def _format_of(data: bytes) -> str:
    try:
        return _decode_format(data).format
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


class Store:
    """One file, mode 0600, with a lock beside it. Every method raises StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """Return the file's bytes; ``None`` when there is none."""
        try:
            # A named pipe in its place would otherwise block for ever.
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StoreError(f"cannot read {self.path}: {exc.strerror}") from exc
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)  # a directory cannot even be opened as a file
            raise StoreError(f"{self.path} is not a file", code="store_corrupt")
        with open(handle, "rb") as file:
            data = file.read(MAX_STATE_BYTES + 1)
        if len(data) > MAX_STATE_BYTES:
            raise StoreError(
                f"{self.path} has more than {MAX_STATE_BYTES} bytes", code="store_corrupt"
            )
        return data

    def write(self, data: bytes) -> None:
        """Replace the file: a reader, or a crash, sees the old bytes or the new, never a mix."""
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".waypost-")
            with open(handle, "wb") as file:  # mkstemp makes it 0600
                file.write(data)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, self.path)
            _sync_directory(self.path.parent)
        except OSError as exc:
            if temporary:
                with suppress(OSError):
                    os.unlink(temporary)
            raise StoreError(f"cannot write {self.path}: {exc.strerror}") from exc

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the store against other processes; gives up after half a second."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise StoreError(f"cannot lock {self.path}: {exc.strerror}") from exc
        try:
            _lock(handle, self.path)
            yield
        finally:
            os.close(handle)  # and with it the lock


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: the atomic replacement alone has to do
        return
    for attempt in range(LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == LOCK_TRIES - 1:
                break
            time.sleep(LOCK_PAUSE_S)
        except OSError:  # some network file systems cannot lock
            return
        else:
            return
    raise StoreError(f"another process keeps {path} locked", code="store_locked")


def _sync_directory(directory: Path) -> None:
    # Without it a power cut may bring the old file back, and with it a lower rollback floor.
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
