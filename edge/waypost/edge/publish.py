"""Publishes: from what people wrote to a tree that any web server can serve.

Every file but two kinds is immutable under its name. ``timestamp.json`` and the bundles flip
last, whole, and only after a clean client has accepted the new state from every root a client
may still start from; so a reader sees one publication or the next, never something between.
"""

# securesystemslib spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from securesystemslib.signer import Key, Signer

from waypost.edge.authoring import load_issuers, load_policy
from waypost.edge.files import locked, write_file
from waypost.edge.project import Project
from waypost.edge.repository import LIFETIME_S, ROLES, ManifestRepository
from waypost.shared.contracts import Hints
from waypost.shared.errors import PolicyError, StoreError
from waypost.shared.trust import Projection, Trusted, open_bundle
from waypost.shared.trust.bundle import pack_bundle

__all__ = ["RESIGN_EVERY_S", "Published", "expiries", "publish", "resign"]

RESIGN_EVERY_S = 300

# What is signed anew when so little of its life is left. The timestamp: at every turn.
RESIGN_WITHIN_S: Mapping[str, int] = {
    "hints": LIFETIME_S["hints"] // 2,
    "snapshot": LIFETIME_S["snapshot"] // 2,
    "timestamp": LIFETIME_S["timestamp"] - RESIGN_EVERY_S // 2,
}


class Published(Struct, frozen=True, kw_only=True):
    """One publication, as a script wants to know it.

    Attributes:
        expires_at: when it lapses unless an edge signs its timestamp anew; Unix seconds.
        policy_digest: SHA-256 of the policy that clients get, in hex.
    """

    channel: str
    version: int
    models: int
    private_models: int
    policy_digest: str
    expires_at: int


def publish(
    project: Project,
    *,
    channel: str,
    signers: Mapping[str, Sequence[Signer]],
    hints_keys: Sequence[Key],
    now: int,
) -> Published:
    """Sign and publish policy.yaml and issuers.yaml to ``channel``.

    Args:
        channel: letters a to z, digits and hyphens.

    Raises:
        FileError, PolicyError: what is written makes no sense; with line and mend.
        StoreError: a key is missing (``key_missing``) or the disk refused.
        TrustError: clients would refuse the result, so nothing was published.
    """
    if re.fullmatch(r"[a-z0-9-]{1,64}", channel) is None:
        raise PolicyError(f"channel {channel!r}: use letters a to z, digits and hyphens")
    with locked(project.lock):
        repository = _repository(project, signers, now=now)
        version = repository.next_version
        authored = load_policy(project.policy, channel=channel, version=version, issued_at=now)
        issuers = load_issuers(project.issuers, channel=channel, version=version, issued_at=now)
        repository.put(
            channel,
            policy=authored.client,
            full=authored.full,
            issuers=issuers,
            hints=Hints(channel=channel, version=version, issued_at=now),
            hints_keys=hints_keys,
        )
        opened = _flip(project, repository)[channel]
        return Published(
            channel=channel,
            version=version,
            models=len(authored.full.models),
            private_models=len(authored.full.models) - len(authored.client.models),
            policy_digest=opened.policy_digest,
            expires_at=opened.expires_at,
        )


def resign(project: Project, *, signers: Mapping[str, Sequence[Signer]], now: int) -> None:
    """Sign anew what is about to lapse, with the online keys alone; the content stays.

    Raises:
        StoreError, TrustError: as ``publish``; the published state stays as it was.
    """
    with locked(project.lock):
        repository = _repository(project, signers, now=now)
        if not repository.has("timestamp"):
            return
        repository.refresh_online(within_s=RESIGN_WITHIN_S)
        _flip(project, repository)


def _repository(
    project: Project, signers: Mapping[str, Sequence[Signer]], *, now: int
) -> ManifestRepository:
    def read(path: str) -> bytes | None:
        return _read(_place(project, path))

    return ManifestRepository(read, signers, now=now)


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


def _flip(project: Project, repository: ManifestRepository) -> dict[str, Trusted]:
    """Verify what ``repository`` holds, then let it be seen; return it by channel."""
    bundles: dict[Path, bytes] = {}
    opened: dict[str, Trusted] = {}
    for channel in repository.channels():
        # An edge of its own may hold the public tree alone.
        projections: list[Projection] = ["client"]
        if repository.has_full():
            projections.append("full")
        for projection in projections:
            place = _bundle_place(project, channel, projection)
            bundle = pack_bundle(repository.bundle_files(channel, projection))
            bundles[place] = bundle
            seen = _verify(bundle, repository, channel, projection, previous=_read(place))
            opened.setdefault(channel, seen)
    for path, data in repository.written.items():
        if path != "metadata/timestamp.json":
            _write(project, _place(project, path), data)
    timestamp = repository.written.get("metadata/timestamp.json")
    if timestamp is not None:
        _write(project, _place(project, "metadata/timestamp.json"), timestamp)
    for place, bundle in bundles.items():
        if _read(place) != bundle:
            _write(project, place, bundle)
    return opened


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


def expiries(project: Project) -> dict[str, int]:
    """Return when the newest signature of each role lapses, Unix seconds."""
    repository = _repository(project, {}, now=0)
    return {role: repository.expires_at(role) for role in ROLES if repository.has(role)}
