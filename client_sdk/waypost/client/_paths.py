"""Where a user's cache lives, by the rules of platformdirs. Pure."""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["user_cache_dir"]


def user_cache_dir(*, platform: str, env: Mapping[str, str], home: Path) -> Path:
    """Return the directory for Waypost's cached files; it need not exist.

    Args:
        platform: as ``sys.platform``.
    """
    if platform == "win32":
        local = env.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "waypost" / "Cache"
    if platform == "darwin":
        return home / "Library" / "Caches" / "waypost"
    base = env.get("XDG_CACHE_HOME", "").strip()
    # The XDG specification has relative paths ignored.
    return (Path(base) if base.startswith("/") else home / ".cache") / "waypost"
