"""A Merkle tree over log entries, its tiles and its signed checkpoints. Pure.

RFC 6962 §2.1 says how entries are hashed; C2SP tlog-tiles, tlog-checkpoint and signed-note how
tree and head are written down, so that any tool for such logs reads ours.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Struct

__all__ = [
    "TILE",
    "Checkpoint",
    "LogError",
    "Tree",
    "bundle",
    "checkpoint",
    "cosigned_at",
    "leaf_hash",
    "node_hash",
    "open_checkpoint",
    "root_of",
    "size_of",
    "tile_path",
    "unbundle",
    "vkey",
]

TILE = 256  # hashes in a full tile
MAX_ENTRY_BYTES = 65_535
_ED25519, _COSIGNATURE = b"\x01", b"\x04"


class LogError(Exception):
    """What claims to be a log, a checkpoint or a key is not one. ``code`` is stable."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of an entry."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of two subtrees' roots."""
    return sha256(b"\x01" + left + right).digest()


def _perfect(hashes: Sequence[bytes]) -> bytes:
    """Return the root over a power of two of hashes."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[n], level[n + 1]) for n in range(0, len(level), 2)]
    return level[0]


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root of the tree over leaf hashes."""
    return Tree([list(hashes)]).root() if hashes else sha256(b"").digest()


class Tree:
    """The right edge of a tree: per level the hashes of the tile that is not full.

    A hash on level n stands for ``256 ** n`` leaves.
    """

    def __init__(self, levels: list[list[bytes]] | None = None) -> None:
        self.levels = levels if levels is not None else []

    def add(self, leaf: bytes) -> list[tuple[int, list[bytes]]]:
        """Add a leaf's hash; return the tiles that it made full, as (level, hashes)."""
        full: list[tuple[int, list[bytes]]] = []
        level, value = 0, leaf
        while True:
            if level == len(self.levels):
                self.levels.append([])
            hashes = self.levels[level]
            hashes.append(value)
            if len(hashes) < TILE:
                return full
            full.append((level, list(hashes)))
            self.levels[level] = []
            level, value = level + 1, _perfect(hashes)

    def root(self) -> bytes:
        """Return the root over all leaves."""
        subtrees: list[bytes] = []
        for hashes in reversed(self.levels):
            start = 0
            while start < len(hashes):
                width = 1 << ((len(hashes) - start).bit_length() - 1)
                subtrees.append(_perfect(hashes[start : start + width]))
                start += width
        if not subtrees:
            return sha256(b"").digest()
        root = subtrees.pop()
        while subtrees:
            root = node_hash(subtrees.pop(), root)
        return root


# ── files ──────────────────────────────────────────────────────────────────────────────────────


def tile_path(level: int | str, index: int, *, width: int = TILE) -> str:
    """Return a tile's path; of ``entries`` where that is the level.

    Args:
        width: hashes in it, where it is not full.
    """
    groups = [f"{index % 1_000:03d}"]
    while index := index // 1_000:
        groups.insert(0, f"x{index % 1_000:03d}")
    partial = "" if width == TILE else f".p/{width}"
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def bundle(entries: Sequence[bytes]) -> bytes:
    """Return entries as an entry bundle holds them."""
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def unbundle(data: bytes) -> list[bytes]:
    """Return the entries of a bundle; raises LogError (``log_malformed``)."""
    entries: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + 2 + int.from_bytes(data[start : start + 2], "big")
        if end > len(data):
            raise LogError("an entry bundle ends in the middle of an entry", code="log_malformed")
        entries.append(data[start + 2 : end])
        start = end
    return entries


# ── checkpoints ────────────────────────────────────────────────────────────────────────────────


class Checkpoint(Struct, frozen=True):
    """A log's head: how many entries it has, and the root over them."""

    size: int
    root: bytes


def _key_id(name: str, kind: bytes, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def vkey(origin: str, public: bytes) -> str:
    """Return the log's public key, as signed-note writes it."""
    encoded = base64.b64encode(_ED25519 + public).decode()
    return f"{origin}+{_key_id(origin, _ED25519, public).hex()}+{encoded}"


def checkpoint(
    origin: str, head: Checkpoint, *, public: bytes, sign: Callable[[bytes], bytes]
) -> bytes:
    """Return the signed note that commits to ``head``."""
    root = base64.b64encode(head.root).decode()
    text = f"{origin}\n{head.size}\n{root}\n"
    signature = base64.b64encode(_key_id(origin, _ED25519, public) + sign(text.encode()))
    return f"{text}\n— {origin} {signature.decode()}\n".encode()


def open_checkpoint(note: bytes, key: str) -> Checkpoint:
    """Return what the note commits to, if the log with this key signed it.

    Raises:
        LogError: ``key_malformed``, ``checkpoint_malformed`` or ``checkpoint_forged``.
    """
    origin, key_id, public = _read_key(key, _ED25519)
    try:
        text, signatures = note.decode().split("\n\n", 1)
        name, size, root = text.split("\n")
        head = Checkpoint(int(size), base64.b64decode(root, validate=True))
        if str(head.size) != size or len(head.root) != 32:
            raise ValueError
    except (ValueError, binascii.Error):
        raise LogError("the checkpoint is malformed", code="checkpoint_malformed") from None
    if name == origin:
        for raw in _signatures(signatures, origin, key_id):
            with suppress(InvalidSignature):
                public.verify(raw, f"{text}\n".encode())
                return head
    raise LogError("the checkpoint is not signed by this log's key", code="checkpoint_forged")


def size_of(note: bytes) -> int:
    """Return how many entries a head says there are; whoever checks a proof asks who says so."""
    try:
        return int(note.split(b"\n", 2)[1])
    except (ValueError, IndexError):
        raise LogError("the checkpoint is malformed", code="checkpoint_malformed") from None


def cosigned_at(note: bytes, key: str) -> int | None:
    """Return when the witness with this key cosigned the note, Unix seconds; ``None`` if not.

    Source: C2SP tlog-cosignature, Ed25519.

    Raises:
        LogError: ``key_malformed``.
    """
    name, key_id, public = _read_key(key, _COSIGNATURE)
    text, _, signatures = note.decode(errors="replace").partition("\n\n")
    for raw in _signatures(signatures, name, key_id):
        at = int.from_bytes(raw[:8], "big")
        with suppress(InvalidSignature):
            public.verify(raw[8:], f"cosignature/v1\ntime {at}\n{text}\n".encode())
            return at
    return None


def _read_key(key: str, kind: bytes) -> tuple[str, bytes, Ed25519PublicKey]:
    try:
        name, key_id, encoded = key.strip().split("+", 2)
        public = base64.b64decode(encoded, validate=True)
        verifier = Ed25519PublicKey.from_public_bytes(public[1:])
        if public[:1] != kind or bytes.fromhex(key_id) != _key_id(name, kind, public[1:]):
            raise ValueError
    except (ValueError, binascii.Error):
        whose = "log" if kind == _ED25519 else "witness"
        raise LogError(
            f"this is no key of a {whose} (name+hash+key)", code="key_malformed"
        ) from None
    return name, bytes.fromhex(key_id), verifier


def _signatures(lines: str, name: str, key_id: bytes) -> Iterator[bytes]:
    """Give the signatures of a note that say they are of this key."""
    for line in lines.splitlines():
        dash, _, rest = line.partition(" ")
        signer, _, signature = rest.partition(" ")
        if dash != "—" or signer != name:
            continue
        with suppress(binascii.Error):
            raw = base64.b64decode(signature, validate=True)
            if raw[:4] == key_id:
                yield raw[4:]
