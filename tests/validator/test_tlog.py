"""The Merkle tree, its tiles and heads, against published vectors and its own definition."""

import base64
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from support.recorded import a_record
from waypost.shared.records import encode_record
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.receipts.log import ReceiptLog, read_entries
from waypost.validator.receipts.tlog import (
    Checkpoint,
    LogError,
    Tree,
    bundle,
    checkpoint,
    leaf_hash,
    open_checkpoint,
    root_of,
    tile_path,
    unbundle,
    vkey,
)

# The reference leaves of RFC 6962's own test suite (certificate-transparency), and their roots.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("size", list(ROOTS))
def test_roots_are_those_of_rfc_6962(size: int) -> None:
    assert root_of([leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size]


def _by_definition(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 §2.1, as it is written."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    pair = _by_definition(leaves[:split]) + _by_definition(leaves[split:])
    return sha256(b"\x01" + pair).digest()


@given(st.integers(1, 1_100))
def test_a_tree_that_grows_has_the_root_that_its_leaves_define(size: int) -> None:
    leaves = [leaf_hash(str(number).encode()) for number in range(size)]
    tree = Tree()
    for leaf in leaves:
        tree.add(leaf)
    assert tree.root() == root_of(leaves) == _by_definition(leaves)


def test_the_key_is_written_as_go_writes_it() -> None:
    # The example of golang.org/x/mod/sumdb/note.
    example = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    public = base64.b64decode(example.split("+", 2)[2])[1:]
    assert vkey("PeterNeumann", public) == example


@pytest.mark.parametrize(
    ("level", "index", "width", "path"),
    [
        (0, 0, 256, "tile/0/000"),
        (1, 1_234_067, 256, "tile/1/x001/x234/067"),
        ("entries", 5, 7, "tile/entries/005.p/7"),
    ],
)
def test_tiles_lie_where_tlog_tiles_says(
    level: int | str, index: int, width: int, path: str
) -> None:
    assert tile_path(level, index, width=width) == path


@given(st.lists(st.binary(max_size=300), max_size=20), st.binary(max_size=50))
def test_bundles_come_back_and_rubbish_is_refused(entries: list[bytes], rest: bytes) -> None:
    assert unbundle(bundle(entries)) == entries
    with suppress(LogError):
        assert bundle(unbundle(rest)) == rest


def test_a_head_is_believed_by_its_signature_alone() -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    key, head = vkey("log.example", public), Checkpoint(7, b"r" * 32)
    note = checkpoint("log.example", head, public=public, sign=private.sign)
    assert open_checkpoint(note, key) == head
    other = vkey("log.example", Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    for forged, by, code in (
        (note.replace(b"\n7\n", b"\n8\n"), key, "checkpoint_forged"),
        (note, other, "checkpoint_forged"),
        (note.replace(b"log.example", b"log.exampel"), key, "checkpoint_forged"),
        (note.replace(b"\n7\n", b"\n07\n"), key, "checkpoint_malformed"),
        (note[:30], key, "checkpoint_malformed"),
        (b"\xff", key, "checkpoint_malformed"),
        (note, "log.example+00000000+" + key.split("+", 2)[2], "key_malformed"),
    ):
        with pytest.raises(LogError) as caught:
            open_checkpoint(forged, by)
        assert caught.value.code == code


def test_a_log_of_many_batches_is_tiled_as_one(tmp_path: Path) -> None:
    keys = ReceiptKeys(b"s" * 32, origin="log.example")
    sizes = (1, 100, 155, 1, 300)  # across the edges of tiles, and onto one
    start = 0
    for place, size in enumerate(sizes):
        # Two processes, in turn.
        log = ReceiptLog(tmp_path, keys)
        records = [a_record(number) for number in range(start, start + size)]
        log.append([(record, encode_record(record)) for record in records])
        start += size
        head = open_checkpoint((tmp_path / "checkpoint").read_bytes(), keys.public.log)
        entries = list(read_entries(lambda path: (tmp_path / path).read_bytes(), head.size))
        assert head.size == len(entries) == sum(sizes[: place + 1])
        assert head.root == root_of([leaf_hash(entry) for entry in entries])
    tiles = {
        str(path.relative_to(tmp_path)) for path in tmp_path.glob("tile/**/*") if path.is_file()
    }
    assert tiles == {
        "tile/0/000", "tile/0/001", "tile/0/002.p/45", "tile/1/000.p/2",
        "tile/entries/000", "tile/entries/001", "tile/entries/002.p/45",
    }  # fmt: skip
    leaves = [leaf_hash(entry) for entry in entries]
    assert (tmp_path / "tile/0/001").read_bytes() == b"".join(leaves[256:512])
