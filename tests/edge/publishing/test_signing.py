"""Drafts: several people sign what none of them could publish alone."""

import re
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from tuf.api.metadata import Metadata, Root, Targets

from support.command import Command
from support.holders import Holder, SharedProject
from waypost.edge.publishing.draft import Draft, decode_draft, encode_draft, make_draft, read_draft
from waypost.edge.publishing.publish import draft_key_changes
from waypost.edge.publishing.repository import KeyChange, ManifestRepository
from waypost.shared.errors import StoreError, TrustError
from waypost.shared.trust import Trusted, open_bundle


@pytest.fixture
def shared(tmp_path: Path) -> SharedProject:
    return SharedProject(tmp_path / "project")


def opened(shared: SharedProject) -> Trusted:
    bundle = (shared.project.public / "v1/prod/bundle.json").read_bytes()
    return open_bundle(bundle, root=shared.root, channel="prod")


def refusal(shared: SharedProject, *drafts: Draft) -> str:
    """Publish, and return the code it is refused with; the tree must stay as it was."""
    before = shared.tree()
    with pytest.raises((StoreError, TrustError)) as caught:
        shared.apply(*drafts)
    assert shared.tree() == before
    return caught.value.code


def rate(shared: SharedProject, quality: int) -> None:
    """Give the policy's first model another rating."""
    text = shared.project.policy.read_text()
    changed = re.sub(r"quality: \d+", f"quality: {quality}", text, count=1)
    assert changed != text
    shared.project.policy.write_text(changed)


def test_no_machine_of_a_shared_project_holds_a_key_that_people_sign_with(
    shared: SharedProject,
) -> None:
    files = {path.stem for path in shared.project.keys.iterdir()}
    assert files == {"keyring", "hints-1", "snapshot-1", "timestamp-1"}


def test_two_holders_publish_together_what_each_signed_apart(shared: SharedProject) -> None:
    assert shared.publish().version == 1
    assert shared.publish().version == 2
    assert opened(shared).policy.version == 2


def test_a_draft_may_also_go_round_from_one_holder_to_the_next(shared: SharedProject) -> None:
    draft = shared.dave.sign(shared.draft(), root=shared.root)
    draft = decode_draft(encode_draft(draft))
    assert shared.apply(shared.erin.sign(draft, root=shared.root))["prod"].version == 1


@pytest.mark.parametrize("times", [0, 1, 2])
def test_one_holder_is_not_enough_however_often_they_sign(
    shared: SharedProject, times: int
) -> None:
    draft = shared.draft()
    copies = [shared.dave.sign(draft, root=shared.root) for _ in range(times)] or [draft]
    assert refusal(shared, *copies) == "signatures_missing"


def test_the_refusal_names_who_has_not_signed(shared: SharedProject) -> None:
    with pytest.raises(StoreError, match=f"have not signed: {shared.erin.keyid[:8]}"):
        shared.apply(shared.dave.sign(shared.draft(), root=shared.root))


def test_a_stranger_s_signature_is_not_even_made(shared: SharedProject) -> None:
    stranger, draft = Holder("mallory", "targets"), shared.draft()
    assert stranger.sign(draft, root=shared.root) == draft
    assert read_draft(draft, root=shared.root).counts(stranger.keyid) == []


def test_what_was_changed_after_it_was_signed_is_not_published(shared: SharedProject) -> None:
    draft = shared.draft()
    signed = [holder.sign(draft, root=shared.root) for holder in (shared.dave, shared.erin)]
    path = "metadata/1.targets.json"
    altered = [
        replace(s, files={**s.files, path: s.files[path].replace("prod", "pr0d")}) for s in signed
    ]
    assert refusal(shared, *altered) == "signatures_missing"
    policy = next(path for path in draft.files if path.startswith("targets/policy/"))
    other = draft.files[policy].replace('"free"', '"fred"')
    altered = [replace(s, files={**s.files, policy: other}) for s in signed]
    assert refusal(shared, *altered) == "integrity"


def test_copies_of_different_drafts_are_not_put_together(shared: SharedProject) -> None:
    first = shared.dave.sign(shared.draft(), root=shared.root)
    rate(shared, 77)
    second = shared.erin.sign(shared.draft(), root=shared.root)
    assert refusal(shared, first, second) == "draft_mismatch"


def test_a_draft_that_was_overtaken_is_stale(shared: SharedProject) -> None:
    draft = shared.draft()
    signed = [holder.sign(draft, root=shared.root) for holder in (shared.dave, shared.erin)]
    shared.publish()
    assert refusal(shared, *signed) == "draft_stale"


def test_a_version_cannot_be_skipped(shared: SharedProject) -> None:
    shared.publish()
    draft = shared.draft()
    path = "metadata/2.targets.json"
    targets = Metadata[Targets].from_bytes(draft.files[path].encode())
    targets.signed.version = 9
    files = {name: text for name, text in draft.files.items() if name != path}
    files["metadata/9.targets.json"] = targets.to_bytes().decode()
    skipping = replace(draft, files=files)
    with pytest.raises(StoreError) as caught:
        read_draft(skipping, root=shared.root)
    assert caught.value.code == "draft_stale"
    assert refusal(shared, skipping) == "draft_stale"


# ── what a holder is told ──────────────────────────────────────────────────────────────────────


def test_a_holder_is_told_version_expiry_and_each_change(shared: SharedProject) -> None:
    shared.publish()
    rate(shared, 77)
    words = "\n".join(read_draft(shared.draft(), root=shared.root).words)
    assert "targets v2, valid until 20" in words
    assert "policy/prod.json v1 → v2" in words
    assert ".quality: " in words
    assert " → 77" in words
    assert "issuers/prod.json v1 → v2\n    says the same" in words


def test_a_holder_is_told_of_every_key_and_threshold(shared: SharedProject) -> None:
    new = Holder("frank", "targets")
    change = KeyChange(
        role="targets",
        add=(new.signer.public_key,),
        remove=(shared.dave.keyid,),
        threshold=1,
    )
    shared.publish()
    draft = draft_key_changes(shared.project, [change], now=int(time.time()))
    words = read_draft(draft, root=shared.root, names={shared.dave.keyid: "dave"}).words
    assert f"  + ed25519 key {new.keyid} signs targets" in words
    assert f"  - ed25519 key dave ({shared.dave.keyid}) no longer signs targets" in words
    assert "  1 of 2 must sign targets, not 2 as so far" in words
    assert f"  + ed25519 key {new.keyid} signs full" in words


def test_a_new_delegation_does_not_slip_past_a_holder(shared: SharedProject) -> None:
    shared.publish()
    draft = shared.draft()
    path = "metadata/2.targets.json"
    targets = Metadata[Targets].from_bytes(draft.files[path].encode())
    assert targets.signed.delegations is not None
    assert targets.signed.delegations.roles is not None
    hints = targets.signed.delegations.roles["hints"]
    hints.paths = ["*/*"]
    draft = replace(draft, files={**draft.files, path: targets.to_bytes().decode()})
    assert "  hints signs */* with 1 of 1 keys" in read_draft(draft, root=shared.root).words


def test_the_difference_is_told_against_what_the_holder_s_own_root_vouches_for(
    shared: SharedProject, tmp_path: Path
) -> None:
    shared.publish()
    draft = shared.draft()
    # A forger shows a past that never was, so that the change looks small.
    forger = SharedProject(tmp_path / "forger")
    forger.publish()
    for forged in (
        replace(draft, base=forger.draft().base),
        replace(draft, base={**draft.base, **targets_of(forger.draft().base)}),
    ):
        with pytest.raises(TrustError) as caught:
            read_draft(forged, root=shared.root)
        assert caught.value.code == "signature"
    rate(shared, 77)
    draft = shared.draft()
    policy = next(path for path in draft.base if path.startswith("targets/policy/"))
    other = replace(draft, base={**draft.base, policy: draft.base[policy].replace("free", "fred")})
    with pytest.raises(TrustError) as caught:
        read_draft(other, root=shared.root)
    assert caught.value.code == "integrity"


def targets_of(base: dict[str, str]) -> dict[str, str]:
    return {path: text for path, text in base.items() if path.endswith(".targets.json")}


def test_a_document_that_the_draft_does_not_show_cannot_be_signed(shared: SharedProject) -> None:
    draft = shared.draft()
    files = {path: text for path, text in draft.files.items() if "/policy/" not in path}
    with pytest.raises(TrustError) as caught:
        read_draft(replace(draft, files=files), root=shared.root)
    assert caught.value.code == "integrity"


def test_without_a_root_of_one_s_own_only_a_first_root_can_be_read(shared: SharedProject) -> None:
    with pytest.raises(StoreError) as caught:
        read_draft(shared.draft(), root=None)
    assert caught.value.code == "draft_invalid"


# ── what is no draft ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"format":"waypost-draft/1","files":{},"base":{}}',
        b'{"format":"waypost-draft/2","files":{},"base":{}}',
        b'{"format":"waypost-draft/1","files":{"../../etc/passwd":""},"base":{}}',
        b'{"format":"waypost-draft/1","files":{"metadata/2.root.json":"{}"},"base":{}}',
        b" " * 17_000_000,
    ],
    ids=range(10),
)
def test_what_is_no_draft_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError) as caught:
        decode_draft(data)
    assert caught.value.code == "draft_invalid"


def test_people_are_not_asked_for_what_machines_sign(shared: SharedProject) -> None:
    shared.publish()
    draft = shared.draft()
    timestamp = (shared.project.public / "metadata/timestamp.json").read_text()
    sneaky = replace(draft, files={**draft.files, "metadata/timestamp.json": timestamp})
    with pytest.raises(StoreError) as caught:
        decode_draft(encode_draft(sneaky))
    assert caught.value.code == "draft_invalid"


def test_a_file_under_another_file_s_digest_is_refused(shared: SharedProject) -> None:
    draft = shared.draft()
    place = f"targets/policy/{'0' * 64}.prod.json"
    with pytest.raises(StoreError) as caught:
        decode_draft(encode_draft(replace(draft, files={**draft.files, place: "{}"})))
    assert caught.value.code == "draft_invalid"


def test_a_root_under_the_name_of_targets_is_refused(shared: SharedProject) -> None:
    draft = shared.draft()
    root = shared.root.decode()
    sneaky = replace(draft, files={**draft.files, "metadata/1.targets.json": root})
    with pytest.raises(StoreError) as caught:
        decode_draft(encode_draft(sneaky))
    assert caught.value.code == "draft_invalid"


# ── the root ───────────────────────────────────────────────────────────────────────────────────


def root_draft(shared: SharedProject, change: KeyChange) -> Draft:
    return draft_key_changes(shared.project, [change], now=int(time.time()))


def test_a_holder_of_the_root_is_replaced_by_two_of_the_others(shared: SharedProject) -> None:
    shared.publish()
    old = opened(shared)
    frank = Holder("frank", "root")
    draft = root_draft(
        shared, KeyChange(role="root", add=(frank.signer.public_key,), remove=(shared.carol.keyid,))
    )
    first = shared.root
    shared.apply(shared.alice.sign(draft, root=first), shared.bob.sign(draft, root=first))
    newest = Metadata[Root].from_bytes(shared.root)
    assert newest.signed.version == 2
    assert frank.keyid in newest.signed.roles["root"].keyids
    bundle = (shared.project.public / "v1/prod/bundle.json").read_bytes()
    assert open_bundle(bundle, root=first, channel="prod", previous=old.bundle)


def test_the_new_holders_alone_cannot_take_the_root_over(shared: SharedProject) -> None:
    new = [Holder(name, "root") for name in ("mallory", "mordred", "moriarty")]
    shared.publish()
    draft = root_draft(
        shared,
        KeyChange(
            role="root",
            add=tuple(holder.signer.public_key for holder in new),
            remove=(shared.alice.keyid, shared.bob.keyid, shared.carol.keyid),
        ),
    )
    copies = [holder.sign(draft, root=shared.root) for holder in new]
    assert refusal(shared, *copies) == "signatures_missing"
    copies.append(shared.alice.sign(draft, root=shared.root))
    assert refusal(shared, *copies) == "signatures_missing"
    copies.append(shared.bob.sign(draft, root=shared.root))
    shared.apply(*copies)


def test_a_role_that_could_no_longer_be_signed_for_is_refused(shared: SharedProject) -> None:
    for change in (
        KeyChange(role="targets", remove=(shared.dave.keyid,)),
        KeyChange(role="root", remove=(shared.alice.keyid, shared.bob.keyid)),
        KeyChange(role="targets", threshold=3),
    ):
        with pytest.raises(StoreError) as caught:
            root_draft(shared, change)
        assert caught.value.code == "too_few_keys"


def test_a_draft_holds_what_changes_and_nothing_that_machines_sign(shared: SharedProject) -> None:
    shared.publish()
    draft = shared.draft()
    assert sorted(path for path in draft.files if path.startswith("metadata/")) == [
        "metadata/2.full.json",
        "metadata/2.targets.json",
    ]
    assert make_draft(ManifestRepository(lambda _path: None, {}, now=0)).base == {}


# ── the commands ───────────────────────────────────────────────────────────────────────────────


def test_the_sign_command_refuses_in_words_and_signs_nothing(
    shared: SharedProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared.project.directory
    waypost = Command(folder, monkeypatch, capsys)
    waypost.good("publish", "--draft")
    waypost.good("keys", "make", "mallory", "--no-passphrase")
    before = (folder / "draft.json").read_bytes()
    assert "key_not_asked" in waypost.refusal("sign", "draft.json", "--key", "mallory.pem", "--yes")
    assert "key_unknown" in waypost.refusal("sign", "draft.json", "--key", "hsm:3", "--yes")
    assert "key_unusable" in waypost.refusal("sign", "draft.json", "--key", "mallory.pub", "--yes")
    assert "draft_invalid" in waypost.refusal("sign", "root.json", "--key", "mallory.pem", "--yes")
    assert "cannot read" in waypost.refusal("sign", "nothing", "--key", "mallory.pem", "--yes")
    assert "draft_invalid" in waypost.refusal("publish", "policy.yaml")
    assert (folder / "draft.json").read_bytes() == before


def test_nobody_signs_by_not_answering(
    shared: SharedProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared.project.directory
    waypost = Command(folder, monkeypatch, capsys)
    waypost.good("publish", "--draft")
    (folder / "dave.pem").write_bytes(shared.dave.signer.private_bytes)
    before = (folder / "draft.json").read_bytes()
    assert "--yes" in waypost.refusal("sign", "draft.json", "--key", "dave.pem")
    assert (folder / "draft.json").read_bytes() == before
    assert "Signed targets and full" in waypost.good(
        "sign", "draft.json", "--key", "dave.pem", "--yes"
    )
