"""What a client is made of, and the source of manifests that it names."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from waypost.client._core import ManifestSource
from waypost.client._events import EventHook
from waypost.client._facts import Names
from waypost.client._named import check_names
from waypost.client._paths import user_cache_dir
from waypost.shared.errors import StoreError

if TYPE_CHECKING:
    import ssl

    from waypost.client.dpop import DPoPKey

__all__ = ["Options", "check_options", "source_of"]


class Options(TypedDict):
    """What both clients take.

    Attributes:
        manifest_url: of the channel's bundle, as the edge serves it.
        root: TUF root metadata as bytes, or the path of the file with it. Ship it with the app:
            all trust starts here.
        manifest: a source of manifests instead of these two, as ``testing.StaticManifest``.
        channel: which manifest, as ``prod`` or ``canary``.
        base_url: of a validator, for as long as no manifest names any, and as a last resort.
        cache_dir: keeps the manifest between runs; ``None`` is the platform's cache directory
            of the user, ``False`` keeps nothing.
        interactive: whether somebody is waiting; default for all requests, as are the next.
        data: classes of data in the requests, as ``"phi"``. Duties add up, and never go away.
        default_data: the same as ``data``; whichever reads better.
        task: what the requests are for, as ``"classify"``.
        tags: anything else that the policy's rules look for.
        refresh_interval_s: ``None`` leaves refreshing to ``refresh()``.
        proxy: URL of a proxy for all that is sent; else ``HTTPS_PROXY`` and its like hold.
        verify: what to verify servers by, for a CA of one's own; else the public ones, or
            ``SSL_CERT_FILE``.
        on_event: called with what happens; see ``EventHook``.
        dpop: the key that the tokens of ``token`` are bound to; see ``waypost.client.dpop``.
    """

    manifest_url: NotRequired[str]
    root: NotRequired[bytes | str | Path]
    manifest: NotRequired[ManifestSource]
    channel: NotRequired[str]
    base_url: NotRequired[str | None]
    cache_dir: NotRequired[str | Path | Literal[False] | None]
    interactive: NotRequired[bool]
    data: NotRequired[Names]
    default_data: NotRequired[Names]
    task: NotRequired[str | None]
    tags: NotRequired[Names]
    refresh_interval_s: NotRequired[float | None]
    proxy: NotRequired[str | None]
    verify: NotRequired["ssl.SSLContext | None"]
    on_event: NotRequired[EventHook | None]
    dpop: NotRequired["DPoPKey | None"]


# Option → what it may be, for who has no type checker; what is not here is looked at where it is
# used.
_KINDS: dict[str, tuple[type, ...]] = {
    "manifest_url": (str,),
    "root": (bytes, str, Path),
    "channel": (str,),
    "base_url": (str, NoneType),
    "cache_dir": (str, Path, NoneType),
    "refresh_interval_s": (int, float, NoneType),
    "proxy": (str, NoneType),
}


def check_options(options: Mapping[str, object]) -> None:
    """Raise TypeError for an option that there is not, or that is of another kind."""
    check_names("Waypost", options, (*Options.__annotations__, "token"))
    for name, kinds in _KINDS.items():
        value = options.get(name)
        if value is None or (name == "cache_dir" and value is False):
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in kinds if kind is not NoneType)
            raise TypeError(f"{name} should be {wanted}, not {type(value).__name__}")
    verify, hook = options.get("verify"), options.get("on_event")
    if verify is not None and not hasattr(verify, "wrap_bio"):
        raise TypeError(f"verify should be an ssl.SSLContext, not {type(verify).__name__}")
    if hook is not None and not callable(hook):
        raise TypeError(f"on_event should be a function, not {type(hook).__name__}")
    beside = sorted(options.keys() & {"manifest_url", "root"})
    if options.get("manifest") is not None and beside:
        raise TypeError(f"give manifest, or {' and '.join(beside)}; not both")


def source_of(options: Options) -> ManifestSource:
    """Return where manifests come from.

    Raises:
        StoreError: the trust root cannot be read.
        TypeError: neither a source nor an address with a root is named.
    """
    source = options.get("manifest")
    if source is not None:
        return source
    url, root = options.get("manifest_url"), options.get("root")
    if url is None or root is None:
        raise TypeError("Waypost needs manifest_url and root, or a manifest source")
    # A static manifest needs neither.
    import hashlib

    from waypost.shared.trust import ManifestKeeper

    root_bytes = root if isinstance(root, bytes) else _read(root)
    channel = options.get("channel", "prod")
    cache_dir = options.get("cache_dir")
    if cache_dir is None:
        cache_dir = user_cache_dir(platform=sys.platform, env=os.environ, home=Path.home())
    cache: Path | None = None
    if cache_dir is not False:
        # Apps of one user share the directory, but not each other's trust.
        mark = hashlib.sha256(url.encode() + b"\0" + root_bytes).hexdigest()[:12]
        cache = Path(cache_dir) / f"{channel}-{mark}.json"
    return ManifestKeeper(url=url, channel=channel, root=root_bytes, cache=cache)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read the trust root {path}: {exc.strerror}") from exc
