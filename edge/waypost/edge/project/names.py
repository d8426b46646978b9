"""What a name in the published tree says about how long it may be cached. Pure.

A version or a digest in a name means that its bytes never change; what has neither is the way
in, and short-lived.
"""

import re

__all__ = [
    "CACHE_FOR_EVER",
    "CACHE_NO_ROOT_YET",
    "CACHE_SHORT",
    "CHANNEL",
    "cache_control",
]

CHANNEL = r"[a-z0-9-]{1,64}"

# max-age + stale-while-revalidate + stale-if-error stays within what a timestamp has left when
# it is signed anew (six hours less five minutes), so no cache serves an expired bundle.
CACHE_SHORT = "public, max-age=15, stale-while-revalidate=30, stale-if-error=3600"
CACHE_FOR_EVER = "public, max-age=31536000, immutable"
# A cache that remembers "no newer root" for long would hold up a rotation.
CACHE_NO_ROOT_YET = "public, max-age=30"

_MUTABLE = re.compile(rf"metadata/timestamp\.json|v1/{CHANNEL}/bundle\.json")
_IMMUTABLE = re.compile(
    r"metadata/[0-9]{1,10}\.[a-z]{1,32}\.json"
    rf"|targets/[a-z]{{1,32}}/[0-9a-f]{{64}}\.{CHANNEL}\.json"
)


def cache_control(name: str) -> str | None:
    """Return the ``Cache-Control`` of a file of the public tree; ``None`` if it is none."""
    if _MUTABLE.fullmatch(name):
        return CACHE_SHORT
    return CACHE_FOR_EVER if _IMMUTABLE.fullmatch(name) else None
