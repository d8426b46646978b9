"""Keeps the last good manifest, for clients and validators alike.

A refresh that fails in any way changes nothing but ``last_error``. What takes over does so
whole, by one assignment, so readers need no lock.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from waypost.shared.errors import StoreError, TrustError
from waypost.shared.trust.bundle import (
    Projection,
    check_files,
    missing_roots,
    pack_bundle,
    unpack_bundle,
)
from waypost.shared.trust.expiry import lapses, mend_of
from waypost.shared.trust.fetch import Chain, Fetched, aget, aget_roots, get, get_roots
from waypost.shared.trust.manifest import Opened, Trusted, open_files
from waypost.shared.trust.store import State, Store, decode_state, encode_state

if TYPE_CHECKING:
    import httpx

__all__ = ["ManifestKeeper"]

# What the edge lets caches do: max-age and stale-while-revalidate. A node that lags for longer
# is broken, or somebody holds manifests back.
MAX_LAG_S = 45.0


class ManifestKeeper:
    """The manifest of one channel: loaded, refreshed, kept on disk.

    Safe to call from several threads. The disk is an aid, not a need: where it cannot be used
    the keeper works from memory and ``store_error`` says why.

    Attributes:
        current: the manifest to act upon, while it ``is_fresh``; ``None`` before the first.
        last_error: why the last ``load``, ``refresh`` or ``accept`` failed, if it did.
        store_error: why the manifest is not kept on disk, if it is not.
        lagging_since: Unix seconds since when every answer was ``older_than_seen``; ``None``
            while the newest manifest seen is the newest there is.
    """

    def __init__(
        self,
        *,
        url: str | None,
        channel: str,
        root: bytes,
        cache: Path | None,
        now: Callable[[], float] = time.time,
        projection: Projection = "client",
    ) -> None:
        """Args:
        url: of the channel's bundle; ``None`` where manifests are only handed in.
        root: TUF root metadata, as shipped with the program; trust starts here.
        cache: file to keep the manifest in.
        projection: ``full`` for validators that see what the operator marked private.
        """
        self.current: Trusted | None = None
        self.last_error: TrustError | None = None
        self.store_error: StoreError | None = None
        self.lagging_since: float | None = None
        self._url = url
        self._channel = channel
        self._root = root
        self._now = now
        self._projection: Projection = projection
        self._store = Store(cache) if cache is not None else None
        self._lock = threading.Lock()
        self._floor: dict[str, str] = {}
        # What was accepted last, though it may have been revoked: documents stay newer than it.
        self._last: Trusted | None = None
        self._etag: str | None = None
        self._stored_digest = b""

    def is_fresh(self, now: float) -> bool:
        """Whether ``current`` may be acted upon at ``now`` (Unix seconds)."""
        return self.current is not None and now < self.current.expires_at

    def is_held_back(self, now: float) -> bool:
        """Whether older manifests came for longer than a cache may keep them: an alarm.

        A CDN has many nodes, and each may lag behind another for a while. That is no attack.
        """
        return self.lagging_since is not None and now - self.lagging_since > MAX_LAG_S

    def metadata(self) -> dict[str, str]:
        """Return the metadata that was verified last, as JSON, by role."""
        roots = _roots(self._floor)
        newest = max(roots, key=lambda name: int(name.removesuffix(".root")), default=None)
        root = self._root.decode() if newest is None else roots[newest]
        rest = {name: text for name, text in self._floor.items() if name not in roots}
        return {"root": root, **rest}

    # ── from disk ──────────────────────────────────────────────────────────────────────────────

    def load(self) -> Trusted | None:
        """Return the manifest kept on disk, verified anew, as ``current``.

        ``None`` when there is none or it does not hold; ``last_error`` then has the reason. With
        a manifest in use already, the disk is believed no more than the network is.
        """
        with self._lock:
            try:
                with self._recording():
                    return self._load()
            except TrustError:
                return None

    def _load(self) -> Trusted | None:
        try:
            data = self._store.read() if self._store is not None else None
            if data is None:
                return None
            state = decode_state(data)
            self._stored_digest = hashlib.sha256(data).digest()
        except StoreError as exc:
            self.store_error = exc
            raise TrustError(exc.message, code="unavailable") from exc
        if state.channel != self._channel:
            raise TrustError(
                f"the stored manifest is for channel '{state.channel}', not '{self._channel}'",
                code="semantic",
            )
        check_files(state.files)
        if self._last is not None:
            files = {**_as_files(_roots(state.floor)), **state.files}
            return self._judge(files, pack_bundle(state.files), state.etag)
        self._floor = state.floor
        if not state.files:
            return None
        # Roots only: a newer timestamp whose manifest never arrived must not lock out the one
        # that did, but a key revoked by a newer root must.
        bundle = pack_bundle(state.files)
        opened = self._open(state.files, bundle, _roots(state.floor), None)
        if isinstance(opened.result, TrustError):
            self._last = self._revoked(state, bundle)
            raise opened.result
        self.current, self._last, self._etag = opened.result, opened.result, state.etag
        return opened.result

    def _revoked(self, state: State, bundle: bytes) -> Trusted | None:
        """Return what the stored files were good for when they were stored, if anything."""
        roots = {
            name: text
            for name, text in _roots(state.floor).items()
            if int(name.removesuffix(".root")) <= state.root
        }
        result = self._open(state.files, bundle, roots, None).result
        return None if isinstance(result, TrustError) else result

    # ── from the network ───────────────────────────────────────────────────────────────────────

    def refresh(self, client: "httpx.Client") -> bool:
        """Ask once for a newer manifest; whether ``current`` was replaced.

        Raises:
            TrustError: nothing newer may be used, or ``current`` has expired (``expired``).
        """
        with self._asking():
            fetched = get(client, self._address(), etag=self._validator())
            files = self._unpack(fetched)
            chain = get_roots(client, self._tree(), self._missing(files))
            return self._settle(fetched, files, chain)

    async def arefresh(self, client: "httpx.AsyncClient") -> bool:
        """Like ``refresh``; verifies in a thread."""
        from anyio import to_thread

        with self._asking():
            fetched = await aget(client, self._address(), etag=self._validator())
            files = await to_thread.run_sync(self._unpack, fetched)
            chain = await aget_roots(client, self._tree(), self._missing(files))
            return await to_thread.run_sync(self._settle, fetched, files, chain)

    def _address(self) -> str:
        if self._url is None:
            raise TrustError("no manifest URL is configured", code="unavailable")
        return self._url

    def _validator(self) -> str | None:
        return self._etag if self.current is not None else None

    def _tree(self) -> str:
        # The bundle is at …/v1/<channel>/bundle.json, the repository beside v1.
        return self._address().rpartition("/v1/")[0]

    def _unpack(self, fetched: Fetched | None) -> dict[str, str] | None:
        """Return the files of what was fetched; ``None`` if they are those of ``current``."""
        current = self.current
        if fetched is None or (current is not None and fetched.body == current.bundle):
            return None
        return unpack_bundle(fetched.body)

    def _missing(self, files: dict[str, str] | None) -> range:
        return (
            range(0)
            if files is None
            else missing_roots({**_as_files(self._floor), **files}, self._root)
        )

    def _settle(self, fetched: Fetched | None, files: dict[str, str] | None, chain: Chain) -> bool:
        if fetched is None or files is None:
            if not self.is_fresh(self._now()):
                raise self._expired()
            if fetched is not None:
                self._etag = fetched.etag
            return False
        current = self.current
        try:
            return self._take(fetched.body, files, fetched.etag, chain.roots) is not current
        except TrustError as refusal:
            if chain.error is None:
                raise
            # Without the roots in between, nothing newer can hold: name the cause.
            raise chain.error from refusal

    def _expired(self) -> TrustError:
        over = lapses(self.current.expires, self._now()) if self.current is not None else []
        role = over[0].role if over else ""
        return TrustError(
            f"the manifest has expired and there is no newer: {mend_of(role or 'targets')}",
            code="expired",
            role=role,
        )

    # ── handed in ──────────────────────────────────────────────────────────────────────────────

    def accept(self, bundle: bytes, *, etag: str | None) -> Trusted:
        """Return the manifest in ``bundle``, now ``current`` and kept on disk.

        Raises:
            TrustError: it was refused; ``current`` stays.
        """
        with self._recording():
            return self._take(bundle, unpack_bundle(bundle), etag, {})

    def _take(
        self, bundle: bytes, files: dict[str, str], etag: str | None, roots: Mapping[str, str]
    ) -> Trusted:
        with self._lock:
            before = self._floor
            try:
                taken = self._judge({**roots, **files}, bundle, etag)
            except TrustError:
                if self._floor != before:
                    kept = self._last.files if self._last is not None else {}
                    self._persist(kept, self._etag)
                raise
            # Not the bundle: it may have held with the help of what was here before.
            self._persist(taken.files, etag)
            return taken

    def _judge(self, files: dict[str, str], bundle: bytes, etag: str | None) -> Trusted:
        """Make what ``files`` prove ``current``, or raise and learn what they do prove."""
        before = self._floor
        opened = self._open(files, bundle, before, self._last)
        self._floor = opened.floor
        if isinstance(opened.result, TrustError):
            if _roots(opened.floor) != _roots(before):
                self._drop_if_revoked()
            raise opened.result
        self.current, self._last, self._etag = opened.result, opened.result, etag
        return opened.result

    def _drop_if_revoked(self) -> None:
        """Let go of a manifest that a newer root does not stand behind, as a restart would."""
        if self.current is None:
            return
        again = self._open(self.current.files, b"", _roots(self._floor), None).result
        # Only for its signatures: one that has lapsed may still serve a validator's grace.
        if isinstance(again, TrustError) and again.code == "signature":
            self.current, self._etag = None, None

    # ── shared ─────────────────────────────────────────────────────────────────────────────────

    def _open(
        self, files: dict[str, str], bundle: bytes, floor: dict[str, str], accepted: Trusted | None
    ) -> Opened:
        return open_files(
            files,
            bundle,
            root=self._root,
            channel=self._channel,
            projection=self._projection,
            floor=floor,
            accepted=accepted,
        )

    def _persist(self, files: dict[str, str], etag: str | None) -> None:
        if self._store is None:
            return
        state = State(
            channel=self._channel,
            files=files,
            floor=self._floor,
            etag=etag,
            root=self._last.versions["root"] if self._last is not None else 0,
        )
        data = encode_state(state)
        try:
            with self._store.locked():
                found = self._store.read()
                if found is not None and self._is_ahead(found, files):
                    return
                self._store.write(data)
        except StoreError as exc:
            self.store_error = exc
            return
        self._stored_digest = hashlib.sha256(data).digest()
        self.store_error = None

    def _is_ahead(self, found: bytes, files: dict[str, str]) -> bool:
        """Whether another process stored something that ``files`` would take back."""
        if hashlib.sha256(found).digest() == self._stored_digest:
            return False
        try:
            theirs = decode_state(found)
        except StoreError as exc:
            if exc.code == "store_newer":
                raise  # writing over it would take back the newest version that it has seen
            return False
        if theirs.channel != self._channel:
            return False
        ours = {**_as_files(_roots(self._floor)), **files}
        if isinstance(self._open(ours, b"", theirs.floor, None).result, Trusted):
            return False
        roots = _roots(theirs.floor)
        return isinstance(self._open(theirs.files, b"", roots, None).result, Trusted)

    @contextmanager
    def _asking(self) -> Generator[None]:
        try:
            with self._recording():
                yield
        except TrustError as exc:
            if exc.code == "older_than_seen" and self.lagging_since is None:
                self.lagging_since = self._now()
            raise
        self.lagging_since = None

    @contextmanager
    def _recording(self) -> Generator[None]:
        try:
            yield
        except TrustError as exc:
            self.last_error = exc
            raise
        self.last_error = None


def _roots(floor: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in floor.items() if name.endswith(".root")}


def _as_files(floor: Mapping[str, str]) -> dict[str, str]:
    """Return a floor's metadata by repository path."""
    return {f"metadata/{name}.json": text for name, text in floor.items()}
