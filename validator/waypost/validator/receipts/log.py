"""The log of decisions on disk: entries chained by hash, a Merkle tree over them, signed heads.

An entry seals a record by its hash and holds nothing else of it, so that a log may be given
away, and outlive the records. Several processes append to one folder, in turn.
"""

import fcntl
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from waypost.shared.errors import StoreError
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.receipts.tlog import (
    TILE,
    Checkpoint,
    LogError,
    Tree,
    bundle,
    checkpoint,
    leaf_hash,
    tile_path,
    unbundle,
)
from waypost.validator.records.base import Encoded

__all__ = ["Entry", "ReceiptLog", "read_entries"]

FIRST = "0" * 64  # what the first entry follows


class Entry(Struct, frozen=True):
    """One record in the log.

    Attributes:
        record: SHA-256 of the record as written.
        prev: SHA-256 of the entry before.
    """

    id: str
    at_ms: int
    record: str
    prev: str


class _State(Struct):
    """What the next append needs; written before the checkpoint that it leads to."""

    size: int = 0
    prev: str = FIRST
    levels: list[list[bytes]] = []
    entries: list[bytes] = []


_encode = msgspec.json.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(_State).decode


class ReceiptLog:
    """The log in one folder, for a validator that appends."""

    def __init__(self, folder: Path, keys: ReceiptKeys) -> None:
        """Raises StoreError (``log_unavailable``)."""
        self._folder = folder
        self._keys = keys
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._put("keys.json", _encode(keys.public))
        except OSError as exc:
            raise _unavailable(exc) from exc

    def append(self, records: Sequence[Encoded]) -> None:
        """Seal the records, in this order, under a new checkpoint.

        Raises:
            StoreError: ``log_unavailable``; then none of them is in the log.
        """
        try:
            with self._locked():
                self._append(records)
        except (OSError, msgspec.MsgspecError) as exc:
            raise _unavailable(exc) from exc

    def _append(self, records: Sequence[Encoded]) -> None:
        state_path = self._folder / "state"
        state = _decode_state(state_path.read_bytes()) if state_path.exists() else _State()
        before, tree = state.size, Tree(state.levels)
        for record, body in records:
            digest = sha256(body).hexdigest()
            entry = _encode(Entry(id=record.id, at_ms=record.at_ms, record=digest, prev=state.prev))
            state.entries.append(entry)
            state.prev = sha256(entry).hexdigest()
            for level, hashes in tree.add(leaf_hash(entry)):
                index = state.size // TILE ** (level + 1)
                self._put(tile_path(level, index), b"".join(hashes))
                if level == 0:
                    self._put(tile_path("entries", index), bundle(state.entries))
                    state.entries = []
            state.size += 1
        state.levels = tree.levels
        for level, hashes in enumerate(tree.levels):
            if hashes:
                path = tile_path(level, state.size // TILE ** (level + 1), width=len(hashes))
                self._put(path, b"".join(hashes))
        if state.entries:
            path = tile_path("entries", state.size // TILE, width=len(state.entries))
            self._put(path, bundle(state.entries))
        note = checkpoint(
            self._keys.origin,
            Checkpoint(state.size, tree.root()),
            public=self._keys.log_public,
            sign=self._keys.log.sign,
        )
        # Files first, then the head that promises them; then what the last one promised may go.
        # Both drafts before either counts: with the state alone on a full disk, the next try
        # would seal the same records a second time.
        drafts = (
            self._draft("state", msgspec.msgpack.encode(state)),
            self._draft("checkpoint", note),
        )
        for draft, target in drafts:
            os.replace(draft, target)
        with suppress(OSError):  # the records are in the log already
            self._drop_partial(before, state.size)

    def _put(self, path: str, data: bytes) -> None:
        os.replace(*self._draft(path, data))

    def _draft(self, path: str, data: bytes) -> tuple[Path, Path]:
        """Write a file whole beside its place; return where it is and belongs."""
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.new")
        try:
            draft.write_bytes(data)
        except OSError:
            with suppress(OSError):  # the room that it takes up is needed
                draft.unlink()
            raise
        return draft, target

    def _drop_partial(self, before: int, now: int) -> None:
        """Delete the partial tiles of the head before, which the new one goes beyond."""
        level = 0
        while before >= TILE**level:
            width = before // TILE**level % TILE
            index = before // TILE ** (level + 1)
            if width and (index, width) != (now // TILE ** (level + 1), now // TILE**level % TILE):
                for kind in (level, "entries") if level == 0 else (level,):
                    path = self._folder / tile_path(kind, index, width=width)
                    path.unlink(missing_ok=True)
            level += 1

    @contextmanager
    def _locked(self) -> Generator[None]:
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_entries(fetch: Callable[[str], bytes], size: int) -> Iterator[bytes]:
    """Give the first ``size`` entries of a log, oldest first.

    Args:
        fetch: the content of a path in the log.

    Raises:
        LogError: ``log_incomplete`` or ``log_malformed``.
    """
    for index in range(-(-size // TILE)):
        wanted = min(TILE, size - index * TILE)
        try:
            data = fetch(tile_path("entries", index, width=wanted))
        except FileNotFoundError:
            try:
                data = fetch(tile_path("entries", index))  # it has become full since
            except FileNotFoundError:
                raise LogError(
                    f"entries from {index * TILE} on are missing", code="log_incomplete"
                ) from None
        entries = unbundle(data)
        if len(entries) < wanted:
            raise LogError(f"bundle {index} is too short", code="log_incomplete")
        yield from entries[:wanted]


def _unavailable(exc: Exception) -> StoreError:
    return StoreError(f"the log of decisions cannot be written: {exc}", code="log_unavailable")
