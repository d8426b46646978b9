"""An identity provider's keys, copied into a file that ``issuers.yaml`` names and people sign.

Fetched by whoever publishes, when they say so; never by a validator, and never since a request
asks for it. What a provider would not do in a planned rotation is an alarm, and changes nothing
until a person has agreed.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

from waypost.edge.project.atomic_write import write_file
from waypost.shared.contracts import Algorithm, IssuerKey
from waypost.shared.errors import WaypostError
from waypost.shared.tokens.issuer_keys import as_jwk, key_from_jwk

__all__ = ["Imported", "JWKSError", "Update", "compare", "fetch", "import_keys", "load", "update"]

MAX_BYTES = 262_144  # the largest seen has 12,000
MAX_KEYS = 100
TIMEOUT_S = 10.0


class JWKSError(WaypostError):
    """A key set cannot be used, or not without a person's word."""

    code = "jwks_invalid"


class Imported(Struct, frozen=True):
    """A key set, read.

    Attributes:
        keys: by id.
        skipped: what was left out, and why.
    """

    keys: Mapping[str, IssuerKey]
    skipped: tuple[str, ...]


class Update(Struct, frozen=True, kw_only=True):
    """What a newer key set changes, as ids of keys.

    Attributes:
        changed: other keys under the same ids.
        alarm: why a person should look at it first; ``None``: a planned rotation, or nothing.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    skipped: tuple[str, ...]
    alarm: str | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return not (self.added or self.removed or self.changed)


def import_keys(document: bytes, *, algorithms: Collection[Algorithm]) -> Imported:
    """Return the keys of a JWK set (RFC 7517 §5) that an issuer with ``algorithms`` may use.

    Raises:
        JWKSError: it is none, holds a secret or an id twice, or nothing of use.
    """
    try:
        read: Any = json.loads(document.decode())
        listed = read["keys"]
    except (KeyError, RecursionError, TypeError, ValueError):
        listed = None
    if not isinstance(listed, list):
        raise JWKSError("this is no JWK set: JSON with a list named keys")
    jwks = cast("list[object]", listed)
    if len(jwks) > MAX_KEYS:
        raise JWKSError(f"there are {len(jwks)} keys; an issuer has {MAX_KEYS} at the most")
    keys: dict[str, IssuerKey] = {}
    skipped: list[str] = []
    for place, jwk in enumerate(jwks):
        if not isinstance(jwk, dict):
            raise JWKSError(f"key {place} is no JSON object")
        fields = cast("dict[str, object]", jwk)
        name = repr(fields.get("kid", f"number {place}"))[:80]
        if fields.keys() & {"d", "k", "p", "q"}:
            raise JWKSError(f"key {name} is private or secret; its owner must replace it")
        try:
            key = key_from_jwk(fields)
        except ValueError as exc:
            skipped.append(f"{name} {exc}")
            continue
        if key.alg not in algorithms:
            skipped.append(f"{name} is for {key.alg}, which the issuer does not use")
        elif key.kid in keys:
            raise JWKSError(f"there are two keys {name}")
        else:
            keys[key.kid] = key
    if not keys:
        why = "; ".join(skipped) or "it is empty"
        raise JWKSError(f"no key in it is of use: {why}")
    return Imported(keys, tuple(skipped))


def compare(before: Mapping[str, IssuerKey], now: Imported) -> Update:
    """Return what becomes of the keys ``before``; an empty mapping when there were none."""
    kept = before.keys() & now.keys.keys()
    changed = tuple(sorted(kid for kid in kept if before[kid] != now.keys[kid]))
    alarm: str | None = None
    if changed:
        alarm = f"other keys under known ids: {', '.join(changed)}"
    elif before and not kept:
        alarm = "not one of the known keys is left, as a planned rotation would leave them"
    elif before and (new := {k.alg for k in now.keys.values()} - {k.alg for k in before.values()}):
        alarm = f"keys of an algorithm that it had none of: {', '.join(sorted(new))}"
    return Update(
        added=tuple(sorted(now.keys.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - now.keys.keys())),
        changed=changed,
        skipped=now.skipped,
        alarm=alarm,
    )


def load(path: Path, *, algorithms: Collection[Algorithm]) -> Mapping[str, IssuerKey]:
    """Return the keys kept in ``path``; none if there is no file yet. Raises JWKSError."""
    try:
        document = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise JWKSError(f"cannot read {path}: {exc.strerror}") from exc
    return import_keys(document, algorithms=algorithms).keys


def update(
    path: Path, document: bytes, *, algorithms: Collection[Algorithm], accept: bool
) -> Update:
    """Keep the key set ``document`` in ``path``, and return what that changed.

    Args:
        accept: whether a person has agreed to what would be an alarm.

    Raises:
        JWKSError: the set cannot be used; the file stays as it is.
        StoreError: the file cannot be written.
    """
    imported = import_keys(document, algorithms=algorithms)
    found = compare(load(path, algorithms=algorithms), imported)
    if not found.is_empty and (accept or found.alarm is None):
        write_file(path, _written(imported.keys))
    return found


def _written(keys: Mapping[str, IssuerKey]) -> bytes:
    rows = [as_jwk(key) for _, key in sorted(keys.items())]
    return msgspec.json.format(msgspec.json.encode({"keys": rows}), indent=2) + b"\n"


def fetch(url: str) -> bytes:
    """Return what ``url`` answers; raises JWKSError for anything but a small 200."""
    import httpx

    try:
        # No redirects: whose keys count is said by the address that a person wrote.
        with (
            httpx.Client(timeout=TIMEOUT_S, follow_redirects=False) as http,
            http.stream("GET", url, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise JWKSError(f"{url} answered {answer.status_code}", code="jwks_unavailable")
            document = b""
            for chunk in answer.iter_bytes():
                document += chunk
                if len(document) > MAX_BYTES:
                    raise JWKSError(f"{url} sends more than {MAX_BYTES:,} bytes")
            return document
    except httpx.HTTPError as exc:
        raise JWKSError(f"{url} cannot be fetched: {exc}", code="jwks_unavailable") from exc
