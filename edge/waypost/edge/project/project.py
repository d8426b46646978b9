"""Where things are in a project folder, as ``waypost init`` lays it out."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Project"]


@dataclass(frozen=True, slots=True)
class Project:
    """The folder of one deployment.

    ``public`` may go to any bucket or CDN. ``private`` holds the full policy, which is for
    validators alone, and ``keys`` what signs.
    """

    directory: Path

    @property
    def policy(self) -> Path:
        """What people edit: models, tiers, routes."""
        return self.directory / "policy.yaml"

    @property
    def issuers(self) -> Path:
        """What people edit: whose access tokens hold."""
        return self.directory / "issuers.yaml"

    @property
    def keys(self) -> Path:
        """Signing keys, and the list of them."""
        return self.directory / "keys"

    @property
    def root(self) -> Path:
        """The trust root to ship with clients and validators."""
        return self.directory / "root.json"

    @property
    def public(self) -> Path:
        """The published tree."""
        return self.directory / "public"

    @property
    def private(self) -> Path:
        """The published tree of the full projection."""
        return self.directory / "private"

    @property
    def lock(self) -> Path:
        """Held while the trees change."""
        return self.directory / ".publish.lock"
