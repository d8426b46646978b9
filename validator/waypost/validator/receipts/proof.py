"""One entry's proof: that it is in the log under a signed head, to be checked with nothing else.

RFC 6962 §2.1.1 says how the path is made, RFC 9162 §2.1.3.2 how it is checked, and C2SP tlog-proof
how it is written down, so that other tools check ours. The entry itself, and the record where it
goes along, are in the ``extra`` line, which proves nothing: they count only as far as hashes bind
them to the head. Pure.
"""

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct

from waypost.shared.records import DecisionRecord, decode_record
from waypost.validator.receipts.log import Entry
from waypost.validator.receipts.tlog import LogError, leaf_hash, node_hash, open_checkpoint, root_of

__all__ = ["Proof", "Proven", "check_proof", "format_proof", "inclusion", "parse_proof"]

_HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES = 262_144  # a record has at most 65,536
MAX_PATH = 64

_decode_entry = msgspec.json.Decoder(Entry).decode


class Proof(Struct, frozen=True, kw_only=True):
    """What a proof file holds.

    Attributes:
        index: the entry's, from 0.
        path: sibling hashes, from the leaf's up to the root's child.
        checkpoint: the log's head as it was signed, cosignatures included.
        record: as written; ``None`` where it does not go along.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes
    entry: bytes
    record: bytes | None = None


class Proven(Struct, frozen=True):
    """What a proof shows: the sealed entry, of a log of this size, and its record."""

    entry: Entry
    size: int
    record: DecisionRecord | None


def inclusion(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the path of the leaf at ``index`` in the tree over these leaf hashes."""
    path: list[bytes] = []
    start, end = 0, len(leaves)
    while end - start > 1:
        split = start + (1 << ((end - start - 1).bit_length() - 1))
        if index < split:
            path.append(root_of(leaves[split:end]))
            end = split
        else:
            path.append(root_of(leaves[start:split]))
            start = split
    return tuple(reversed(path))


def _root_by(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root that ``path`` leads to; ``None`` if it has not the length it must have."""
    place, last, root = index, size - 1, leaf
    for sibling in path:
        if not last:
            return None
        if place & 1 or place == last:
            root = node_hash(sibling, root)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        place, last = place >> 1, last >> 1
    return None if last else root


def format_proof(proof: Proof) -> bytes:
    """Return the proof as a ``.tlog-proof`` file."""
    extra = proof.entry if proof.record is None else proof.entry + b"\n" + proof.record
    lines = [
        _HEADER,
        f"extra {base64.b64encode(extra).decode()}",
        f"index {proof.index}",
        *[base64.b64encode(one).decode() for one in proof.path],
    ]
    return "\n".join([*lines, "", ""]).encode() + proof.checkpoint


def parse_proof(data: bytes) -> Proof:
    """Return what the file says, unchecked; raises LogError (``proof_malformed``)."""
    try:
        if len(data) > MAX_PROOF_BYTES:
            raise ValueError
        head, _, note = data.partition(b"\n\n")
        first, extra, index, *path = head.decode("ascii").split("\n")
        number = index.removeprefix("index ")
        if first != _HEADER or f"index {int(number)}" != index or len(path) > MAX_PATH:
            raise ValueError
        if not extra.startswith("extra "):
            raise ValueError
        entry, _, record = base64.b64decode(extra[6:], validate=True).partition(b"\n")
        return Proof(
            index=int(number),
            path=tuple(base64.b64decode(one, validate=True) for one in path),
            checkpoint=note,
            entry=entry,
            record=record or None,
        )
    except (ValueError, binascii.Error):
        raise LogError("this is no proof of ours", code="proof_malformed") from None


def check_proof(proof: Proof, key: str) -> Proven:
    """Return what ``proof`` shows, if the log with this key signed the head that it leads to.

    Raises:
        LogError: ``not_included``, ``record_altered``, ``proof_malformed``, or what is wrong with
            the checkpoint.
    """
    head = open_checkpoint(proof.checkpoint, key)
    leaf = leaf_hash(proof.entry)
    is_path = 0 <= proof.index < head.size and all(len(one) == len(leaf) for one in proof.path)
    if not is_path or _root_by(leaf, proof.index, head.size, proof.path) != head.root:
        raise LogError("the log's head does not contain this entry", code="not_included")
    try:
        entry = _decode_entry(proof.entry)
        record = None if proof.record is None else decode_record(proof.record)
    except msgspec.MsgspecError:
        raise LogError("entry or record cannot be read", code="proof_malformed") from None
    if proof.record is not None and sha256(proof.record).hexdigest() != entry.record:
        raise LogError("the record is not the one that the log seals", code="record_altered")
    return Proven(entry, head.size, record)
