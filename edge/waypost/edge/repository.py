"""The signed repository: which role says what, for how long, and how a new version is made.

Works on bytes by path and touches no disk; ``waypost.edge.publish`` reads and writes the tree.
Time and signers arrive as arguments. Roles and lifetimes follow the TUF specification, with two
delegated roles: ``hints``, whose online key can only reorder, and ``full``, which keeps what the
operator marked private out of everything that clients see, hashes included.
"""

# tuf spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.repository import Repository

from waypost.shared.contracts import Hints, Issuers, Policy
from waypost.shared.errors import StoreError
from waypost.shared.trust.bundle import Projection, target_path

__all__ = [
    "DELEGATED",
    "LIFETIME_S",
    "ROLES",
    "ManifestRepository",
    "Read",
]

HOUR_S, DAY_S = 3_600, 86_400

LIFETIME_S: Mapping[str, int] = {
    "root": 365 * DAY_S,
    "targets": 30 * DAY_S,
    "full": 30 * DAY_S,
    "hints": DAY_S,
    "snapshot": 7 * DAY_S,
    "timestamp": 6 * HOUR_S,
}

# Delegated role → the keys it is signed with. ``full`` is as trusted as the policy itself.
DELEGATED: Mapping[str, str] = {"hints": "hints", "full": "targets"}

# Roles that own keys.
ROLES = ("root", "targets", "hints", "snapshot", "timestamp")

# A bundle repeats this many of the newest roots; older clients fetch the rest by name.
ROOTS_IN_BUNDLE = 16

# Returns the bytes at a path of the tree, or None.
Read = Callable[[str], bytes | None]


class ManifestRepository(Repository):
    """The newest state of a repository, and what was made since it was read.

    Attributes:
        written: path → bytes, in the order in which they must become visible.
    """

    def __init__(
        self,
        read: Read,
        signers: Mapping[str, Sequence[Signer]],
        *,
        now: int,
        lifetime_s: Mapping[str, int] = LIFETIME_S,
    ) -> None:
        self.written: dict[str, bytes] = {}
        self._read = read
        self._signers = signers
        self._now = now
        self._lifetime_s = lifetime_s
        self._versions: dict[str, int] = {}

    def read(self, path: str) -> bytes | None:
        """Return the newest bytes at ``path``."""
        return self.written.get(path) or self._read(path)

    # ── tuf.repository.Repository ──────────────────────────────────────────────────────────────

    def open(self, role: str) -> Metadata[Any]:
        """Return the newest metadata of ``role``, or unsigned metadata to begin with."""
        version = self._version(role)
        if version == 0:
            return self._blank(role)
        return self._parse(_metadata_path(role, version))

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Give ``md`` the next version and a new expiry, sign it, and keep it."""
        md.signed.version = self._version(role) + 1
        md.signed.expires = datetime.fromtimestamp(self._now + self._lifetime_s[role], UTC)
        md.signatures.clear()
        for signer in self._signers_of(role):
            md.sign(signer, append=True)
        self._versions[role] = md.signed.version
        self.written[_metadata_path(role, md.signed.version)] = md.to_bytes()

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """What the next snapshot says of each targets role."""
        infos: dict[str, MetaFile] = {}
        for role in ("targets", *DELEGATED):
            version = self._version(role)
            if role == "full" and version:
                # The version alone: a hash would confirm a guess at what is private.
                infos["full.json"] = MetaFile(version)
            elif version:
                data = self._need(_metadata_path(role, version))
                infos[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
        return infos

    @property
    def snapshot_info(self) -> MetaFile:
        """What the next timestamp says of the snapshot."""
        version = self._version("snapshot")
        data = self._need(_metadata_path("snapshot", version))
        return MetaFile.from_data(version, data, ["sha256"])

    # ── what Waypost publishes ─────────────────────────────────────────────────────────────────

    def create_root(self, keys: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int]) -> None:
        """Make root version 1, which names the keys of all roles."""
        with self.edit_root() as root:
            root.consistent_snapshot = True
            for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type):
                root.roles[role].threshold = thresholds[role]
                for key in keys[role]:
                    root.add_key(key, role)

    def put(
        self,
        channel: str,
        *,
        policy: Policy,
        full: Policy,
        issuers: Issuers,
        hints: Hints,
        hints_keys: Sequence[Key],
    ) -> None:
        """Make ``channel`` say this, signed down to the timestamp."""
        root = self.root()
        with self.edit_targets() as targets:
            targets_keys = [root.get_key(keyid) for keyid in root.roles[Targets.type].keyids]
            targets.delegations = _delegations(
                hints_keys, targets_keys, root.roles[Targets.type].threshold
            )
            self._add(targets, target_path(channel, "client"), policy)
            self._add(targets, f"issuers/{channel}.json", issuers)
        with self.edit_targets("full") as private:
            self._add(private, target_path(channel, "full"), full)
        self.put_hints(channel, hints)
        self.do_snapshot()
        self.do_timestamp()

    def put_hints(self, channel: str, hints: Hints) -> None:
        """Make the channel's hints these; a snapshot and a timestamp must follow."""
        with self.edit_targets("hints") as targets:
            self._add(targets, f"hints/{channel}.json", hints)

    def refresh_online(self, *, within_s: Mapping[str, int]) -> None:
        """Sign anew what lapses within its role's ``within_s``, with the online keys alone."""
        if self._lapses("hints", within_s):
            with self.edit_targets("hints"):
                pass
        self.do_snapshot(force=self._lapses("snapshot", within_s))
        self.do_timestamp(force=self._lapses("timestamp", within_s))

    def channels(self) -> list[str]:
        """Return the channels that have a policy."""
        return sorted(
            path.removeprefix("policy/").removesuffix(".json")
            for path in self.targets().targets
            if path.startswith("policy/")
        )

    @property
    def next_version(self) -> int:
        """The version of the next publication's documents."""
        return self._version("targets") + 1

    def has(self, role: str) -> bool:
        """Whether ``role`` has signed anything yet."""
        return self._version(role) > 0

    def has_full(self) -> bool:
        """Whether the full projection is at hand, not only known of."""
        version = self._version("full")
        return bool(version) and self.read(_metadata_path("full", version)) is not None

    def roots_in_bundle(self) -> list[bytes]:
        """Return the newest roots, oldest first."""
        return [self._need(path) for path in self._root_paths()]

    def bundle_files(self, channel: str, projection: Projection) -> dict[str, str]:
        """Return what a client of ``channel`` needs, by path: see ``pack_bundle``."""
        roles = ["snapshot", "targets", "hints", *(["full"] if projection == "full" else [])]
        paths = [
            *self._root_paths(),
            *(_metadata_path(role, self._version(role)) for role in roles),
            _metadata_path("timestamp", 0),
            self._target_file_path(
                "full" if projection == "full" else "targets", target_path(channel, projection)
            ),
            self._target_file_path("targets", f"issuers/{channel}.json"),
            self._target_file_path("hints", f"hints/{channel}.json"),
        ]
        return {path: self._need(path).decode() for path in paths}

    def expires_at(self, role: str) -> int:
        """Return when the newest metadata of ``role`` lapses, Unix seconds."""
        return int(self.open(role).signed.expires.timestamp())

    # ── parts ──────────────────────────────────────────────────────────────────────────────────

    def _root_paths(self) -> list[str]:
        newest = self._version("root")
        oldest = max(1, newest - ROOTS_IN_BUNDLE + 1)
        return [_metadata_path("root", version) for version in range(oldest, newest + 1)]

    def _need(self, path: str) -> bytes:
        data = self.read(path)
        if data is None:
            raise StoreError(f"the tree has no {path}")
        return data

    def _parse(self, path: str) -> Metadata[Any]:
        try:
            return Metadata[Any].from_bytes(self._need(path))
        except DeserializationError as exc:
            raise StoreError(f"{path} in the tree is damaged", code="tree_damaged") from exc

    def _lapses(self, role: str, within_s: Mapping[str, int]) -> bool:
        return self.expires_at(role) - self._now <= within_s[role]

    def _version(self, role: str) -> int:
        """Return the newest version of ``role``; 0 when there is none."""
        if role not in self._versions:
            self._versions[role] = self._find_version(role)
        return self._versions[role]

    def _find_version(self, role: str) -> int:
        if role == "root":
            version = 0
            while self._read(_metadata_path("root", version + 1)) is not None:
                version += 1
            return version
        if self._read(_metadata_path("timestamp", 0)) is None:
            return 0
        timestamp: Timestamp = self._parse(_metadata_path("timestamp", 0)).signed
        if role in ("timestamp", "snapshot"):
            return timestamp.version if role == "timestamp" else timestamp.snapshot_meta.version
        path = _metadata_path("snapshot", timestamp.snapshot_meta.version)
        snapshot: Snapshot = self._parse(path).signed
        meta = snapshot.meta.get(f"{role}.json")
        return meta.version if meta is not None else 0

    def _blank(self, role: str) -> Metadata[Any]:
        match role:
            case "root":
                return Metadata(Root())
            case "snapshot":
                return Metadata(Snapshot())
            case "timestamp":
                return Metadata(Timestamp(snapshot_meta=self.snapshot_info))
            case _:
                return Metadata(Targets())

    def _signers_of(self, role: str) -> Sequence[Signer]:
        signers = self._signers.get(DELEGATED.get(role, role), ())
        if not signers:
            raise StoreError(f"no key at hand to sign '{role}'", code="key_missing")
        return signers

    def _add(self, targets: Targets, path: str, document: Policy | Issuers | Hints) -> None:
        data = msgspec.json.encode(document)
        info = TargetFile.from_data(path, data, ["sha256"])
        targets.targets[path] = info
        self.written[f"targets/{info.get_prefixed_paths()[0]}"] = data

    def _target_file_path(self, role: str, path: str) -> str:
        info = self.targets(role).targets.get(path)
        if info is None:
            raise StoreError(f"'{role}' has no target {path}")
        return f"targets/{info.get_prefixed_paths()[0]}"


def _metadata_path(role: str, version: int) -> str:
    return "metadata/timestamp.json" if role == "timestamp" else f"metadata/{version}.{role}.json"


def _delegations(
    hints_keys: Sequence[Key], targets_keys: Sequence[Key], targets_threshold: int
) -> Delegations:
    roles = {
        "full": DelegatedRole(
            "full",
            [key.keyid for key in targets_keys],
            targets_threshold,
            terminating=True,
            paths=["full/*"],
        ),
        "hints": DelegatedRole(
            "hints", [key.keyid for key in hints_keys], 1, terminating=True, paths=["hints/*"]
        ),
    }
    return Delegations({key.keyid: key for key in (*targets_keys, *hints_keys)}, roles)
