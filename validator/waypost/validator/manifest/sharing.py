"""Lets the other workers of one validator have the manifests that this one has verified."""

from collections.abc import Awaitable, Callable, Mapping

from anyio import to_thread

from waypost.shared.trust import ManifestKeeper

__all__ = ["Share", "Sharing"]

# Is given which manifest and its state; returns how many workers do not use it yet.
Share = Callable[[str, bytes], Awaitable[int]]


class Sharing:
    """What each keeper has that the other workers were not told yet.

    Attributes:
        keepers: by what they keep: ``manifest``, ``candidate``.
    """

    def __init__(self, keepers: Mapping[str, ManifestKeeper]) -> None:
        self.keepers = keepers
        self._share: Share | None = None
        self._told_changes: dict[str, int] = {}

    async def begin(self, share: Share) -> None:
        """Let the other workers have, by ``share``, what was verified so far, and what will be."""
        self._share = share
        await self.tell()

    async def tell(self) -> int:
        """Share what has changed; return how many workers do not use it yet."""
        pending = 0
        if self._share is not None:
            for what, keeper in self.keepers.items():
                changes = keeper.changes
                if changes != self._told_changes.get(what, 0):
                    self._told_changes[what] = changes
                    pending += await self._share(what, await to_thread.run_sync(keeper.state))
        return pending
