"""What is missing is not a yes: each thing that is verified, absent instead of wrong.

A well-known system once took bundles that had been stripped of their signatures, because a check
that was not configured did not fail. Here everything that a check rests upon is taken away, one at
a time, as far as a thief of the online keys can: those sign anew, all others' signatures go.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from support.publisher import Publisher
from waypost.client import Waypost
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper, open_bundle
from waypost.shared.trust.bundle import pack_bundle, unpack_bundle

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


def refusal(publisher: Publisher, files: dict[str, str], *, root: bytes | None = None) -> str:
    """Return the code with which a client refuses, which then still has what it had."""
    keeper = ManifestKeeper(
        url=None, channel="prod", root=publisher.root if root is None else root, cache=None
    )
    with pytest.raises(TrustError) as caught:
        keeper.accept(pack_bundle(files), etag=None)
    assert keeper.current is None
    return caught.value.code


def path_of(files: dict[str, str], role: str) -> str:
    """Return the path of the newest metadata of ``role``."""
    return [path for path in files if path.endswith((f".{role}.json", f"/{role}.json"))][-1]


ABOVE = {"timestamp": (), "snapshot": ("timestamp",), "targets": ("snapshot", "timestamp")}


def resigned(publisher: Publisher, files: dict[str, str], role: str, edit: Edit) -> dict[str, str]:
    """Return ``files`` with ``role`` edited and signed with its true key.

    The roles above no longer say its hash, as TUF allows, and are signed anew too.
    """
    changed = dict(files)
    below = ""
    for name in (role, *ABOVE.get(role, ABOVE["targets"])):
        path = path_of(changed, name)
        document = json.loads(changed[path])
        if name == role:
            edit(document["signed"])
        else:
            version = document["signed"]["meta"][f"{below}.json"]["version"]
            document["signed"]["meta"][f"{below}.json"] = {"version": version}
        document["signatures"] = sign(publisher, name, document["signed"])
        changed[path] = json.dumps(document)
        below = name
    return changed


def sign(publisher: Publisher, role: str, signed: dict[str, Any]) -> list[dict[str, str]]:
    data = str(encode_canonical(signed)).encode()
    return [signer.sign(data).to_dict() for signer in publisher.signers[role]]


def test_the_helper_above_changes_nothing_else(publisher: Publisher) -> None:
    files = unpack_bundle(publisher.publish())
    for role in ("targets", "hints", "snapshot", "timestamp"):
        same = resigned(publisher, files, role, lambda _: None)
        assert open_bundle(pack_bundle(same), root=publisher.root, channel="prod").policy.version


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "hints"])
@pytest.mark.parametrize("stripped", [[], None, [{}]])
def test_a_role_without_signatures(publisher: Publisher, role: str, stripped: object) -> None:
    files = unpack_bundle(publisher.publish())
    files = resigned(publisher, files, role, lambda _: None)
    path = path_of(files, role)
    document = json.loads(files[path])
    document["signatures"] = stripped
    if stripped is None:
        del document["signatures"]
    files[path] = json.dumps(document)
    assert refusal(publisher, files) in ("signature", "format")


FIELDS = ["_type", "version", "spec_version", "expires"]


@pytest.mark.parametrize(
    ("role", "field"),
    [
        *((role, field) for role in ("timestamp", "snapshot", "targets") for field in FIELDS),
        ("timestamp", "meta"),
        ("snapshot", "meta"),
        ("targets", "targets"),
    ],
)
def test_metadata_without_a_field_that_is_checked(
    publisher: Publisher, role: str, field: str
) -> None:
    files = unpack_bundle(publisher.publish())
    bare = resigned(publisher, files, role, lambda signed: signed.pop(field))
    assert refusal(publisher, bare) == "format"


@pytest.mark.parametrize("field", [*FIELDS, "keys", "roles", "consistent_snapshot"])
def test_a_root_without_a_field_that_is_checked(publisher: Publisher, field: str) -> None:
    publisher.publish()
    document = json.loads(publisher.root)
    del document["signed"][field]
    document["signatures"] = sign(publisher, "root", document["signed"])
    root = json.dumps(document).encode()
    files = unpack_bundle(publisher.bundle())
    if field == "consistent_snapshot":
        # Optional in TUF; without it files go by other names, which no bundle has.
        assert refusal(publisher, files, root=root) == "unavailable"
    else:
        assert refusal(publisher, files, root=root) == "format"


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("change", ["role", "threshold", "zero", "keyids", "keys"])
def test_a_root_that_asks_nothing_of_a_role(publisher: Publisher, role: str, change: str) -> None:
    publisher.publish()
    document = json.loads(publisher.root)
    signed = document["signed"]
    match change:
        case "role":
            del signed["roles"][role]
        case "threshold":
            del signed["roles"][role]["threshold"]
        case "zero":
            signed["roles"][role]["threshold"] = 0
        case "keyids":
            signed["roles"][role]["keyids"] = []
        case _:
            for keyid in signed["roles"][role]["keyids"]:
                del signed["keys"][keyid]
    document["signatures"] = sign(publisher, "root", signed)
    files = unpack_bundle(publisher.bundle())
    code = refusal(publisher, files, root=json.dumps(document).encode())
    assert code in ("signature", "format")


def test_targets_whose_hashes_are_absent(publisher: Publisher) -> None:
    files = unpack_bundle(publisher.publish())

    def bare(signed: dict[str, Any]) -> None:
        for target in signed["targets"].values():
            target["hashes"] = {}

    assert refusal(publisher, resigned(publisher, files, "targets", bare)) == "format"


@pytest.mark.parametrize("role", ["targets", "hints"])
def test_a_snapshot_that_does_not_name_a_role(publisher: Publisher, role: str) -> None:
    files = unpack_bundle(publisher.publish())

    def bare(signed: dict[str, Any]) -> None:
        del signed["meta"][f"{role}.json"]

    assert refusal(publisher, resigned(publisher, files, "snapshot", bare)) in (
        "format",
        "integrity",
        "unavailable",
    )


def test_a_delegation_without_keys(publisher: Publisher) -> None:
    mine = CryptoSigner.generate_ed25519()
    files = unpack_bundle(publisher.publish())

    def bare(signed: dict[str, Any]) -> None:
        (role,) = [role for role in signed["delegations"]["roles"] if role["name"] == "hints"]
        role["keyids"] = []

    unpinned = resigned(publisher, files, "hints", lambda _: None)
    changed = resigned(publisher, unpinned, "targets", bare)
    hints = Metadata[Any].from_bytes(changed[path_of(changed, "hints")].encode())
    hints.sign(mine)
    changed[path_of(changed, "hints")] = hints.to_bytes().decode()
    assert refusal(publisher, changed) == "signature"


@pytest.mark.parametrize("field", ["channel", "version", "projection", "tiers", "models", "routes"])
def test_a_policy_without_a_field_that_is_checked(publisher: Publisher, field: str) -> None:
    files = unpack_bundle(publisher.publish())
    (path,) = [path for path in files if "/policy/" in path]
    document = json.loads(files.pop(path))
    del document[field]
    data = json.dumps(document)
    digest = hashlib.sha256(data.encode()).hexdigest()
    files[f"targets/policy/{digest}.prod.json"] = data

    def pin(signed: dict[str, Any]) -> None:
        info = signed["targets"]["policy/prod.json"]
        info.update(length=len(data.encode()), hashes={"sha256": digest})

    assert refusal(publisher, resigned(publisher, files, "targets", pin)) == "semantic"


def test_a_client_without_a_root_is_not_made(publisher: Publisher) -> None:
    with pytest.raises(TypeError, match="root"):
        Waypost(manifest_url="https://edge.example/v1/prod/bundle.json", token="t")


@pytest.mark.parametrize("root", [b"", b"{}", b"null"])
def test_an_empty_root_trusts_nothing(publisher: Publisher, root: bytes) -> None:
    assert refusal(publisher, unpack_bundle(publisher.publish()), root=root) == "format"


def test_a_bundle_of_nothing(publisher: Publisher) -> None:
    publisher.publish()
    assert refusal(publisher, {}) == "unavailable"


def test_without_a_store_the_floor_holds_for_as_long_as_the_process(publisher: Publisher) -> None:
    old, new = publisher.publish(), publisher.publish()
    keeper = ManifestKeeper(url=None, channel="prod", root=publisher.root, cache=None)
    keeper.accept(new, etag=None)
    with pytest.raises(TrustError) as caught:
        keeper.accept(old, etag=None)
    assert caught.value.code == "older_than_seen"
