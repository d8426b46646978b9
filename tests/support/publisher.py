"""A publisher in memory, with real keys: what it signs, any TUF client verifies."""

import time
from collections.abc import Mapping, Sequence

import msgspec
from securesystemslib.signer import CryptoSigner

from support.worlds import a_policy
from waypost.edge.publishing.repository import LIFETIME_S, ROLES, ManifestRepository
from waypost.shared.contracts import Hints, Issuers, Policy
from waypost.shared.trust import Projection
from waypost.shared.trust.bundle import pack_bundle

THRESHOLDS = {"root": 2, "targets": 1, "hints": 1, "snapshot": 1, "timestamp": 1}


class Publisher:
    """Publishes manifests of one channel; time is the machine's, which is the clock tuf reads.

    Attributes:
        root: TUF root version 1, to hand to whoever verifies.
        files: the tree so far, by path.
        signers: by role; tests that steal a key take it from here.
    """

    def __init__(self, *, policy: Policy | None = None, channel: str = "prod") -> None:
        self.channel = channel
        self.policy = policy or a_policy(channel=channel)
        self.issuers = Issuers(channel=channel, version=1, issued_at=int(time.time()))
        self.version = 0
        self.files: dict[str, bytes] = {}
        self.signers: dict[str, list[CryptoSigner]] = {
            role: [CryptoSigner.generate_ed25519() for _ in range(3 if role == "root" else 1)]
            for role in ROLES
        }
        repository = self.repository()
        repository.create_root(
            {role: [signer.public_key for signer in held] for role, held in self.signers.items()},
            THRESHOLDS,
        )
        self.save(repository)
        self.root = self.files["metadata/1.root.json"]

    def publish(
        self,
        *,
        version: int | None = None,
        expires: int | None = None,
        policy: Policy | None = None,
        full: Policy | None = None,
        issuers: Issuers | None = None,
        hints: Hints | None = None,
        lifetime_s: Mapping[str, int] = LIFETIME_S,
        projection: Projection = "client",
    ) -> bytes:
        """Return the bundle of a new publication.

        Args:
            version: of policy and issuers; one more than the last unless said.
            expires: when the timestamp lapses, Unix seconds; a past instant makes it expired.
            policy: as clients see it; the last one unless said.
            lifetime_s: seconds from now by role.
        """
        now = int(time.time())
        self.version = version or self.version + 1
        self.policy = policy or self.policy
        self.issuers = issuers or self.issuers
        lifetimes = (
            {**lifetime_s} if expires is None else {**lifetime_s, "timestamp": expires - now}
        )
        repository = self.repository(lifetime_s=lifetimes)
        numbered = msgspec.structs.replace
        repository.put(
            self.channel,
            policy=numbered(self.policy, version=self.version, projection="client"),
            full=numbered(full or self.policy, version=self.version, projection="full"),
            issuers=numbered(self.issuers, version=self.version),
            hints=hints or Hints(channel=self.channel, version=self.version, issued_at=now),
            hints_keys=[signer.public_key for signer in self.signers["hints"]],
        )
        self.save(repository)
        return self.bundle(projection)

    def repository(
        self,
        *,
        lifetime_s: Mapping[str, int] = LIFETIME_S,
        signers: Mapping[str, Sequence[CryptoSigner]] | None = None,
    ) -> ManifestRepository:
        """Return the repository for edits beyond ``publish``; ``save`` what it writes."""
        return ManifestRepository(
            self.files.get, signers or self.signers, now=int(time.time()), lifetime_s=lifetime_s
        )

    def save(self, repository: ManifestRepository) -> None:
        """Add what ``repository`` wrote to the tree."""
        self.files.update(repository.written)

    def bundle(self, projection: Projection = "client") -> bytes:
        """Return the bundle of the tree as it is."""
        return pack_bundle(self.repository().bundle_files(self.channel, projection))

    def replace_key(self, role: str) -> None:
        """Make a new root, signed by the holders of the old one, with a new key for ``role``."""
        repository = self.repository()
        new = CryptoSigner.generate_ed25519()
        with repository.edit_root() as root:
            for signer in self.signers[role]:
                root.revoke_key(signer.public_key.keyid, role)
            root.add_key(new.public_key, role)
        self.signers[role] = [new]
        self.save(repository)
