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
from msgspec import structs

from support.recorded import a_record
from waypost.shared.records import encode_record
from waypost.validator.receipts.keys import ReceiptKeys
from waypost.validator.receipts.log import ReceiptLog, read_entries
from waypost.validator.receipts.proof import (
    Proof,
    check_proof,
    format_proof,
    inclusion,
    parse_proof,
)
from waypost.validator.receipts.tlog import (
    Checkpoint,
    LogError,
    Tree,
    bundle,
    checkpoint,
    cosigned_at,
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


# ── proofs ─────────────────────────────────────────────────────────────────────────────────────

# Audit paths of RFC 6962's own test suite: (leaf, size) → hashes.
PATHS = {
    (0, 1): [],
    (0, 8): ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
             "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"],
    (5, 8): ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
             "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
             "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
             "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
             "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"],
}  # fmt: skip


@pytest.mark.parametrize(("leaf", "size"), list(PATHS))
def test_paths_are_those_of_rfc_6962(leaf: int, size: int) -> None:
    leaves = [leaf_hash(one) for one in LEAVES[:size]]
    assert [one.hex() for one in inclusion(leaves, leaf)] == PATHS[leaf, size]


SIGNER = Ed25519PrivateKey.generate()
PUBLIC = SIGNER.public_key().public_bytes_raw()
KEY = vkey("log.example", PUBLIC)


def _proof(size: int, index: int) -> Proof:
    entries = [b'{"id":"%d","at_ms":1,"record":"","prev":""}' % number for number in range(size)]
    leaves = [leaf_hash(entry) for entry in entries]
    head = Checkpoint(size, root_of(leaves))
    note = checkpoint("log.example", head, public=PUBLIC, sign=SIGNER.sign)
    path = inclusion(leaves, index)
    return Proof(index=index, path=path, checkpoint=note, entry=entries[index])


@given(st.data(), st.integers(1, 300))
def test_an_entry_is_proved_at_its_own_place_by_its_own_path_alone(
    data: st.DataObject, size: int
) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = _proof(size, index)
    proven = check_proof(parse_proof(format_proof(proof)), KEY)
    assert (proven.entry.id, proven.size) == (str(index), size)

    other = data.draw(st.integers(0, size + 1).filter(lambda place: place != index))
    forged = [
        structs.replace(proof, index=other),
        structs.replace(proof, entry=proof.entry.replace(b'"at_ms":1', b'"at_ms":2')),
        structs.replace(proof, path=(*proof.path, b"h" * 32)),
        structs.replace(proof, index=-1),
    ]
    if proof.path:
        place = data.draw(st.integers(0, len(proof.path) - 1))
        path = list(proof.path)
        path[place] = bytes(32)
        forged += [
            structs.replace(proof, path=tuple(path)),
            structs.replace(proof, path=proof.path[1:]),
            structs.replace(proof, path=(proof.path[0] + b"x", *proof.path[1:])),
        ]
    for one in forged:
        with pytest.raises(LogError) as caught:
            check_proof(one, KEY)
        assert caught.value.code == "not_included"


@given(st.binary(max_size=200))
def test_rubbish_is_no_proof(rubbish: bytes) -> None:
    with pytest.raises(LogError, match="no proof"):
        parse_proof(rubbish)


def test_a_witness_is_believed_by_its_own_cosignature_alone() -> None:
    witness = Ed25519PrivateKey.generate()
    public = witness.public_key().public_bytes_raw()
    key_id = sha256(b"witness.example/w1\n\x04" + public).digest()[:4]
    key = f"witness.example/w1+{key_id.hex()}+{base64.b64encode(bytes([4]) + public).decode()}"
    note = _proof(5, 0).checkpoint
    text = note.split(b"\n\n")[0] + b"\n"
    at = 1_679_315_147
    raw = at.to_bytes(8, "big") + witness.sign(b"cosignature/v1\ntime %d\n" % at + text)
    line = "— witness.example/w1 ".encode() + base64.b64encode(key_id + raw) + b"\n"
    assert cosigned_at(note + line, key) == at
    assert open_checkpoint(note + line, KEY).size == 5
    assert cosigned_at(note, key) is None
    assert cosigned_at(_proof(6, 0).checkpoint + line, key) is None  # another head's
    later = (at + 1).to_bytes(8, "big") + raw[8:]
    forged = line.replace(base64.b64encode(key_id + raw), base64.b64encode(key_id + later))
    assert cosigned_at(note + forged, key) is None
    with pytest.raises(LogError, match="witness"):
        cosigned_at(note, KEY)  # a log's key is none of a witness


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
