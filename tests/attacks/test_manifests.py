"""Attacks on manifests, one test each. Every one is refused, and the last good one stays.

The attacker controls the network and the CDN, and in some tests a stolen key. What each code
means is told in ``waypost.shared.errors``.
"""

import json
import os
import stat
import time
from collections.abc import Callable

import httpx
import msgspec
import pytest
from securesystemslib.signer import CryptoSigner, Signature
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import Updater

from support.origin import Reply, serving
from support.publisher import Publisher
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Hint, Hints, Issuer, IssuerKey
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper, open_bundle, verifier
from waypost.shared.trust.bundle import MAX_BUNDLE_BYTES, pack_bundle, unpack_bundle
from waypost.shared.trust.verifier import verify

NOW = int(time.time())
LONG = {"root": 9_000, "targets": 9_000, "full": 9_000, "hints": 9_000}
LONG |= {"snapshot": 9_000, "timestamp": 9_000}


class Victim:
    """A client that has accepted version 1, and must not be moved by what is not authorised."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.keeper = ManifestKeeper(url=None, channel="prod", root=publisher.root, cache=None)
        self.keeper.accept(publisher.publish(), etag=None)

    def refuses(self, bundle: bytes) -> str:
        """Return the code of the refusal; checks that the last good manifest stays in use."""
        good = self.keeper.current
        with pytest.raises(TrustError) as caught:
            self.keeper.accept(bundle, etag=None)
        assert self.keeper.current is good
        assert self.keeper.is_fresh(NOW)
        return caught.value.code


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def victim(publisher: Publisher) -> Victim:
    return Victim(publisher)


def edited(bundle: bytes, fragment: str, edit: Callable[[str], str]) -> bytes:
    """Return the bundle with the one file whose path has ``fragment`` edited."""
    files = unpack_bundle(bundle)
    (path,) = [path for path in files if fragment in path]
    changed = edit(files[path])
    assert changed != files[path]
    return pack_bundle({**files, path: changed})


def without(bundle: bytes, fragment: str) -> bytes:
    files = unpack_bundle(bundle)
    kept = {path: text for path, text in files.items() if fragment not in path}
    assert len(kept) < len(files)
    return pack_bundle(kept)


# ── arbitrary content ──────────────────────────────────────────────────────────────────────────


def test_a_policy_changed_on_the_way(publisher: Publisher, victim: Victim) -> None:
    bundle = publisher.publish()
    cheap = edited(bundle, "targets/policy/", lambda text: text.replace("acme-small", "evil-small"))
    longer = edited(bundle, "targets/policy/", lambda text: text + " ")
    assert victim.refuses(cheap) == "integrity"
    assert victim.refuses(longer) == "integrity"


def test_issuers_changed_on_the_way(publisher: Publisher, victim: Victim) -> None:
    bundle = publisher.publish()
    changed = edited(bundle, "targets/issuers/", lambda text: text.replace("null", "true") + " ")
    assert victim.refuses(changed) == "integrity"


@pytest.mark.parametrize("role", ["snapshot", "targets", "hints"])
def test_metadata_changed_on_the_way(publisher: Publisher, victim: Victim, role: str) -> None:
    changed = edited(publisher.publish(), f".{role}.json", lambda text: text.replace(":", ": ", 1))
    assert victim.refuses(changed) == "integrity"


def test_a_timestamp_changed_on_the_way(publisher: Publisher, victim: Victim) -> None:
    def later(text: str) -> str:
        document = json.loads(text)
        document["signed"]["expires"] = "2100-01-01T00:00:00Z"
        return json.dumps(document)

    assert victim.refuses(edited(publisher.publish(), "timestamp", later)) == "signature"


def test_one_bit_of_a_signature_flipped(publisher: Publisher, victim: Victim) -> None:
    def flip(text: str) -> str:
        document = json.loads(text)
        signature = document["signatures"][0]["sig"]
        document["signatures"][0]["sig"] = f"{int(signature[0], 16) ^ 1:x}{signature[1:]}"
        return json.dumps(document)

    assert victim.refuses(edited(publisher.publish(), "timestamp", flip)) == "signature"


def test_a_whole_repository_of_a_stranger(victim: Victim) -> None:
    assert victim.refuses(Publisher().publish(version=9)) == "signature"


def test_a_key_that_sits_in_the_document_it_signs(publisher: Publisher, victim: Victim) -> None:
    mine = CryptoSigner.generate_ed25519()
    repository = publisher.repository(signers={**publisher.signers, "timestamp": [mine]})
    repository.do_timestamp(force=True)
    publisher.save(repository)

    def with_key(text: str) -> str:
        document = json.loads(text)
        document["signed"]["keys"] = {mine.public_key.keyid: mine.public_key.to_dict()}
        document["keys"] = document["signed"]["keys"]
        return json.dumps(document)

    assert victim.refuses(publisher.bundle()) == "signature"
    assert victim.refuses(edited(publisher.bundle(), "timestamp", with_key)) == "signature"


# ── signatures that are absent, too few, or of the wrong role ──────────────────────────────────


@pytest.mark.parametrize("signatures", ["[]", '[{"keyid":"","sig":""}]', "null"])
def test_a_timestamp_stripped_of_its_signatures(
    publisher: Publisher, victim: Victim, signatures: str
) -> None:
    def strip(text: str) -> str:
        return json.dumps({**json.loads(text), "signatures": json.loads(signatures)})

    stripped = edited(publisher.publish(), "timestamp", strip)
    assert victim.refuses(stripped) in ("signature", "format")


def test_a_document_without_a_signatures_field(publisher: Publisher, victim: Victim) -> None:
    bare = edited(
        publisher.publish(),
        "timestamp",
        lambda text: json.dumps({"signed": json.loads(text)["signed"]}),
    )
    assert victim.refuses(bare) == "format"


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_an_unsigned_role_under_stolen_online_keys(
    publisher: Publisher, victim: Victim, role: str
) -> None:
    nobody = {**publisher.signers, role: [CryptoSigner.generate_ed25519()]}
    repository = publisher.repository(signers=nobody)
    with repository.edit(role):
        pass
    if role == "targets":
        repository.do_snapshot()
    repository.do_timestamp()
    publisher.save(repository)
    assert victim.refuses(publisher.bundle()) == "signature"


def test_stolen_online_keys_cannot_change_the_policy(publisher: Publisher, victim: Victim) -> None:
    online = ("hints", "snapshot", "timestamp")
    thief = {role: publisher.signers[role] for role in online}
    thief["targets"] = [publisher.signers["hints"][0]]
    repository = publisher.repository(signers=thief)
    free = a_policy(models=(a_model("small", cents_in=0),), routes=a_policy().routes[2:])
    repository.put(
        "prod",
        policy=free,
        full=free,
        issuers=publisher.issuers,
        hints=Hints(channel="prod", version=2, issued_at=0),
        hints_keys=[publisher.signers["hints"][0].public_key],
    )
    publisher.save(repository)
    assert victim.refuses(publisher.bundle()) == "signature"


def with_target(publisher: Publisher, role: str, path: str, data: bytes) -> bytes:
    """Return a bundle in which ``role`` signs ``data`` as the target ``path``."""
    repository = publisher.repository()
    info = TargetFile.from_data(path, data, ["sha256"])
    with repository.edit_targets(role) as targets:
        targets.targets[path] = info
    repository.do_snapshot()
    repository.do_timestamp()
    publisher.save(repository)
    path = f"targets/{info.get_prefixed_paths()[0]}"
    publisher.files[path] = data
    return pack_bundle({**unpack_bundle(publisher.bundle()), path: data.decode()})


def test_a_stolen_hints_key_cannot_publish_a_policy(publisher: Publisher, victim: Victim) -> None:
    publisher.publish()
    mine = msgspec.json.encode(a_policy(version=99, projection="client"))
    bundle = with_target(publisher, "hints", "policy/prod.json", mine)
    assert victim.keeper.accept(bundle, etag=None).policy.version == 2


def test_a_stolen_hints_key_can_neither_add_a_model_nor_promise_wonders(
    publisher: Publisher, victim: Victim
) -> None:
    hints = Hints(
        channel="prod",
        version=2,
        issued_at=0,
        models=(Hint(model="mine", ttft_ms=1), Hint(model="large", ttft_ms=1)),
    )
    trusted = victim.keeper.accept(publisher.publish(hints=hints), etag=None)
    assert "mine" not in trusted.compiled.models
    assert trusted.compiled.ttft_ms["large"] >= 800 // 16


def test_a_timestamp_signed_by_the_snapshot_s_key(publisher: Publisher, victim: Victim) -> None:
    wrong = {**publisher.signers, "timestamp": publisher.signers["snapshot"]}
    repository = publisher.repository(signers=wrong)
    repository.do_timestamp(force=True)
    publisher.save(repository)
    assert victim.refuses(publisher.bundle()) == "signature"


def test_a_snapshot_served_as_the_timestamp(publisher: Publisher, victim: Victim) -> None:
    files = unpack_bundle(publisher.publish())
    swapped = {**files, "metadata/timestamp.json": files["metadata/2.snapshot.json"]}
    assert victim.refuses(pack_bundle(swapped)) == "format"


# ── the root ───────────────────────────────────────────────────────────────────────────────────


def new_root(publisher: Publisher, signers: list[CryptoSigner]) -> bytes:
    """Return a bundle whose root v2 hands every role to ``signers[0]``, signed by ``signers``."""
    repository = publisher.repository(signers={**publisher.signers, "root": signers})
    with repository.edit_root() as root:
        root.add_key(signers[0].public_key, "root")
        root.add_key(signers[0].public_key, "timestamp")
    publisher.save(repository)
    return publisher.bundle()


def test_a_root_signed_only_by_the_new_keys(publisher: Publisher, victim: Victim) -> None:
    mine = [CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()]
    assert victim.refuses(new_root(publisher, mine)) == "signature"


def test_a_root_signed_by_one_holder_of_two(publisher: Publisher, victim: Victim) -> None:
    assert victim.refuses(new_root(publisher, publisher.signers["root"][:1])) == "signature"


def test_a_threshold_met_by_one_key_twice(publisher: Publisher, victim: Victim) -> None:
    bundle = new_root(publisher, publisher.signers["root"][:1])

    def twice(text: str) -> str:
        document = json.loads(text)
        document["signatures"] *= 2
        return json.dumps(document)

    assert victim.refuses(edited(bundle, "2.root", twice)) == "format"


def test_one_key_under_two_names_does_not_count_twice(publisher: Publisher, victim: Victim) -> None:
    bundle = new_root(publisher, publisher.signers["root"][:1])

    def alias(text: str) -> str:
        document = json.loads(text)
        (signature,) = document["signatures"]
        other = document["signed"]["roles"]["root"]["keyids"][1]
        document["signatures"].append({**signature, "keyid": other})
        return json.dumps(document)

    assert victim.refuses(edited(bundle, "2.root", alias)) == "signature"


def test_a_key_under_the_name_of_another(publisher: Publisher, victim: Victim) -> None:
    # The new root says that the holders' key ids are the attacker's keys, and is signed by those.
    mine = [CryptoSigner.generate_ed25519() for _ in range(2)]
    bundle = new_root(publisher, mine)

    def collide(text: str) -> str:
        document = json.loads(text)
        signed, held = document["signed"], publisher.signers["root"][:2]
        for owner, thief in zip(held, mine, strict=True):
            signed["keys"][owner.public_key.keyid] = thief.public_key.to_dict()
        root = Root.from_dict(json.loads(json.dumps(signed)))
        forged = Metadata[Root](root)
        for owner, thief in zip(held, mine, strict=True):
            signature = thief.sign(forged.signed_bytes)
            forged.signatures[owner.public_key.keyid] = Signature(
                owner.public_key.keyid, signature.signature
            )
        return forged.to_bytes().decode()

    assert victim.refuses(edited(bundle, "2.root", collide)) == "signature"


def test_a_root_rolled_back_after_a_rotation(publisher: Publisher, victim: Victim) -> None:
    before = publisher.bundle()
    publisher.replace_key("timestamp")
    victim.keeper.accept(publisher.publish(), etag=None)
    # Without root v2 the old key would hold again; who has seen it does not forget it.
    assert victim.refuses(before) == "signature"
    assert victim.refuses(without(publisher.bundle(), "timestamp")) == "unavailable"


def test_a_revoked_key_signs_on(publisher: Publisher, victim: Victim) -> None:
    stolen = publisher.signers["timestamp"]
    publisher.replace_key("timestamp")
    victim.keeper.accept(publisher.publish(), etag=None)
    repository = publisher.repository(signers={**publisher.signers, "timestamp": stolen})
    repository.do_timestamp(force=True)
    publisher.save(repository)
    assert victim.refuses(publisher.bundle()) == "signature"


def test_an_old_root_served_as_the_new_one(publisher: Publisher, victim: Victim) -> None:
    files = unpack_bundle(publisher.publish())
    again = {**files, "metadata/2.root.json": files["metadata/1.root.json"]}
    assert victim.refuses(pack_bundle(again)) == "rollback"


def test_a_gap_in_the_chain_of_roots(publisher: Publisher, victim: Victim) -> None:
    publisher.replace_key("timestamp")
    publisher.replace_key("snapshot")
    publisher.publish()
    # Without v2 nobody can tell that v3 is the publisher's, nor what v3's keys have signed.
    assert victim.refuses(without(publisher.bundle(), "/2.root.")) == "signature"


def test_a_bundle_cannot_bring_the_root_that_it_is_verified_by(publisher: Publisher) -> None:
    mine = Publisher()
    files = unpack_bundle(mine.publish())
    with pytest.raises(TrustError) as caught:
        open_bundle(pack_bundle(files), root=publisher.root, channel="prod")
    assert caught.value.code == "signature"


@pytest.mark.parametrize("root", [b"", b"{}", b"null", b"\xff", b"{" * 10_000])
def test_a_client_without_a_root_trusts_nothing(publisher: Publisher, root: bytes) -> None:
    with pytest.raises(TrustError) as caught:
        open_bundle(publisher.publish(), root=root, channel="prod")
    assert caught.value.code == "format"


def test_a_trust_root_stripped_of_its_signatures(publisher: Publisher) -> None:
    root = json.dumps({**json.loads(publisher.root), "signatures": []}).encode()
    with pytest.raises(TrustError) as caught:
        open_bundle(publisher.publish(), root=root, channel="prod")
    assert caught.value.code == "signature"


# ── rollback, freeze, mix-and-match ────────────────────────────────────────────────────────────


def test_an_older_manifest_replayed(publisher: Publisher, victim: Victim) -> None:
    older = publisher.bundle()
    victim.keeper.accept(publisher.publish(), etag=None)
    assert victim.refuses(older) == "older_than_seen"


def test_an_older_policy_signed_anew_by_stolen_online_keys(
    publisher: Publisher, victim: Victim
) -> None:
    old = dict(publisher.files)
    victim.keeper.accept(publisher.publish(), etag=None)
    newest = publisher.repository().timestamp().version
    # The thief builds on the old state and outnumbers the versions seen.
    publisher.files = {path: data for path, data in old.items() if "/2." not in path}
    for _ in range(newest + 1):
        repository = publisher.repository()
        repository.do_snapshot(force=True)
        repository.do_timestamp()
        publisher.save(repository)
    assert victim.refuses(publisher.bundle()) == "rollback"


def test_a_snapshot_rolled_back_under_a_new_timestamp(publisher: Publisher, victim: Victim) -> None:
    old = dict(publisher.files)
    victim.keeper.accept(publisher.publish(), etag=None)
    publisher.files = old
    for _ in range(3):
        repository = publisher.repository()
        repository.do_timestamp(force=True)
        publisher.save(repository)
    assert victim.refuses(publisher.bundle()) == "rollback"


def test_documents_older_than_the_ones_accepted(publisher: Publisher, victim: Victim) -> None:
    victim.keeper.accept(publisher.publish(version=10), etag=None)
    assert victim.refuses(publisher.publish(version=9)) == "rollback"


def test_an_older_policy_brought_back_by_thieves_of_replaced_online_keys(
    publisher: Publisher, victim: Victim
) -> None:
    old = dict(publisher.files)
    victim.keeper.accept(publisher.publish(), etag=None)
    publisher.replace_key("snapshot")
    publisher.replace_key("timestamp")
    roots = {path: data for path, data in publisher.files.items() if path.endswith(".root.json")}
    # TUF forgets the versions of replaced keys, so the old targets are new again to it.
    publisher.files = {**old, **roots}
    repository = publisher.repository()
    repository.do_snapshot(force=True)
    repository.do_timestamp()
    publisher.save(repository)
    for _ in range(2):  # also once its own manifest is dropped, which the new root revokes
        with pytest.raises(TrustError) as caught:
            victim.keeper.accept(publisher.bundle(), etag=None)
        assert caught.value.code == "rollback"
        assert victim.keeper.current is None


def test_a_publisher_who_lost_everything_begins_anew_with_new_keys(
    publisher: Publisher, victim: Victim
) -> None:
    for _ in range(5):
        victim.keeper.accept(publisher.publish(), etag=None)
    publisher.files = {
        path: data for path, data in publisher.files.items() if path.endswith(".root.json")
    }
    publisher.version = 0
    for role in ("targets", "snapshot", "timestamp"):
        publisher.replace_key(role)
    assert victim.keeper.accept(publisher.publish(), etag=None).policy.version == 1


def test_hints_rolled_back_under_a_new_snapshot(publisher: Publisher, victim: Victim) -> None:
    old = dict(publisher.files)
    publisher.publish()
    victim.keeper.accept(publisher.publish(), etag=None)
    # The thief of the online keys lets the hints fall back, and leaves the rest as new as it is.
    newest = dict(publisher.files)
    publisher.files = {**newest, "metadata/1.hints.json": old["metadata/1.hints.json"]}
    repository = publisher.repository()
    with repository.edit_snapshot() as snapshot:
        snapshot.meta["hints.json"].version = 1
        snapshot.meta["hints.json"].hashes = None
        snapshot.meta["hints.json"].length = None
    repository.do_timestamp()
    publisher.save(repository)
    assert victim.refuses(publisher.bundle()) == "rollback"


def test_revocations_rolled_back(publisher: Publisher, victim: Victim) -> None:
    revoked = msgspec.structs.replace(publisher.issuers, revoked_jtis=("https://a stolen",))
    victim.keeper.accept(publisher.publish(issuers=revoked), etag=None)
    old = msgspec.json.encode(publisher.issuers)
    bundle = with_target(publisher, "targets", "issuers/prod.json", old)
    assert victim.refuses(bundle) == "rollback"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata(publisher: Publisher, victim: Victim, role: str) -> None:
    assert victim.refuses(publisher.publish(lifetime_s={**LONG, role: -1})) == "expired"


def test_an_expired_root(publisher: Publisher, victim: Victim) -> None:
    repository = publisher.repository(lifetime_s={**LONG, "root": -1})
    with repository.edit_root():
        pass
    publisher.save(repository)
    with pytest.raises(TrustError) as caught:
        victim.keeper.accept(publisher.publish(), etag=None)
    assert (caught.value.code, caught.value.role) == ("expired", "root")


def test_a_frozen_manifest_lapses(publisher: Publisher) -> None:
    # The attacker answers every refresh with the same, once valid bytes.
    bundle, clock = publisher.publish(), [float(NOW)]
    with serving(lambda _: Reply(bundle)) as origin, httpx.Client() as client:
        keeper = ManifestKeeper(
            url=origin.url,
            channel="prod",
            root=publisher.root,
            cache=None,
            now=lambda: clock[0],
        )
        keeper.refresh(client)
        assert keeper.is_fresh(clock[0])
        clock[0] += 7 * 3_600
        with pytest.raises(TrustError) as caught:
            keeper.refresh(client)
    assert caught.value.code == "expired"
    assert not keeper.is_fresh(clock[0])


def test_a_new_snapshot_with_the_old_targets(publisher: Publisher, victim: Victim) -> None:
    old = unpack_bundle(publisher.bundle())
    new = unpack_bundle(publisher.publish())
    mixed = {**new, "metadata/2.targets.json": old["metadata/1.targets.json"]}
    assert victim.refuses(pack_bundle(mixed)) == "integrity"


def test_a_timestamp_of_one_publication_with_the_files_of_another(
    publisher: Publisher, victim: Victim
) -> None:
    second = unpack_bundle(publisher.publish())
    third = unpack_bundle(publisher.publish())
    key = "metadata/timestamp.json"
    assert victim.refuses(pack_bundle({**second, key: third[key]})) == "unavailable"


@pytest.mark.parametrize(
    "fragment", ["timestamp", "2.snapshot", "2.targets", "targets/policy/", "targets/issuers/"]
)
def test_a_file_withheld(publisher: Publisher, victim: Victim, fragment: str) -> None:
    assert victim.refuses(without(publisher.publish(), fragment)) == "unavailable"


def test_hints_withheld_cost_the_hints_alone(publisher: Publisher, victim: Victim) -> None:
    trusted = victim.keeper.accept(without(publisher.publish(), "hints"), etag=None)
    assert (trusted.policy.version, trusted.hints) == (2, None)


def test_versions_driven_up_are_recovered_from_by_new_keys(
    publisher: Publisher, victim: Victim
) -> None:
    before = dict(publisher.files)
    low = publisher.repository().timestamp().version
    for _ in range(20):
        repository = publisher.repository()
        repository.do_snapshot(force=True)
        repository.do_timestamp()
        publisher.save(repository)
    victim.keeper.accept(publisher.bundle(), etag=None)
    # The publisher goes back to what it knows, and replaces the keys that were misused.
    publisher.files = before
    publisher.replace_key("snapshot")
    publisher.replace_key("timestamp")
    trusted = victim.keeper.accept(publisher.publish(), etag=None)
    assert trusted.policy.version == 2
    assert low < trusted.versions["timestamp"] < 20


# ── the wrong document ─────────────────────────────────────────────────────────────────────────


def test_a_manifest_of_another_channel(publisher: Publisher, victim: Victim) -> None:
    assert victim.refuses(publisher.publish(policy=a_policy(channel="canary"))) == "semantic"


def test_issuers_signed_as_the_policy(publisher: Publisher, victim: Victim) -> None:
    publisher.publish()
    data = msgspec.json.encode(publisher.issuers)
    assert victim.refuses(with_target(publisher, "targets", "policy/prod.json", data)) == "semantic"


def test_a_policy_that_must_be_understood_and_is_not(publisher: Publisher, victim: Victim) -> None:
    newer = a_policy(must_understand=("quantum_routing",))
    assert victim.refuses(publisher.publish(policy=newer)) == "semantic"


@pytest.mark.parametrize(
    "name",
    [
        "sm\u0430ll",
        "small\u200b",
        "\u202ellams",
        "\uff53mall",
        "sma\u0301ll",
        "small\n",
        "small\x00",
        "",
    ],
    ids=["cyrillic", "zero-width", "reversed", "full-width", "combining", "line", "nul", "empty"],
)
def test_a_name_that_looks_like_another(publisher: Publisher, victim: Victim, name: str) -> None:
    models = (*a_policy().models, a_model(name))
    assert victim.refuses(publisher.publish(policy=a_policy(models=models))) == "semantic"


@pytest.mark.parametrize("x", ["A" * 42 + "B", "A" * 42 + "=", "A" * 42, "A" * 41 + "+A", "A" * 44])
def test_a_token_key_in_base64_that_is_not_canonical(
    publisher: Publisher, victim: Victim, x: str
) -> None:
    key = IssuerKey(kid="app-1", alg="EdDSA", x=x)
    issuers = msgspec.structs.replace(
        publisher.issuers, issuers=(Issuer(iss="https://a", keys=(key,)),)
    )
    assert victim.refuses(publisher.publish(issuers=issuers)) == "semantic"


def test_what_is_used_is_what_was_verified(publisher: Publisher) -> None:
    # A file that is another when it is read again: checked once, it must be read once.
    files = unpack_bundle(publisher.publish())

    class Flipping(dict[str, str]):
        def __init__(self) -> None:
            super().__init__(files)
            self.reads: list[str] = []

        def get(self, path: str, default: str | None = None) -> str | None:  # type: ignore[override]
            self.reads.append(path)
            return "{}" if path in self.reads[:-1] else super().get(path, default)

    flipping = Flipping()
    verified = verify(
        flipping,
        root=publisher.root,
        floor={},
        required=("policy/prod.json", "issuers/prod.json"),
        optional=("hints/prod.json",),
    )
    assert verified.error is None
    assert len(flipping.reads) == len(set(flipping.reads))
    (signed,) = [text for path, text in files.items() if "/policy/" in path]
    assert verified.targets["policy/prod.json"] == signed.encode()


def test_nobody_else_can_reach_into_the_verifier_s_directory(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watched(Updater):
        def refresh(self) -> None:
            seen.append(stat.S_IMODE(os.stat(self._dir).st_mode))
            super().refresh()

    monkeypatch.setattr(verifier, "Updater", Watched)
    open_bundle(publisher.publish(), root=publisher.root, channel="prod")
    assert seen == [0o700]


# ── parsers ────────────────────────────────────────────────────────────────────────────────────


def into_signed(injected: str) -> Callable[[str], str]:
    return lambda text: text.replace('"signed":{', '"signed":{' + injected, 1)


def test_a_duplicate_key_in_what_is_signed(publisher: Publisher, victim: Victim) -> None:
    bundle = publisher.publish()
    last = edited(bundle, "timestamp", lambda text: text[:-2] + ',"version":99}}')
    assert victim.refuses(last) == "signature"
    # The first of two counts for nothing, in what is verified and in what is used.
    first = edited(bundle, "timestamp", into_signed('"expires":"2100-01-01T00:00:00Z",'))
    trusted = victim.keeper.accept(first, etag=None)
    assert trusted.expires_at < NOW + 7 * 3_600


@pytest.mark.parametrize(
    "injected",
    [
        '"x":' + "[" * 1_500 + "]" * 1_500 + ",",
        '"x":NaN,',
        '"x":1e999,',
        '"x":' + "9" * 3_500 + ",",
        '"x":1.5,',
        '"x":"\\ud800",',
        '"\\u0000":1,',
    ],
    ids=["nesting", "nan", "infinity", "huge", "float", "surrogate", "nul"],
)
def test_absurd_json_in_what_is_signed(publisher: Publisher, victim: Victim, injected: str) -> None:
    absurd = edited(publisher.publish(), "timestamp", into_signed(injected))
    assert victim.refuses(absurd) in ("signature", "format")


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "<html>", '{"signed":1,"signatures":[]}'])
def test_metadata_that_is_no_metadata(publisher: Publisher, victim: Victim, text: str) -> None:
    assert victim.refuses(edited(publisher.publish(), "timestamp", lambda _: text)) == "format"


def test_metadata_without_end(publisher: Publisher, victim: Victim) -> None:
    endless = edited(publisher.publish(), "timestamp", lambda text: text + " " * 5_000)
    assert victim.refuses(endless) == "too_large"
    root = pack_bundle({**unpack_bundle(publisher.bundle()), "metadata/2.root.json": " " * 100_000})
    assert victim.refuses(root) == "too_large"


def test_a_bundle_larger_than_any_repository(victim: Victim) -> None:
    assert victim.refuses(b"{" + b" " * MAX_BUNDLE_BYTES) == "too_large"


def test_a_path_out_of_the_repository(publisher: Publisher, victim: Victim) -> None:
    files = unpack_bundle(publisher.publish())
    for path in (
        "metadata/../../../root/.ssh/authorized_keys",
        "/etc/passwd",
        "metadata/../x.json",
    ):
        assert victim.refuses(pack_bundle({**files, path: "x"})) == "format"


def test_files_nobody_asked_for_change_nothing(publisher: Publisher, victim: Victim) -> None:
    files = unpack_bundle(publisher.publish())
    extra = {"metadata/1.evil.json": "{}", f"targets/evil/{'0' * 64}.prod.json": "{}"}
    assert victim.keeper.accept(pack_bundle({**files, **extra}), etag=None).policy.version == 2
