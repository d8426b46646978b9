"""Publishes: from what people wrote and signed to a tree that any web server can serve.

Every file but two kinds is immutable under its name. ``timestamp.json`` and the bundles flip
last, whole, and only after a clean client has accepted the new state from every root a client
may still start from; so a reader sees one publication or the next, never something between.

Whatever people sign is a draft first, also where one machine holds all the keys: ``publish`` is
``draft_publication``, ``sign_draft`` and ``apply_drafts`` in one go.
"""

# securesystemslib spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, structs
from securesystemslib.signer import Key, Signer

from waypost.edge.analysis.prove import refuse_broken
from waypost.edge.authoring.issuers_file import load_issuers
from waypost.edge.authoring.load_policy import load_policy
from waypost.edge.project.atomic_write import locked, write_file
from waypost.edge.project.project import Project
from waypost.edge.publishing.draft import (
    Draft,
    Result,
    make_draft,
    merge_drafts,
    sign_draft,
    signatures,
)
from waypost.edge.publishing.repository import (
    LIFETIME_S,
    ROLES,
    KeyChange,
    ManifestRepository,
    metadata_path,
)
from waypost.edge.publishing.signing_keys import ONLINE_ROLES, Keyring, forget_keys, root_keys
from waypost.shared.contracts import Hint, Hints, IssuerKey, Issuers
from waypost.shared.errors import PolicyError, StoreError, TrustError
from waypost.shared.trust import Projection, Trusted, open_bundle
from waypost.shared.trust.bundle import pack_bundle

__all__ = [
    "RESIGN_EVERY_S",
    "Published",
    "RoleKeys",
    "apply_drafts",
    "change_keys",
    "draft_key_changes",
    "draft_publication",
    "draft_root",
    "expires",
    "publish",
    "publish_hints",
    "publish_issuer_keys",
    "resign",
    "role_keys",
]

RESIGN_EVERY_S = 300

# What is signed anew when so little of its life is left. The timestamp: at every turn.
RESIGN_WITHIN_S: Mapping[str, int] = {
    "hints": LIFETIME_S["hints"] // 2,
    "snapshot": LIFETIME_S["snapshot"] // 2,
    "timestamp": LIFETIME_S["timestamp"] - RESIGN_EVERY_S // 2,
}

Signers = Mapping[str, Sequence[Signer]]


class Published(Struct, frozen=True, kw_only=True):
    """What a channel says after a publication, as a script wants to know it.

    Attributes:
        expires_at: when it lapses unless an edge signs its timestamp anew; Unix seconds.
        policy_digest: SHA-256 of the policy that clients get, in hex.
        private_models: as far as the full projection is at hand.
    """

    channel: str
    version: int
    models: int
    private_models: int
    policy_digest: str
    expires_at: int


def publish(
    project: Project, *, channel: str, signers: Signers, hints_keys: Sequence[Key], now: int
) -> Published:
    """Sign and publish policy.yaml and issuers.yaml to ``channel``, with the keys of one machine.

    Args:
        channel: letters a to z, digits and hyphens.
        hints_keys: sign for ``hints`` from the first publication on; later ones keep what the
            last one said.

    Raises:
        FileError, PolicyError: what is written makes no sense; with line and mend.
        StoreError: ``signatures_missing``, ``key_missing``, or the disk refused.
        TrustError: clients would refuse the result, so nothing was published.
    """
    with locked(project.lock):
        draft = _draft_publication(project, channel, hints_keys, now=now)
        draft = _sign_here(project, draft, signers)
        return _apply(project, draft, signers=signers, now=now)[channel]


def draft_publication(
    project: Project, *, channel: str, hints_keys: Sequence[Key], now: int
) -> Draft:
    """Return what ``publish`` would publish, for its holders to sign.

    Raises:
        FileError, PolicyError, StoreError: as ``publish``.
    """
    with locked(project.lock):
        return _draft_publication(project, channel, hints_keys, now=now)


def _draft_publication(
    project: Project, channel: str, hints_keys: Sequence[Key], *, now: int
) -> Draft:
    if re.fullmatch(r"[a-z0-9-]{1,64}", channel) is None:
        raise PolicyError(f"channel {channel!r}: use letters a to z, digits and hyphens")
    repository = _repository(project, {}, now=now, drafting=True)
    version = repository.version("targets") + 1
    authored = load_policy(project.policy, channel=channel, version=version, issued_at=now)
    refuse_broken(authored)
    issuers = load_issuers(project.issuers, channel=channel, version=version, issued_at=now)
    repository.put_offline(
        channel,
        policy=authored.client,
        full=authored.full,
        issuers=issuers,
        hints_keys=repository.keys_of("hints") or hints_keys,
    )
    return make_draft(repository)


def publish_issuer_keys(
    project: Project,
    iss: str,
    keys: Sequence[IssuerKey],
    *,
    channel: str,
    signers: Signers,
    now: int,
) -> Published | None:
    """Have tokens of ``iss`` hold by ``keys``; return ``None`` if they do already.

    All else stays as it is published, whatever people are writing into their files meanwhile.

    Raises:
        StoreError: ``nothing_published``, ``issuer_unknown``, ``signatures_missing``,
            ``key_missing``, ``key_taken``, or the disk refused.
        TrustError: clients would refuse the result, so nothing was published.
    """
    with locked(project.lock):
        repository = _repository(project, {}, now=now, drafting=True)
        if not repository.has("targets") or channel not in repository.channels():
            raise StoreError(f"channel '{channel}' has no policy yet", code="nothing_published")
        published = repository.issuers(channel)
        issuers = _with_keys(published, iss, keys)
        if issuers == published:
            return None
        version = repository.version("targets") + 1
        repository.put_issuers(channel, structs.replace(issuers, version=version, issued_at=now))
        draft = _sign_here(project, make_draft(repository), signers)
        return _apply(project, draft, signers=signers, now=now)[channel]


def _with_keys(published: Issuers, iss: str, keys: Sequence[IssuerKey]) -> Issuers:
    others = [issuer for issuer in published.issuers if issuer.iss != iss]
    if len(others) == len(published.issuers):
        raise StoreError(
            f"what is published has no issuer '{iss}'; publish issuers.yaml first",
            code="issuer_unknown",
        )
    taken = {key.kid for issuer in others for key in issuer.keys} & {key.kid for key in keys}
    if taken:
        raise StoreError(
            f"another issuer has a key '{min(taken)}'; a token names just one", code="key_taken"
        )
    return structs.replace(
        published,
        issuers=tuple(
            structs.replace(issuer, keys=tuple(keys)) if issuer.iss == iss else issuer
            for issuer in published.issuers
        ),
    )


def draft_root(
    project: Project, keyring: Keyring, *, thresholds: Mapping[str, int], now: int
) -> Draft:
    """Return the first root, for the holders of its keys to sign."""
    repository = _repository(project, {}, now=now, drafting=True)
    repository.create_root(*root_keys(keyring, thresholds))
    return make_draft(repository)


def draft_key_changes(project: Project, changes: Sequence[KeyChange], *, now: int) -> Draft:
    """Return what makes other keys count, for the holders of those in force to sign.

    Raises:
        StoreError: ``too_few_keys``, ``nothing_published`` for keys that only a publication
            names.
    """
    with locked(project.lock):
        repository = _repository(project, {}, now=now, drafting=True)
        repository.change_keys(changes)
        if not repository.written:
            raise StoreError(
                "the keys of hints are named by the first publication; publish first",
                code="nothing_published",
            )
        return make_draft(repository)


def change_keys(
    project: Project, changes: Sequence[KeyChange], *, signers: Signers, now: int
) -> None:
    """Make other keys count, signed with the keys of one machine.

    Raises:
        StoreError, TrustError: as ``publish`` and ``draft_key_changes``.
    """
    draft = draft_key_changes(project, changes, now=now)
    with locked(project.lock):
        _apply(project, _sign_here(project, draft, signers), signers=signers, now=now)


def apply_drafts(
    project: Project, drafts: Sequence[Draft], *, signers: Signers, now: int
) -> dict[str, Published]:
    """Publish a draft that enough people have signed; return what each channel then says.

    Args:
        drafts: copies of one draft; their signatures are put together.
        signers: of the online roles.

    Raises:
        StoreError: ``draft_mismatch``, ``draft_stale``, ``signatures_missing``.
        TrustError: clients would refuse the result, so nothing was published.
    """
    draft = merge_drafts(drafts)
    with locked(project.lock):
        return _apply(project, draft, signers=signers, now=now)


def publish_hints(
    project: Project,
    models: Sequence[Hint],
    *,
    channel: str,
    signers: Signers,
    now: int,
    known_only: bool = False,
) -> Hints:
    """Publish what the fleet sees of the models; return what was published.

    Args:
        known_only: leave out models that clients do not see, instead of refusing.

    Raises:
        PolicyError: ``hints_invalid``: a model that the policy does not have.
        StoreError: ``nothing_published``, ``key_missing``, or the disk refused.
        TrustError: clients would refuse the result, so nothing was published.
    """
    with locked(project.lock):
        repository = _repository(project, signers, now=now)
        if not repository.has("targets") or channel not in repository.channels():
            raise StoreError(f"channel '{channel}' has no policy yet", code="nothing_published")
        # Everybody can read hints, so what is private must not be named in them.
        known = {model.id for model in repository.policy(channel).models}
        unknown = sorted({hint.model for hint in models} - known)
        if unknown and not known_only:
            raise PolicyError(
                f"the policy that clients of '{channel}' see has no model {', '.join(unknown)}",
                code="hints_invalid",
            )
        hints = Hints(
            channel=channel,
            version=repository.version("hints") + 1,
            issued_at=now,
            models=tuple(hint for hint in models if hint.model in known),
        )
        repository.put_hints(channel, hints)
        repository.sign_online()
        _verified(project, repository)
        _write_tree(project, repository)
        return hints


def resign(project: Project, *, signers: Signers, now: int) -> None:
    """Sign anew what is about to lapse, with the online keys alone; the content stays.

    Raises:
        StoreError, TrustError: as ``publish``; the published state stays as it was.
    """
    with locked(project.lock):
        repository = _repository(project, {}, now=now)
        if not repository.has("timestamp"):
            return
        repository.signers = _counting(repository, signers)
        repository.refresh_online(within_s=RESIGN_WITHIN_S)
        _verified(project, repository)
        _write_tree(project, repository)


# ── from a signed draft to the tree ────────────────────────────────────────────────────────────


def _sign_here(project: Project, draft: Draft, signers: Signers) -> Draft:
    asked = _signatures(draft, _repository(project, {}, now=0))
    held = [signer for role in ("root", "targets") for signer in signers.get(role, ())]
    return sign_draft(draft, asked, held)


def _signatures(draft: Draft, repository: ManifestRepository) -> dict[str, Result]:
    return signatures(
        draft.files,
        root=repository.root() if repository.has("root") else None,
        targets=repository.targets() if repository.has("targets") else None,
    )


def _apply(project: Project, draft: Draft, *, signers: Signers, now: int) -> dict[str, Published]:
    repository = _repository(project, {}, now=now)
    _check_signed(draft, repository)
    before = _keyids(repository)
    repository.adopt({path: text.encode() for path, text in draft.files.items()})
    repository.signers = _counting(repository, signers)
    if repository.has("targets"):
        for channel in repository.channels():
            if repository.target_place("hints", f"hints/{channel}.json") is None:
                repository.put_hints(channel, Hints(channel=channel, version=1, issued_at=now))
        repository.refresh_online(within_s=RESIGN_WITHIN_S)
    opened = _verified(project, repository, new_root="root" in _roles(draft.files))
    _write_tree(project, repository)
    forget_keys(project.keys, before - _keyids(repository))
    channels = sorted(channel for channel, projection in opened if projection == "client")
    return {channel: _said(opened, channel) for channel in channels}


def _check_signed(draft: Draft, repository: ManifestRepository) -> None:
    """Raise StoreError unless ``draft`` follows what is published, and enough have signed it."""
    results = _signatures(draft, repository)
    for role in results:
        if metadata_path(role, repository.version(role) + 1) not in draft.files:
            raise StoreError(
                f"the draft does not follow {role} v{repository.version(role)}, which is "
                "published; make it anew",
                code="draft_stale",
            )
    for role, result in results.items():
        if not result.verified:
            still = ", ".join(sorted(keyid[:8] for keyid in result.unsigned))
            raise StoreError(
                f"{role} wants more signatures; these keys have not signed: {still}",
                code="signatures_missing",
            )


def _keyids(repository: ManifestRepository) -> set[str]:
    if not repository.has("root"):
        return set()
    return {key.keyid for role in ROLES for key in repository.keys_of(role)}


def _counting(repository: ManifestRepository, signers: Signers) -> dict[str, list[Signer]]:
    """Return the signers of online roles whose signatures count by now."""
    counting: dict[str, list[Signer]] = {}
    for role in ONLINE_ROLES:
        counts = {key.keyid for key in repository.keys_of(role)}
        counting[role] = [s for s in signers.get(role, ()) if s.public_key.keyid in counts]
    return counting


def _said(opened: Mapping[tuple[str, Projection], Trusted], channel: str) -> Published:
    client = opened[channel, "client"]
    full = opened.get((channel, "full"), client)
    return Published(
        channel=channel,
        version=client.policy.version,
        models=len(full.policy.models),
        private_models=len(full.policy.models) - len(client.policy.models),
        policy_digest=client.policy_digest,
        expires_at=client.expires_at,
    )


def _repository(
    project: Project, signers: Signers, *, now: int, drafting: bool = False
) -> ManifestRepository:
    def read(path: str) -> bytes | None:
        return _read(_place(project, path))

    return ManifestRepository(read, signers, now=now, drafting=drafting)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StoreError(f"cannot read {path}: {exc.strerror}") from exc


def _place(project: Project, path: str) -> Path:
    """Return where a repository path is kept: what is private is not in the public tree."""
    private = path.endswith(".full.json") or path.startswith("targets/full/")
    return (project.private if private else project.public) / path


def _bundle_place(project: Project, channel: str, projection: Projection) -> Path:
    tree = project.private if projection == "full" else project.public
    return tree / "v1" / channel / "bundle.json"


def _bundles(repository: ManifestRepository) -> dict[tuple[str, Projection], bytes]:
    bundles: dict[tuple[str, Projection], bytes] = {}
    for channel in repository.channels() if repository.has("targets") else ():
        bundles[channel, "client"] = pack_bundle(repository.bundle_files(channel, "client"))
        # An edge of its own may hold the public tree alone.
        if repository.has_full():
            bundles[channel, "full"] = pack_bundle(repository.bundle_files(channel, "full"))
    return bundles


def _verified(
    project: Project, repository: ManifestRepository, *, new_root: bool = False
) -> dict[tuple[str, Projection], Trusted]:
    """Return what clients will see; raises TrustError if one of them would not.

    Args:
        new_root: let pass what lapsed before and is not touched now. Where all has lapsed, the
            root is the first to be signed anew.
    """
    made = _roles(repository.written)
    seen: dict[tuple[str, Projection], Trusted] = {}
    for (channel, projection), bundle in _bundles(repository).items():
        previous = _read(_bundle_place(project, channel, projection))
        try:
            seen[channel, projection] = _verify(
                bundle, repository, channel, projection, previous=previous
            )
        except TrustError as exc:
            if not new_root or exc.code != "expired" or exc.role in made:
                raise
    return seen


def _roles(paths: Iterable[str]) -> set[str]:
    """``metadata/9.targets.json`` → ``targets``"""
    names = (p.removeprefix("metadata/") for p in paths if p.startswith("metadata/"))
    return {name.removesuffix(".json").rpartition(".")[2] for name in names}


def _write_tree(project: Project, repository: ManifestRepository) -> None:
    """Let what ``repository`` made be seen, the way in last."""
    for path, data in repository.written.items():
        if path != "metadata/timestamp.json":
            _write(project, _place(project, path), data)
    timestamp = repository.written.get("metadata/timestamp.json")
    if timestamp is not None:
        _write(project, _place(project, "metadata/timestamp.json"), timestamp)
    for (channel, projection), bundle in _bundles(repository).items():
        place = _bundle_place(project, channel, projection)
        if _read(place) != bundle:
            _write(project, place, bundle)
    newest = repository.written.get(metadata_path("root", repository.version("root")))
    if newest is not None:
        write_file(project.root, newest)


def _write(project: Project, path: Path, data: bytes) -> None:
    write_file(path, data, mode=0o600 if path.is_relative_to(project.private) else 0o644)


def _verify(
    bundle: bytes,
    repository: ManifestRepository,
    channel: str,
    projection: Projection,
    *,
    previous: bytes | None,
) -> Trusted:
    """Return what clients will see, whichever root they start from; raises TrustError."""
    first, *others = repository.roots_in_bundle()
    opened = open_bundle(
        bundle, root=first, channel=channel, previous=previous, projection=projection
    )
    for root in others:
        open_bundle(bundle, root=root, channel=channel, previous=previous, projection=projection)
    return opened


# ── what there is ──────────────────────────────────────────────────────────────────────────────


class RoleKeys(Struct, frozen=True, kw_only=True):
    """Who signs for one role.

    Attributes:
        expires_at: when its newest signature lapses, Unix seconds; ``None`` before the first.
    """

    role: str
    keyids: tuple[str, ...]
    threshold: int
    expires_at: int | None


def expires(project: Project) -> dict[str, int]:
    """Return role → when its newest signature lapses, Unix seconds; nothing before the first.

    Raises:
        StoreError: the tree cannot be read.
    """
    repository = _repository(project, {}, now=0)
    roles = (*ROLES, "full")
    return {role: repository.expires_at(role) for role in roles if repository.has(role)}


def role_keys(project: Project) -> list[RoleKeys]:
    """Return whose signatures count now; nothing before the first root."""
    repository = _repository(project, {}, now=0)
    if not repository.has("root"):
        return []
    return [
        RoleKeys(
            role=role,
            keyids=tuple(key.keyid for key in repository.keys_of(role)),
            threshold=repository.threshold_of(role),
            expires_at=repository.expires_at(role) if repository.has(role) else None,
        )
        for role in ROLES
    ]
