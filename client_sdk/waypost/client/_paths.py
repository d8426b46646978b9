"""Where a user's cache and keys live, by the rules of platformdirs. Pure."""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["user_cache_dir", "user_data_dir"]


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
    return _xdg(env.get("XDG_CACHE_HOME"), home / ".cache") / "waypost"


def user_data_dir(*, platform: str, env: Mapping[str, str], home: Path) -> Path:
    """Return the directory for what must outlive the cache; see ``user_cache_dir``."""
    if platform == "win32":
        local = env.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "waypost"
    if platform == "darwin":
        return home / "Library" / "Application Support" / "waypost"
    return _xdg(env.get("XDG_DATA_HOME"), home / ".local" / "share") / "waypost"


def _xdg(base: str | None, default: Path) -> Path:
    # The XDG specification has relative paths ignored.
    return Path(base.strip()) if base and base.strip().startswith("/") else default
