"""Rotations by the hundred, with thieves and a hostile CDN: nobody is deceived or locked out.

A publisher publishes and replaces keys, as planned or in an emergency. Clients of every age ask
through a CDN that an attacker owns, who mixes all that was ever published, withholds, damages and
forges with stolen keys. Two things hold after each step:

- no client has ever taken a policy that the publisher did not sign, nor an older one than before;
- whoever is then shown the publisher's newest manifest takes it.

A longer run: ``WAYPOST_ROTATIONS=50000 pytest --timeout=0 tests/shared/trust/test_rotations_machine.py``.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Timestamp

from support.publisher import Publisher
from support.worlds import a_model, a_policy
from waypost.edge.publishing.repository import ManifestRepository
from waypost.shared.contracts import Hints
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper
from waypost.shared.trust.bundle import pack_bundle, unpack_bundle

# Three hundred; ten times as many with HYPOTHESIS_PROFILE=thorough.
ROTATIONS = int(os.environ.get("WAYPOST_ROTATIONS", 3 * settings().max_examples))
EXAMPLES, STEPS = 3, 40
ONLINE = ("timestamp", "snapshot", "hints")
BUNDLE_URL = "http://cdn/v1/prod/bundle.json"

replaced: list[str] = []  # the role of each key replaced, over all examples


class Client:
    """A client as old as its shipped root, which restarts now and then."""

    def __init__(self, root: bytes, cache: Path | None) -> None:
        self.root = root
        self.cache = cache
        self.newest = 0  # highest policy version it ever acted upon
        self.start()

    def start(self) -> None:
        self.keeper = ManifestKeeper(
            url=BUNDLE_URL, channel="prod", root=self.root, cache=self.cache
        )
        self.keeper.load()


def stands_behind(keeper: ManifestKeeper, bundle: bytes) -> bool:
    """Whether the newest root that ``keeper`` has seen still names who signed ``bundle``."""
    known = keeper._floor
    newest = max((name for name in known if name.endswith(".root")), key=lambda n: int(n[:-5]))
    root = Metadata[Root].from_bytes(known[newest].encode()).signed
    text = unpack_bundle(bundle)["metadata/timestamp.json"]
    timestamp = Metadata[Timestamp].from_bytes(text.encode())
    return root.get_verification_result(
        "timestamp", timestamp.signed_bytes, timestamp.signatures
    ).verified


class Rotations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.publisher = Publisher()
        self.signed: dict[bytes, int] = {}  # every policy the publisher stands behind
        self.published: list[bytes] = []
        self.states: list[dict[str, bytes]] = []
        self.stolen: dict[str, list[CryptoSigner]] = {}
        self.revoked: dict[str, list[CryptoSigner]] = {}
        self.abused = False
        self.clients: list[Client] = []
        self.served: Mapping[str, bytes] = {}
        self.http = httpx.Client(transport=httpx.MockTransport(self._cdn))

    def teardown(self) -> None:
        self.http.close()
        self.folder.cleanup()

    def _cdn(self, request: httpx.Request) -> httpx.Response:
        body = self.served.get(request.url.path)
        return (
            httpx.Response(404)
            if body is None
            else httpx.Response(200, stream=httpx.ByteStream(body))
        )

    # ── the publisher ──────────────────────────────────────────────────────────────────────────

    @initialize(past=st.lists(st.sampled_from(("root", "targets", *ONLINE)), max_size=60))
    def begin(self, past: list[str]) -> None:
        """Install clients, and let them sleep while the keys of ``past`` are replaced."""
        self.publish()
        self.client(on_disk=True)
        self.client(on_disk=False)
        for role in past:
            self._replace(role, overlap=False)
        self.publish()

    @rule()
    def publish(self) -> None:
        version = self.publisher.version + 1
        policy = a_policy(models=(*a_policy().models, a_model(f"of-{version}")))
        self.published.append(self.publisher.publish(policy=policy))
        self.states.append(dict(self.publisher.files))
        published = msgspec.structs.replace(policy, version=version, projection="client")
        self.signed[msgspec.json.encode(published)] = version

    @rule(
        roles=st.lists(st.sampled_from(("root", "targets", *ONLINE)), min_size=1, max_size=16),
        overlap=st.booleans(),
    )
    def rotate(self, roles: list[str], overlap: bool) -> None:
        for role in roles:
            self._replace(role, overlap=overlap)
        self.publish()

    def _replace(self, role: str, *, overlap: bool) -> None:
        replaced.append(role)
        held = self.publisher.signers[role]
        old, new = held[0], CryptoSigner.generate_ed25519()
        self.revoked.setdefault(role, []).append(old)
        if role == "hints":  # named by targets, not by the root
            self.publisher.signers[role] = [new]
            return
        # A new root needs the holders before and after.
        by = {**self.publisher.signers, "root": [*self.publisher.signers["root"]]}
        if role == "root":
            by["root"].append(new)
        steps = (("add",), ("revoke",)) if overlap else (("add", "revoke"),)
        for step in steps:
            repository = self.publisher.repository(signers=by)
            with repository.edit_root() as root:
                if "add" in step:
                    root.add_key(new.public_key, role)
                if "revoke" in step:
                    root.revoke_key(old.public_key.keyid, role)
            self.publisher.save(repository)
            self.publisher.signers[role] = [*held[1:], new]
            if overlap and step == ("add",):
                self.publish()

    def _recover(self) -> None:
        """Replace the online keys, as after a theft."""
        for role in ONLINE:
            self._replace(role, overlap=False)
        self.stolen.clear()
        self.abused = False
        self.publish()

    # ── the clients ────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.clients) < 5)
    @rule(on_disk=st.booleans())
    def client(self, on_disk: bool) -> None:
        """Install a client that ships with the newest root."""
        roots = [path for path in self.publisher.files if path.endswith(".root.json")]
        cache = Path(self.folder.name) / f"{len(self.clients)}" if on_disk else None
        self.clients.append(Client(self.publisher.files[roots[-1]], cache))

    @rule(who=st.integers(0, 99))
    def restart(self, who: int) -> None:
        client = self.clients[who % len(self.clients)]
        if client.cache is not None:
            client.start()

    @rule(who=st.integers(0, 99))
    def is_shown_the_truth(self, who: int) -> None:
        if self.abused:
            self._recover()
        client = self.clients[who % len(self.clients)]
        self._serve(unpack_bundle(self.published[-1]))
        client.keeper.refresh(self.http)
        assert client.keeper.current is not None
        assert client.keeper.current.policy.version == self.publisher.version
        assert client.keeper.is_fresh(time.time())

    def _serve(self, files: Mapping[str, str], *, without: frozenset[str] = frozenset()) -> None:
        tree = {f"/{path}": data for path, data in self.publisher.files.items()}
        self.served = {
            **{path: data for path, data in tree.items() if path not in without},
            "/v1/prod/bundle.json": pack_bundle(files),
        }

    # ── the attacker ───────────────────────────────────────────────────────────────────────────

    def _attack(self, who: int, files: Mapping[str, str], *, hide: bool = False) -> None:
        client = self.clients[who % len(self.clients)]
        roots = frozenset(f"/{path}" for path in self.publisher.files if ".root." in path)
        self._serve(files, without=roots if hide else frozenset())
        try:
            client.keeper.refresh(self.http)
        except TrustError as refusal:
            note(refusal.code)

    @rule(who=st.integers(0, 99), which=st.integers(0, 999), hide=st.booleans())
    def replays(self, who: int, which: int, hide: bool) -> None:
        self._attack(who, unpack_bundle(self.published[which % len(self.published)]), hide=hide)

    @rule(who=st.integers(0, 99), data=st.data())
    def mixes(self, who: int, data: st.DataObject) -> None:
        """Serve each file of one publication from any other, or not at all."""
        picks = st.integers(0, len(self.published) - 1)
        one, other = (unpack_bundle(self.published[data.draw(picks)]) for _ in range(2))
        files = {**one, **other}
        for path in data.draw(st.sets(st.sampled_from(sorted(files)), max_size=6)):
            if data.draw(st.booleans()):
                del files[path]
            else:
                files[path] = one.get(path, "{}")
        self._attack(who, files)

    @rule()
    def steals(self) -> None:
        """Take the keys of a machine that is online, all that are on it."""
        self.stolen = {role: list(self.publisher.signers[role]) for role in ONLINE}

    @rule(
        who=st.integers(0, 99),
        back=st.integers(0, 5),
        turns=st.integers(1, 4),
        robbery=st.booleans(),
    )
    def forges(self, who: int, back: int, turns: int, robbery: bool) -> None:
        """Sign a past state anew with what was stolen, and whatever else with keys of its own."""
        if robbery:
            self.steals()
        mine = [CryptoSigner.generate_ed25519()]
        state = dict(self.states[max(0, len(self.states) - 1 - back)])
        roots = {path: data for path, data in self.publisher.files.items() if ".root." in path}
        keys = {role: self.stolen.get(role, mine) for role in ("root", "targets", *ONLINE)}
        shadow = {**state, **roots}
        for _ in range(turns):
            repository = ManifestRepository(shadow.get, keys, now=int(time.time()))
            repository.do_snapshot(force=True)
            repository.do_timestamp()
            shadow.update(repository.written)
        self.abused = self.abused or bool(self.stolen)
        files = ManifestRepository(shadow.get, {}, now=0).bundle_files("prod", "client")
        self._attack(who, files)

    @rule(who=st.integers(0, 99), revoked=st.booleans())
    def forges_a_policy(self, who: int, revoked: bool) -> None:
        """Sign a policy of its own with keys of its own, or with authors' keys of the past."""
        mine = [CryptoSigner.generate_ed25519()]
        authors = self.revoked.get("targets", [])[-1:] if revoked else []
        # Who has not heard of the revocation cannot know better; nobody is asked to.
        if authors and not self._has_newest_root(who):
            return
        keys = {role: self.stolen.get(role, mine) for role in ("root", *ONLINE)}
        evil = a_policy(models=(a_model("small", cents_in=0),), routes=a_policy().routes[2:])
        evil = msgspec.structs.replace(
            evil,
            version=self.publisher.version + 9,
            models=(*evil.models, a_model("large")),
            last_resort=(),
        )
        repository = ManifestRepository(
            self.publisher.files.get, {**keys, "targets": authors or mine}, now=int(time.time())
        )
        repository.put(
            "prod",
            policy=msgspec.structs.replace(evil, projection="client"),
            full=evil,
            issuers=self.publisher.issuers,
            hints=Hints(channel="prod", version=1, issued_at=0),
            hints_keys=[mine[0].public_key],
        )
        self.abused = self.abused or bool(self.stolen)
        shadow = {**self.publisher.files, **repository.written}
        files = ManifestRepository(shadow.get, {}, now=0).bundle_files("prod", "client")
        self._attack(who, files)

    @rule(who=st.integers(0, 99), held=st.integers(0, 2))
    def forges_a_root(self, who: int, held: int) -> None:
        """Put a root of its own on top: signed by itself, and by one past holder of two."""
        mine = [CryptoSigner.generate_ed25519() for _ in range(2)]
        past = self.revoked.get("root", [])[-1:] if held else []
        one = self.publisher.signers["root"][:1] if held == 2 else past
        keys = {**dict.fromkeys(("targets", *ONLINE), mine[:1]), "root": [*mine, *one]}
        shadow = dict(self.publisher.files)
        repository = ManifestRepository(shadow.get, keys, now=int(time.time()))
        with repository.edit_root() as root:
            for role in ("root", "targets", "snapshot", "timestamp"):
                for signer in mine:
                    root.add_key(signer.public_key, role)
        repository.do_snapshot(force=True)
        repository.do_timestamp()
        shadow.update(repository.written)
        files = ManifestRepository(shadow.get, {}, now=0).bundle_files("prod", "client")
        self._attack(who, files)

    @rule(who=st.integers(0, 99))
    def impersonates(self, who: int) -> None:
        """Serve a whole repository of its own."""
        self._attack(who, unpack_bundle(Publisher().publish(version=99)), hide=True)

    def _has_newest_root(self, who: int) -> bool:
        current = self.clients[who % len(self.clients)].keeper.current
        newest = sum(".root." in path for path in self.publisher.files)
        return current is not None and current.versions["root"] == newest

    # ── what holds ─────────────────────────────────────────────────────────────────────────────

    @invariant()
    def nobody_acts_upon_what_is_not_the_publisher_s(self) -> None:
        for client in self.clients:
            current = client.keeper.current
            if current is not None:
                assert current.policy_bytes in self.signed
                assert stands_behind(client.keeper, current.bundle)
                assert current.policy.version >= client.newest
                client.newest = current.policy.version


# Thirty times what it takes: a busy machine is slow, and a client that hangs is a fault.
@pytest.mark.timeout(300 * (settings().max_examples // 100))
def test_no_client_is_deceived_or_locked_out_in_hundreds_of_rotations() -> None:
    machine = Rotations.TestCase
    machine.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        # Shrinking takes minutes; a longer run has them.
        phases=list(Phase) if "WAYPOST_ROTATIONS" in os.environ else (Phase.reuse, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    while len(replaced) < ROTATIONS:
        machine().runTest()
