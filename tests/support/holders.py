"""People who hold signing keys of their own, and a project that none of them can sign alone."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Signer

from waypost.edge.commands.init_project import init_project
from waypost.edge.project.project import Project
from waypost.edge.publishing.draft import Draft, read_draft, sign_draft
from waypost.edge.publishing.publish import Published, apply_drafts, draft_publication, draft_root
from waypost.edge.publishing.signing_keys import (
    ONLINE_ROLES,
    KeyEntry,
    create_keys,
    load_keyring,
    load_signers,
)


@dataclass
class Holder:
    """One person with one key, which nobody else ever sees."""

    name: str
    role: str
    signer: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)

    @property
    def keyid(self) -> str:
        return self.signer.public_key.keyid

    def entry(self) -> KeyEntry:
        """What the project lists of the key: its public half."""
        public = self.signer.public_key.to_dict()
        return KeyEntry(
            name=self.name, role=self.role, keyid=self.keyid, created_at=0, public=public
        )

    def sign(self, draft: Draft, *, root: bytes | None) -> Draft:
        """Read the draft from the root this person trusts, and sign their copy."""
        return sign_draft(draft, read_draft(draft, root=root).asked, [self.signer])


class SharedProject:
    """Root: two of alice, bob and carol. Targets: dave and erin both. Online keys: here."""

    def __init__(self, directory: Path) -> None:
        init_project(directory, key=Ed25519PrivateKey.generate())
        self.project = Project(directory)
        self.alice, self.bob, self.carol = (Holder(n, "root") for n in ("alice", "bob", "carol"))
        self.dave, self.erin = Holder("dave", "targets"), Holder("erin", "targets")
        held = [h.entry() for h in (self.alice, self.bob, self.carol, self.dave, self.erin)]
        thresholds, now = {"targets": 2}, int(time.time())
        keyring = create_keys(
            self.project, passphrase=None, now=now, held=held, thresholds=thresholds
        )
        first = draft_root(self.project, keyring, thresholds=thresholds, now=now)
        self.apply(self.alice.sign(first, root=None), self.bob.sign(first, root=None))

    @property
    def root(self) -> bytes:
        return self.project.root.read_bytes()

    def online(self) -> dict[str, list[Signer]]:
        keyring = load_keyring(self.project.keys)
        return load_signers(keyring, self.project.keys, ONLINE_ROLES, passphrase=None)

    def draft(self) -> Draft:
        """What policy.yaml and issuers.yaml say, for dave and erin to sign."""
        return draft_publication(
            self.project,
            channel="prod",
            hints_keys=load_keyring(self.project.keys).of("hints"),
            now=int(time.time()),
        )

    def apply(self, *drafts: Draft) -> dict[str, Published]:
        return apply_drafts(self.project, drafts, signers=self.online(), now=int(time.time()))

    def publish(self) -> Published:
        draft = self.draft()
        signed = (holder.sign(draft, root=self.root) for holder in (self.dave, self.erin))
        return self.apply(*signed)["prod"]

    def tree(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.project.directory)): path.read_bytes()
            for folder in (self.project.public, self.project.private)
            for path in folder.rglob("*")
            if path.is_file()
        }
