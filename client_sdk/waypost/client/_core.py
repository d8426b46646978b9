"""What ``Waypost`` and ``AsyncWaypost`` share: everything but the line that awaits."""

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from msgspec import structs

from waypost.client._choose import Choice, Chooser, Freshness, base_of, endpoint_order
from waypost.client._events import Event, EventHook, FactsElsewhere, Refreshed
from waypost.client._facts import Said, current_facts, current_session, merge
from waypost.client._latency import LatencyTracker
from waypost.client._network import Network, RetryBudget
from waypost.client._refresh import Refresher
from waypost.client._sessions import Sessions
from waypost.shared.contracts import Declared, Endpoint, Facts, Measured, Policy
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.engine import decide
from waypost.shared.decision.reading import TextReader
from waypost.shared.errors import TrustError
from waypost.shared.requests.apis import Request, measure
from waypost.shared.tokens.unverified import UnverifiedClaims

if TYPE_CHECKING:
    import httpx

    from waypost.shared.trust import LapseTeller

__all__ = ["Core", "Manifest", "ManifestSource"]

_log = logging.getLogger("waypost")

# Five gateway errors in a row, as Envoy ejects; a validator that cannot even be connected to
# costs every request a connect timeout, so one is enough.
EJECT_MODEL_AFTER, EJECT_ENDPOINT_AFTER = 5, 1

# A refresh is one small GET from a CDN; a slow answer is as bad as none.
CONNECT_TIMEOUT_S, REFRESH_TIMEOUT_S = 1.0, 3.0

ENDPOINT_MS = 50.0  # a round trip within a continent
ENDPOINT_TAU_S = 600.0  # networks change by the hour, not by the second as load does
# Within these an endpoint is as near as the nearest; what is farther steps back.
NEAR_TIMES, NEAR_MS = 1.5, 20.0
DOUBT_S = 300.0  # what was not heard of for this long is tried before it is relied on
RACE_GAP_S = 1.0

# Stands for "wherever the manifest says" while no endpoint is known. RFC 2606: never resolves.
PLACEHOLDER = "https://validator.waypost.invalid"


class Manifest(Protocol):
    """A verified manifest, as ``waypost.shared.trust.Trusted``."""

    @property
    def policy(self) -> Policy: ...
    @property
    def compiled(self) -> CompiledPolicy: ...
    @property
    def expires_at(self) -> int: ...


class ManifestSource(Protocol):
    """Where manifests come from, as ``waypost.shared.trust.ManifestKeeper``."""

    @property
    def current(self) -> Manifest | None: ...
    @property
    def last_error(self) -> TrustError | None: ...
    def load(self) -> Manifest | None:
        """Return what is kept from an earlier run."""
        ...

    def refresh(self, client: "httpx.Client", /) -> bool:
        """Ask once for a newer manifest; raises TrustError, keeping the last good one."""
        ...


class _Snapshot:
    """One manifest in use. Replaced whole, so readers need no lock."""

    __slots__ = ("chooser", "endpoints", "expires_at", "freshness", "manifest", "version")

    def __init__(self, manifest: Manifest, chooser: Chooser, freshness: Freshness) -> None:
        self.manifest = manifest
        self.chooser = chooser
        self.freshness: Freshness = freshness
        self.expires_at = manifest.expires_at
        self.version = manifest.policy.version
        self.endpoints: dict[str | None, tuple[tuple[int, str], ...]] = {}  # by the caller's region


class Core:
    """The state of one client: its manifest, what it learned of latency, what it declares."""

    def __init__(
        self,
        source: ManifestSource,
        *,
        base_url: str | None,
        declared: Said,
        refresh_interval_s: float | None,
        network: Network | None = None,
        on_event: EventHook | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.now = now
        self.monotonic = monotonic
        self._rng = rng
        self._source = source
        self._declared = merge(Declared(), declared)
        self.models = LatencyTracker(eject_after=EJECT_MODEL_AFTER, rng=rng)
        self.endpoints = LatencyTracker(
            eject_after=EJECT_ENDPOINT_AFTER,
            rng=rng,
            tau_s=ENDPOINT_TAU_S,
            gross=float("inf"),  # a first answer's time has handshakes in it
        )
        self._lapse_teller: LapseTeller | None = None
        self._blocks: dict[object, tuple[int, tuple[str, ...]]] = {}
        self._warned: set[tuple[str, ...]] = set()
        self.retries = RetryBudget()
        self.network = network or Network()
        self._on_event = on_event
        self._raced_s = float("-inf")
        self.sessions = Sessions()
        self._base = None if base_url is None else base_of(base_url)
        self._seed = str(rng())
        # What callers may send to; nothing else ever sees a token.
        self._bases: tuple[str, ...] = (self._base or PLACEHOLDER,)
        self._snapshot: _Snapshot | None = None
        self._http: httpx.Client | None = None
        self._refreshing = threading.Lock()
        self._quiet = False
        self._refresher: Refresher | None = None
        if refresh_interval_s is not None:
            # Here, not in the thread: openai looks at ``sys.modules["httpx"]`` at each request,
            # and fails on a module that another thread is still importing.
            import_module("httpx")
            self._refresher = Refresher(
                self.refresh, interval_s=refresh_interval_s, monotonic=monotonic, rng=rng
            )
        self.after_fork: list[Callable[[], None]] = []
        source.load()
        self._swap("cached")
        _alive.add(self)

    # ── the manifest ───────────────────────────────────────────────────────────────────────────

    @property
    def freshness(self) -> Freshness:
        snapshot = self._valid()
        return "none" if snapshot is None else snapshot.freshness

    @property
    def manifest_version(self) -> int | None:
        snapshot = self._snapshot
        return None if snapshot is None else snapshot.version

    @property
    def last_error(self) -> TrustError | None:
        return self._source.last_error

    def _valid(self) -> _Snapshot | None:
        snapshot = self._snapshot
        return snapshot if snapshot is not None and self.now() < snapshot.expires_at else None

    def refresh(self) -> bool:
        """Ask once for a newer manifest; whether that went well. Never raises for its sake."""
        with self._refreshing:
            import httpx

            if self._http is None or self._http.is_closed:
                self._http = httpx.Client(
                    timeout=httpx.Timeout(REFRESH_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                    proxy=self.network.proxy,
                    verify=self.network.verify,
                )
            error: str | None = None
            try:
                self._source.refresh(self._http)
            except TrustError as exc:
                error = exc.code
            self._swap("fresh" if error is None else "stale")
        self._tell_refreshed(error)
        return error is None

    def _tell_refreshed(self, error: str | None) -> None:
        left = self.expires_in_s()
        role = min(left, key=lambda role: left[role], default=None)
        self.tell(
            Refreshed(
                manifest_version=self.manifest_version,
                error=error,
                expires_in_s=None if role is None else left[role],
                expires_role=role,
            )
        )
        if not left:
            return
        from waypost.shared.trust import LapseTeller, lapses

        self._lapse_teller = self._lapse_teller or LapseTeller()
        urgent = [each for each in lapses(self._expires(), self.now()) if each.is_urgent]
        for lapse in self._lapse_teller.news(urgent):
            _log.warning("of the manifest, %s", lapse)

    def _expires(self) -> Mapping[str, int]:
        """Return role → Unix seconds; of a source that knows no roles, one for all."""
        snapshot = self._snapshot
        if snapshot is None:
            return {}
        manifest = snapshot.manifest
        expires: Mapping[str, int] | None = getattr(manifest, "expires", None)
        return {"manifest": manifest.expires_at} if expires is None else expires

    def expires_in_s(self) -> dict[str, float]:
        """Return for how long the signature of each role still holds."""
        now = self.now()
        return {role: at - now for role, at in self._expires().items()}

    def tell(self, event: Event) -> None:
        """Let the app's hook know."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            _log.exception("a hook for events failed")

    def _swap(self, freshness: Freshness) -> None:
        manifest, before = self._source.current, self._snapshot
        if manifest is None:
            self._snapshot = None  # none came yet, or a newer root took back who signed it
            return
        if before is not None and before.manifest is manifest:
            before.freshness = freshness
            return
        chooser = Chooser(manifest.compiled, self.models, self._rng)
        self._snapshot = _Snapshot(manifest, chooser, freshness)
        # Those of earlier manifests stay: a client made then still sends to them.
        bases = {*self._bases, *(base_of(endpoint.url) for endpoint in manifest.policy.endpoints)}
        self._bases = tuple(sorted(bases, key=len, reverse=True))
        self.models.forget(self.models.estimates.keys() - manifest.compiled.models.keys())

    def heard_of(self, version: int) -> None:
        """Learn that a manifest of ``version`` exists."""
        if self._refresher is not None and version > (self.manifest_version or 0):
            self._refresher.wake()

    def network_changed(self) -> None:
        """Forget what was learned of endpoints, and ask for the manifest now."""
        self.endpoints.forget(self.endpoints.estimates)
        self.network.forget()
        if self._refresher is not None:
            self._refresher.wake(at_once=True)

    def close(self) -> None:
        if self._refresher is not None:
            self._refresher.stop()
        with self._refreshing:
            if self._http is not None:
                self._http.close()
                self._http = None

    def before_fork(self) -> None:
        """Let a refresh that is under way finish.

        A child would inherit it half done: locks held for ever, an import never completed.
        """
        self._quiet = self._refreshing.acquire(timeout=REFRESH_TIMEOUT_S)

    def fork_in_parent(self) -> None:
        """Refresh again."""
        if self._quiet:
            self._refreshing.release()

    def fork_in_child(self) -> None:
        """Start anew what a child does not inherit: threads, connections, locks of others."""
        self._refreshing = threading.Lock()
        self._http = None
        if self._refresher is not None:
            self._refresher.after_fork()
        for mend in self.after_fork:
            mend()

    # ── what requests teach ────────────────────────────────────────────────────────────────────

    def touch(self) -> None:
        """Say that the client is in use, so that its manifest is kept fresh."""
        if self._refresher is not None:
            self._refresher.touch(self.monotonic())

    def knows(self, model: str) -> bool:
        """Whether a valid manifest lists ``model``."""
        snapshot = self._valid()
        return snapshot is not None and model in snapshot.chooser.policy.models

    def _chooser_of(self, model: str) -> Chooser | None:
        # None for what the manifest does not list: an answer must not make estimates without end.
        snapshot = self._snapshot
        if snapshot is None or model not in snapshot.chooser.policy.models:
            return None
        return snapshot.chooser

    def waited_for(self, model: str, ms: float, *, region: str | None = None) -> None:
        """Learn the time to first token of ``model``, for a caller in ``region``."""
        chooser = self._chooser_of(model)
        if chooser is not None:
            chooser.waited(model, ms, region=region, now_s=self.monotonic())

    def took(
        self, model: str, *, tokens: int, ttft_ms: float | None, ms: float, region: str | None
    ) -> None:
        """Learn how long an answer of ``model`` took; see ``Chooser.took``."""
        chooser = self._chooser_of(model)
        if chooser is not None:
            chooser.took(
                model,
                tokens=tokens,
                ttft_ms=ttft_ms,
                ms=ms,
                region=region,
                now_s=self.monotonic(),
            )

    def failed_model(
        self, model: str, elapsed_ms: float, *, retry_after_s: int = 0, region: str | None = None
    ) -> None:
        """Learn that ``model`` did not answer."""
        chooser = self._chooser_of(model)
        if chooser is not None:
            self.models.fail(
                model,
                elapsed_ms=elapsed_ms,
                expected_ms=chooser.expected_ttft_ms(model, region),
                now_s=self.monotonic(),
                retry_after_s=retry_after_s,
            )

    def reached_endpoint(self, base: str, round_trip_ms: float | None) -> None:
        """Learn that the validator at ``base`` answered, and how far it is."""
        self.endpoints.succeed(base)
        self.retries.earn()
        if round_trip_ms is not None:
            self.endpoints.observe(
                base, round_trip_ms, expected_ms=ENDPOINT_MS, now_s=self.monotonic()
            )
        if self._refresher is not None and self.last_error is not None:
            # The network is back, or has changed: no need to sit out the back-off.
            self._refresher.wake()

    def in_doubt(self, targets: Sequence[str]) -> bool:
        """Whether to see who answers before sending: nobody has lately, and there is a choice."""
        now_s = self.monotonic()
        if len(targets) < 2 or now_s - self._raced_s < RACE_GAP_S:
            return False
        estimate = self.endpoints.estimates.get(targets[0])
        if estimate is not None and now_s - estimate.at_s < DOUBT_S:
            return False
        self._raced_s = now_s
        return True

    def raced(self, found: Mapping[str, float | None]) -> None:
        """Learn who was reached, and in how many ms."""
        for base, ms in found.items():
            if ms is None:
                self.failed_endpoint(base, 0.0)
            else:
                self.endpoints.observe(base, ms, expected_ms=ENDPOINT_MS, now_s=self.monotonic())

    def failed_endpoint(self, base: str, elapsed_ms: float) -> None:
        """Learn that the validator at ``base`` cannot be reached."""
        self.endpoints.fail(
            base, elapsed_ms=elapsed_ms, expected_ms=ENDPOINT_MS, now_s=self.monotonic()
        )

    def note_session(self, name: str, model: str, input_tokens: int) -> None:
        """Learn that ``model`` has just read so much of a conversation."""
        self.sessions.note(name, model, input_tokens, now_s=self.monotonic())

    # ── choosing ───────────────────────────────────────────────────────────────────────────────

    def measure(
        self, request: Request, body: bytes, endpoint: str = "chat.completions"
    ) -> Measured:
        snapshot = self._snapshot
        reader = NOTHING_ASKED if snapshot is None else snapshot.chooser.policy.reader
        return measure(endpoint, request, body=body, reader=reader)

    @contextmanager
    def open_block(self, data: tuple[str, ...]) -> Generator[None]:
        """Know of a block in this thread that declares ``data``, for as long as it is open."""
        if not data:
            yield
            return
        block = object()
        self._blocks[block] = (threading.get_ident(), data)
        try:
            yield
        finally:
            self._blocks.pop(block, None)

    def miss_blocks(self, declared: Declared) -> None:
        """Tell of a request that lacks what a block of another thread declares."""
        if not self._blocks:
            return
        here = threading.get_ident()
        elsewhere = {
            name for thread, data in tuple(self._blocks.values()) if thread != here for name in data
        }
        missing = tuple(sorted(elsewhere.difference(declared.data_classes)))
        if not missing:
            return
        if missing not in self._warned:
            self._warned.add(missing)
            _log.warning(
                "a request goes out without the data classes %s, which a facts block in another"
                " thread declares: threads do not inherit blocks; use Waypost.bound",
                ", ".join(missing),
            )
        self.tell(FactsElsewhere(data=missing))

    def bound(self, more: Said, session: str | None) -> "BoundCore":
        """Return this very core, whose every request also declares ``more``."""
        return BoundCore(self, more, session)

    def session(self) -> str | None:
        """Return the conversation that a request made here belongs to."""
        return current_session()

    def declared(self, more: Said | None = None, *, session: str | None = None) -> Declared:
        here = current_facts(self._declared)
        declared = here if more is None else merge(here, more)
        session = session or self.session()
        if session is None:
            return declared
        return structs.replace(declared, session=self.sessions.get(session, now_s=self.monotonic()))

    def choose(
        self,
        measured: Measured,
        declared: Declared,
        claims: UnverifiedClaims | None,
        *,
        without_claims: str,
    ) -> Choice:
        """Return the choice. Pure, but for reading two clocks and the latency tracker.

        Args:
            without_claims: the reason to give when there are no ``claims``.
        """
        now, now_s = self.now(), self.monotonic()
        if self._refresher is not None:
            self._refresher.touch(now_s)
        snapshot = self._snapshot
        region = None if claims is None else claims.signed.region
        if snapshot is None or now >= snapshot.expires_at:
            return Choice(
                reason="no_manifest" if snapshot is None else "manifest_expired",
                freshness="none",
                endpoint=self._first_endpoint(region),
                manifest_version=None if snapshot is None else snapshot.version,
            )
        endpoint = self._first_endpoint(region)
        if claims is None:
            return Choice(
                reason=without_claims,
                freshness=snapshot.freshness,
                endpoint=endpoint,
                manifest_version=snapshot.version,
            )
        chooser = snapshot.chooser
        facts = Facts(now=int(now), signed=claims.signed, measured=measured, declared=declared)
        decision = decide(chooser.policy, facts)
        model, otherwise, reason = None, None, decision.reason
        ttft_ms = predicted_ms = None
        if decision.model is not None:
            model, otherwise, reason = chooser.pick(decision, facts, now_s)
            ttft_ms, predicted_ms = chooser.predicted_ms(model, facts, now_s)
        return Choice(
            model=model,
            reason=reason,
            route=decision.route,
            endpoint=endpoint,
            freshness=snapshot.freshness,
            manifest_version=snapshot.version,
            otherwise=otherwise,
            predicted_ttft_ms=ttft_ms,
            predicted_ms=predicted_ms,
            facts=facts,
            decision=decision,
            policy=chooser.policy,
        )

    # ── endpoints ──────────────────────────────────────────────────────────────────────────────

    @property
    def base_url(self) -> str:
        """Where to point an API client: any of ours will do, the transport sends it on."""
        return (self._base or next(iter(self.targets(None)), PLACEHOLDER)) + "/v1"

    def api_path(self, url: str) -> str | None:
        """Return the path and query of a request that is for a validator, else ``None``."""
        for base in self._bases:
            if url.startswith(base + "/"):
                return url[len(base) :]
        return None

    def targets(self, region: str | None) -> tuple[str, ...]:
        """Return the bases to try, best first: the caller's region, the near ones, the failing."""
        ordered = self._ordered(region)
        if len(ordered) < 2 or not self.endpoints.estimates:
            return tuple(base for _, base in ordered)
        now_s, tracker = self.monotonic(), self.endpoints
        waits = {base: tracker.ttft_ms(base, ENDPOINT_MS, now_s) for _, base in ordered}
        nearest: dict[int, float] = {}
        for rank, base in ordered:
            nearest[rank] = min(nearest.get(rank, waits[base]), waits[base])

        def place(ranked: tuple[int, str]) -> tuple[bool, int, bool]:
            rank, base = ranked
            far = waits[base] > nearest[rank] * NEAR_TIMES + NEAR_MS
            return tracker.is_ejected(base, now_s), rank, far

        # Sorting is stable: of those that are as near, a client keeps to the one that it has.
        return tuple(base for _, base in sorted(ordered, key=place))

    def _ordered(self, region: str | None) -> tuple[tuple[int, str], ...]:
        own = () if self._base is None else ((OWN_RANK, self._base),)
        snapshot = self._snapshot
        if snapshot is None:
            return own
        # Of an expired manifest too: the addresses were signed, and the token is for them.
        ordered = snapshot.endpoints.get(region)
        if ordered is None:
            listed: tuple[Endpoint, ...] = snapshot.manifest.policy.endpoints
            ordered = endpoint_order(listed, region=region, seed=self._seed)
            if own and own[0][1] not in {base for _, base in ordered}:
                ordered = (*ordered, *own)
            snapshot.endpoints[region] = ordered
        return ordered

    def _first_endpoint(self, region: str | None) -> str | None:
        first = next(iter(self.targets(region)), None)
        return None if first is None else first + "/v1"


class BoundCore(Core):
    """A core that declares more with each request, wherever that is made.

    All else, and all that either learns or replaces, is shared: they have one ``__dict__``.
    """

    __slots__ = ("_declared", "_session")  # looked up before what is shared

    def __init__(self, outer: Core, more: Said, session: str | None) -> None:
        self.__dict__ = outer.__dict__
        self._declared = merge(outer._declared, more)
        self._session = session or outer.session()

    def session(self) -> str | None:
        return current_session() or self._session

    def close(self) -> None:
        """Leave closing to the client that this was made of."""


OWN_RANK = 2  # the configured validator, as the last resort
NOTHING_ASKED = TextReader(())

_alive: "weakref.WeakSet[Core]" = weakref.WeakSet()


def _each(act: Callable[[Core], None]) -> Callable[[], None]:
    def act_on_all() -> None:
        for core in list(_alive):
            act(core)

    return act_on_all


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(
        before=_each(Core.before_fork),
        after_in_parent=_each(Core.fork_in_parent),
        after_in_child=_each(Core.fork_in_child),
    )
