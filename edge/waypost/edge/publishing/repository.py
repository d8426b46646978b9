"""The signed repository: which role says what, for how long, and how a new version is made.

Works on bytes by path and touches no disk; ``waypost.edge.publishing.publish`` reads and writes the
tree. Time and signers arrive as arguments. Roles and lifetimes follow the TUF specification, with
two delegated roles: ``hints``, whose online key can only reorder, and ``full``, which keeps what
the operator marked private out of everything that clients see, hashes included.
"""

# tuf spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import structs
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
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

from waypost.shared.contracts import (
    Hint,
    Hints,
    Issuers,
    Policy,
    decode_hints,
    decode_policy,
)
from waypost.shared.errors import StoreError
from waypost.shared.trust.bundle import Projection, target_path

__all__ = [
    "DELEGATED",
    "LIFETIME_S",
    "OFFLINE",
    "ROLES",
    "KeyChange",
    "ManifestRepository",
    "Read",
    "metadata_path",
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

# What people sign; the rest is signed by machines, day and night.
OFFLINE = ("root", "targets", "full")

# A bundle repeats this many of the newest roots; older clients fetch the rest by name.
ROOTS_IN_BUNDLE = 16

# Returns the bytes at a path of the tree, or None.
Read = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """Which keys sign for ``role`` from now on.

    Attributes:
        remove: key ids.
        threshold: how many must sign; ``None`` leaves it.
    """

    role: str
    add: tuple[Key, ...] = ()
    remove: tuple[str, ...] = ()
    threshold: int | None = None


class ManifestRepository(Repository):
    """The newest state of a repository, and what was made since it was read.

    Attributes:
        written: path → bytes, in the order in which they must become visible.
        signers: by role that owns keys.
    """

    def __init__(
        self,
        read: Read,
        signers: Mapping[str, Sequence[Signer]],
        *,
        now: int,
        lifetime_s: Mapping[str, int] = LIFETIME_S,
        drafting: bool = False,
    ) -> None:
        """Args:
        drafting: leave what is made unsigned, for others to sign.
        """
        self.written: dict[str, bytes] = {}
        self.signers = signers
        self._read = read
        self._drafting = drafting
        self._now = now
        self._lifetime_s = lifetime_s
        self._versions: dict[str, int] = {}

    def read(self, path: str) -> bytes | None:
        """Return the newest bytes at ``path``."""
        return self.written.get(path) or self._read(path)

    def published(self, path: str) -> bytes | None:
        """Return the bytes at ``path`` as they were before anything was made."""
        return self._read(path)

    # ── tuf.repository.Repository ──────────────────────────────────────────────────────────────

    def open(self, role: str) -> Metadata[Any]:
        """Return the newest metadata of ``role``, or unsigned metadata to begin with."""
        version = self._version(role)
        if version == 0:
            return self._blank(role)
        return self._parse(metadata_path(role, version))

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Give ``md`` the next version and a new expiry, sign it, and keep it."""
        md.signed.version = self._version(role) + 1
        md.signed.expires = datetime.fromtimestamp(self._now + self._lifetime_s[role], UTC)
        md.signatures.clear()
        for signer in () if self._drafting else self._signers_of(role):
            try:
                md.sign(signer, append=True)
            except UnsignedMetadataError as exc:
                raise StoreError(
                    f"key {signer.public_key.keyid[:8]} did not sign {role}: {exc.__cause__}",
                    code="key_unusable",
                ) from None
        self._versions[role] = md.signed.version
        self.written[metadata_path(role, md.signed.version)] = md.to_bytes()

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
                data = self._need(metadata_path(role, version))
                infos[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
        return infos

    @property
    def snapshot_info(self) -> MetaFile:
        """What the next timestamp says of the snapshot."""
        version = self._version("snapshot")
        data = self._need(metadata_path("snapshot", version))
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
        self.put_offline(channel, policy=policy, full=full, issuers=issuers, hints_keys=hints_keys)
        self.put_hints(channel, hints)
        self.do_snapshot()
        self.do_timestamp()

    def put_offline(
        self,
        channel: str,
        *,
        policy: Policy,
        full: Policy,
        issuers: Issuers,
        hints_keys: Sequence[Key],
    ) -> None:
        """Make the part of ``put`` that people sign."""
        with self.edit_targets() as targets:
            self._delegate(targets, hints_keys)
            self._add(targets, target_path(channel, "client"), policy)
            self._add(targets, f"issuers/{channel}.json", issuers)
        with self.edit_targets("full") as private:
            self._add(private, target_path(channel, "full"), full)

    def put_issuers(self, channel: str, issuers: Issuers) -> None:
        """Make the channel's tokens hold by these; its policy stays."""
        with self.edit_targets() as targets:
            self._add(targets, f"issuers/{channel}.json", issuers)

    def issuers(self, channel: str) -> Issuers:
        """Return by whose keys the channel's tokens hold now; raises StoreError if by nobody's."""
        data = self._need(self._target_file_path("targets", f"issuers/{channel}.json"))
        return msgspec.json.decode(data, type=Issuers)

    def change_keys(self, changes: Sequence[KeyChange]) -> None:
        """Make the root, and the targets that delegate, name other keys.

        Raises:
            StoreError: ``too_few_keys`` if a role could no longer be signed for.
        """
        roles = {change.role for change in changes}
        if roles - {"hints"}:
            with self.edit_root() as root:
                for change in changes:
                    if change.role != "hints":
                        _change(root, change)
        if self.has("targets") and roles & {"hints", "targets"}:
            hints_keys = {key.keyid: key for key in self.keys_of("hints")}
            for change in changes:
                if change.role == "hints":
                    hints_keys |= {key.keyid: key for key in change.add}
                    for keyid in change.remove:
                        hints_keys.pop(keyid, None)
            _check_enough("hints", len(hints_keys), 1)
            with self.edit_targets() as targets:
                self._delegate(targets, list(hints_keys.values()))
            if "targets" in roles:
                with self.edit_targets("full"):
                    pass

    def adopt(self, files: Mapping[str, bytes]) -> None:
        """Take new versions of what people sign, made and signed elsewhere."""
        self.written.update(files)
        for role in OFFLINE:
            version = self._version(role) + 1
            if metadata_path(role, version) in files:
                self._versions[role] = version

    def put_hints(self, channel: str, hints: Hints) -> None:
        """Make the channel's hints these; a snapshot and a timestamp must follow."""
        with self.edit_targets("hints") as targets:
            self._add(targets, f"hints/{channel}.json", hints)

    def refresh_online(self, *, within_s: Mapping[str, int]) -> None:
        """Sign anew what lapses within its role's ``within_s``, with the online keys alone."""
        # Without their key they lapse, and nothing but an order of preference is lost.
        if self.signers.get("hints") and (
            self._lapses("hints", within_s) or self._wants_signature("hints")
        ):
            with self.edit_targets("hints") as targets:
                for path in list(targets.targets):
                    hints = decode_hints(self._need(self._target_file_path("hints", path)))
                    self._add(targets, path, _lasting(hints))
        self.sign_online(within_s=within_s)

    def sign_online(self, *, within_s: Mapping[str, int] | None = None) -> None:
        """Make the snapshot and the timestamp that all else needs by now.

        Anew, too, if other keys than the last time must sign.
        """
        for role, make in (("snapshot", self.do_snapshot), ("timestamp", self.do_timestamp)):
            lapses = within_s is not None and self._lapses(role, within_s)
            make(force=lapses or self._wants_signature(role))

    def keys_of(self, role: str) -> list[Key]:
        """Return the keys whose signatures count for ``role`` now."""
        if role == "hints":
            delegations = self.targets().delegations if self.has("targets") else None
            if delegations is None or delegations.roles is None:
                return []
            return [delegations.keys[keyid] for keyid in delegations.roles["hints"].keyids]
        root = self.root()
        return [root.keys[keyid] for keyid in root.roles[role].keyids]

    def threshold_of(self, role: str) -> int:
        """Return how many of ``keys_of`` must sign."""
        return 1 if role == "hints" else self.root().roles[role].threshold

    def target_place(self, role: str, path: str) -> str | None:
        """Return where the newest target at ``path`` is; ``None`` if ``role`` has none."""
        info = self.targets(role).targets.get(path) if self.has(role) else None
        return None if info is None else f"targets/{info.get_prefixed_paths()[0]}"

    def channels(self) -> list[str]:
        """Return the channels that have a policy."""
        return sorted(
            path.removeprefix("policy/").removesuffix(".json")
            for path in self.targets().targets
            if path.startswith("policy/")
        )

    def version(self, role: str) -> int:
        """Return the newest version of ``role``; 0 when there is none."""
        return self._version(role)

    def has(self, role: str) -> bool:
        """Whether ``role`` has signed anything yet."""
        return self._version(role) > 0

    def has_full(self) -> bool:
        """Whether the full projection is at hand, not only known of."""
        version = self._version("full")
        return bool(version) and self.read(metadata_path("full", version)) is not None

    def root_paths(self) -> list[str]:
        """Return where the newest roots are, oldest first."""
        newest = self._version("root")
        oldest = max(1, newest - ROOTS_IN_BUNDLE + 1)
        return [metadata_path("root", version) for version in range(oldest, newest + 1)]

    def roots_in_bundle(self) -> list[bytes]:
        """Return the newest roots, oldest first."""
        return [self._need(path) for path in self.root_paths()]

    def bundle_files(self, channel: str, projection: Projection) -> dict[str, str]:
        """Return what a client of ``channel`` needs, by path: see ``pack_bundle``."""
        roles = ["snapshot", "targets", "hints", *(["full"] if projection == "full" else [])]
        paths = [
            *self.root_paths(),
            *(metadata_path(role, self._version(role)) for role in roles),
            metadata_path("timestamp", 0),
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

    def policy(self, channel: str) -> Policy:
        """Return the newest policy of ``channel``, as clients see it."""
        return decode_policy(
            self._need(self._target_file_path("targets", target_path(channel, "client")))
        )

    # ── parts ──────────────────────────────────────────────────────────────────────────────────

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

    def _wants_signature(self, role: str) -> bool:
        """Whether other keys than those at hand have signed ``role``."""
        if not self.has(role):
            return False
        counts = {key.keyid for key in self.keys_of(role)}
        at_hand = {signer.public_key.keyid for signer in self.signers.get(role, ())}
        signed = set(self.open(role).signatures)
        return not counts & at_hand <= signed <= counts

    def _delegate(self, targets: Targets, hints_keys: Sequence[Key]) -> None:
        targets.delegations = _delegations(
            hints_keys, self.keys_of(Targets.type), self.threshold_of(Targets.type)
        )

    def _version(self, role: str) -> int:
        if role not in self._versions:
            self._versions[role] = self._find_version(role)
        return self._versions[role]

    def _find_version(self, role: str) -> int:
        if role == "root":
            version = 0
            while self._read(metadata_path("root", version + 1)) is not None:
                version += 1
            return version
        if self._read(metadata_path("timestamp", 0)) is None:
            return 0
        timestamp: Timestamp = self._parse(metadata_path("timestamp", 0)).signed
        if role in ("timestamp", "snapshot"):
            return timestamp.version if role == "timestamp" else timestamp.snapshot_meta.version
        path = metadata_path("snapshot", timestamp.snapshot_meta.version)
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
        signers = self.signers.get(DELEGATED.get(role, role), ())
        if not signers:
            raise StoreError(f"no key at hand to sign '{role}'", code="key_missing")
        return signers

    def _add(self, targets: Targets, path: str, document: Policy | Issuers | Hints) -> None:
        data = msgspec.json.encode(document)
        info = TargetFile.from_data(path, data, ["sha256"])
        targets.targets[path] = info
        self.written[f"targets/{info.get_prefixed_paths()[0]}"] = data

    def _target_file_path(self, role: str, path: str) -> str:
        place = self.target_place(role, path)
        if place is None:
            raise StoreError(f"'{role}' has no target {path}")
        return place


def _lasting(hints: Hints) -> Hints:
    """Return what still holds half a day later: who is drained, not what was observed.

    Or a model that nobody measures any more would be demoted by one bad hour for ever.
    """
    drained = tuple(Hint(model=hint.model, drain=True) for hint in hints.models if hint.drain)
    return hints if drained == hints.models else structs.replace(hints, models=drained)


def metadata_path(role: str, version: int) -> str:
    """Return where ``version`` of ``role`` is in the repository."""
    return "metadata/timestamp.json" if role == "timestamp" else f"metadata/{version}.{role}.json"


def _change(root: Root, change: KeyChange) -> None:
    for key in change.add:
        root.add_key(key, change.role)
    role = root.roles[change.role]
    for keyid in change.remove:
        if keyid in role.keyids:
            root.revoke_key(keyid, change.role)
    role.threshold = change.threshold or role.threshold
    _check_enough(change.role, len(role.keyids), role.threshold)


def _check_enough(role: str, keys: int, threshold: int) -> None:
    if keys < threshold:
        raise StoreError(
            f"{role} would have {keys} keys, of which {threshold} must sign; add one first",
            code="too_few_keys",
        )


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
