"""Keeps the last good manifest, for clients and validators alike.

A refresh that fails in any way changes nothing but ``last_error``. What takes over does so
whole, by one assignment, so readers need no lock.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from waypost.shared.errors import StoreError, TrustError
from waypost.shared.trust.bundle import Projection, check_files, pack_bundle, unpack_bundle
from waypost.shared.trust.fetch import Fetched, aget, get
from waypost.shared.trust.manifest import Opened, Trusted, open_files
from waypost.shared.trust.store import State, Store, decode_state, encode_state

if TYPE_CHECKING:
    import httpx

__all__ = ["ManifestKeeper"]


class ManifestKeeper:
    """The manifest of one channel: loaded, refreshed, kept on disk.

    Safe to call from several threads. The disk is an aid, not a need: where it cannot be used
    the keeper works from memory and ``store_error`` says why.

    Attributes:
        current: the manifest to act upon, while it ``is_fresh``; ``None`` before the first.
        last_error: why the last ``load``, ``refresh`` or ``accept`` failed, if it did.
        store_error: why the manifest is not kept on disk, if it is not.
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
        self._url = url
        self._channel = channel
        self._root = root
        self._now = now
        self._projection: Projection = projection
        self._store = Store(cache) if cache is not None else None
        self._lock = threading.Lock()
        self._floor: dict[str, str] = {}
        self._etag: str | None = None
        self._stored_digest = b""

    def is_fresh(self, now: float) -> bool:
        """Whether ``current`` may be acted upon at ``now`` (Unix seconds)."""
        return self.current is not None and now < self.current.expires_at

    # ── from disk ──────────────────────────────────────────────────────────────────────────────

    def load(self) -> Trusted | None:
        """Return the manifest kept on disk, verified anew, as ``current``.

        ``None`` when there is none or it does not hold; ``last_error`` then has the reason.
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
            self._stored_digest = hashlib.sha256(data).digest()
            state = decode_state(data)
        except StoreError as exc:
            self.store_error = exc
            raise TrustError(exc.message, code="unavailable") from exc
        if state.channel != self._channel:
            raise TrustError(
                f"the stored manifest is for channel '{state.channel}', not '{self._channel}'",
                code="semantic",
            )
        self._floor = state.floor
        if not state.files:
            return None
        check_files(state.files)
        # Roots only: a newer timestamp whose manifest never arrived must not lock out the one
        # that did, but a key revoked by a newer root must.
        roots = {name: text for name, text in state.floor.items() if name.endswith(".root")}
        opened = self._open(state.files, pack_bundle(state.files), roots, None)
        if isinstance(opened.result, TrustError):
            raise opened.result
        self.current, self._etag = opened.result, state.etag
        return opened.result

    # ── from the network ───────────────────────────────────────────────────────────────────────

    def refresh(self, client: "httpx.Client") -> bool:
        """Ask once for a newer manifest; whether ``current`` was replaced.

        Raises:
            TrustError: nothing newer may be used, or ``current`` has expired (``expired``).
        """
        with self._recording():
            return self._settle(get(client, self._address(), etag=self._validator()))

    async def arefresh(self, client: "httpx.AsyncClient") -> bool:
        """Like ``refresh``; verifies in a thread."""
        from anyio import to_thread

        with self._recording():
            fetched = await aget(client, self._address(), etag=self._validator())
            return await to_thread.run_sync(self._settle, fetched)

    def _address(self) -> str:
        if self._url is None:
            raise TrustError("no manifest URL is configured", code="unavailable")
        return self._url

    def _validator(self) -> str | None:
        return self._etag if self.current is not None else None

    def _settle(self, fetched: Fetched | None) -> bool:
        current = self.current
        if fetched is None or (current is not None and fetched.body == current.bundle):
            if not self.is_fresh(self._now()):
                raise TrustError("the manifest has expired and there is no newer", code="expired")
            if fetched is not None:
                self._etag = fetched.etag
            return False
        return self._take(fetched.body, fetched.etag) is not current

    # ── handed in ──────────────────────────────────────────────────────────────────────────────

    def accept(self, bundle: bytes, *, etag: str | None) -> Trusted:
        """Return the manifest in ``bundle``, now ``current`` and kept on disk.

        Raises:
            TrustError: it was refused; ``current`` stays.
        """
        with self._recording():
            return self._take(bundle, etag)

    def _take(self, bundle: bytes, etag: str | None) -> Trusted:
        files = unpack_bundle(bundle)
        with self._lock:
            opened = self._open(files, bundle, self._floor, self.current)
            learned = opened.floor != self._floor
            self._floor = opened.floor
            if isinstance(opened.result, TrustError):
                if learned:
                    kept = unpack_bundle(self.current.bundle) if self.current is not None else {}
                    self._persist(kept, self._etag)
                raise opened.result
            self.current, self._etag = opened.result, etag
            self._persist(files, etag)
            return opened.result

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
        state = State(channel=self._channel, files=files, floor=self._floor, etag=etag)
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
        except StoreError:
            return False
        if theirs.channel != self._channel:
            return False
        if isinstance(self._open(files, b"", theirs.floor, None).result, Trusted):
            return False
        return isinstance(self._open(theirs.files, b"", {}, None).result, Trusted)

    @contextmanager
    def _recording(self) -> Generator[None]:
        try:
            yield
        except TrustError as exc:
            self.last_error = exc
            raise
        self.last_error = None
