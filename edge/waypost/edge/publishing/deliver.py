"""Brings the published tree to where a CDN takes it from: a folder, or a bucket of objects.

Immutable files first, the ways in last, each with the headers that the edge would send; so
whoever reads meanwhile sees the last publication or this one.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from waypost.edge.project.atomic_write import locked, write_file
from waypost.edge.project.names import CACHE_FOR_EVER, cache_control
from waypost.edge.project.project import Project
from waypost.shared.errors import StoreError
from waypost.shared.trust import open_bundle

__all__ = ["Place", "deliver", "place_at"]


class Place(Protocol):
    """Somewhere files are published from. Every method raises StoreError."""

    def names(self) -> set[str]:
        """Return the names of the files that are there."""
        ...

    def get(self, name: str) -> bytes | None:
        """Return a file's bytes, if it is there."""
        ...

    def put(self, name: str, data: bytes, *, cache: str) -> None:
        """Write a file whole. ``cache`` is the ``Cache-Control`` to serve it with."""
        ...


def place_at(target: str) -> Place:
    """Return the place that ``--to`` names: ``s3://bucket/prefix``, else a folder.

    Raises:
        StoreError: ``place_invalid``; ``extra_missing`` without boto3.
    """
    parts = urlsplit(target)
    if parts.scheme == "s3":
        if not parts.netloc or parts.query or parts.fragment:
            raise StoreError(f"{target} is not s3://bucket/prefix", code="place_invalid")
        return _Bucket(parts.netloc, parts.path.strip("/"))
    if "://" in target:
        raise StoreError(f"{target}: give a folder or s3://bucket/prefix", code="place_invalid")
    return _Folder(Path(target))


def deliver(project: Project, place: Place) -> int:
    """Make ``place`` show what the public tree shows; return how many files it took.

    Raises:
        StoreError: ``place_unavailable``, ``place_foreign`` if it shows what another root vouches
            for, or the disk refused.
        TrustError: the place is ahead of this tree: who reads there would be thrown back.
    """
    with locked(project.lock):
        tree = _tree(project.public)
    _check_place(project, tree, place)
    there = place.names()
    lasting = [name for name in tree if cache_control(name) == CACHE_FOR_EVER]
    new = [name for name in sorted(lasting) if name not in there]
    # v1/…/bundle.json sorts after metadata/timestamp.json, which a plain TUF client starts with.
    ways_in = [
        name for name in sorted(tree) if name not in lasting and tree[name] != place.get(name)
    ]
    for name in (*new, *ways_in):
        place.put(name, tree[name], cache=cache_control(name) or "")
    return len(new) + len(ways_in)


def _tree(folder: Path) -> dict[str, bytes]:
    try:
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.json")}
        return {
            name: path.read_bytes()
            for name, path in found.items()
            if cache_control(name) is not None
        }
    except OSError as exc:
        raise StoreError(f"cannot read {folder}: {exc.strerror}") from exc


def _check_place(project: Project, tree: Mapping[str, bytes], place: Place) -> None:
    first = "metadata/1.root.json"
    if first not in tree:
        raise StoreError(f"{project.public} holds nothing yet; publish first")
    # What is there under our names is taken for ours, and not written again.
    if place.get(first) not in (None, tree[first]):
        raise StoreError("the place shows another deployment's tree", code="place_foreign")
    for name in tree:
        if name.endswith("/bundle.json"):
            channel, there = name.split("/")[1], place.get(name)
            open_bundle(tree[name], root=tree[first], channel=channel, previous=there)


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> set[str]:
        return {p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*.json")}

    def get(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StoreError(
                f"cannot read {name}: {exc.strerror}", code="place_unavailable"
            ) from exc

    def put(self, name: str, data: bytes, *, cache: str) -> None:
        # Of a folder, the web server in front of it says how long files may be cached.
        del cache
        write_file(self._folder / name, data)


class _Bucket:
    """An S3 bucket, or one of the many stores that speak like it (AWS_ENDPOINT_URL)."""

    def __init__(self, bucket: str, prefix: str) -> None:
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ModuleNotFoundError:
            raise StoreError(
                "buckets need an extra: pip install 'waypost[s3]'", code="extra_missing"
            ) from None
        self._errors: tuple[type[Exception], ...] = (BotoCoreError, ClientError)
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        try:
            self._s3: Any = boto3.client("s3")  # pyright: ignore[reportUnknownMemberType]
        except self._errors as exc:
            raise self._unavailable(exc) from None

    def names(self) -> set[str]:
        pages: Iterable[dict[str, Any]] = self._s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        try:
            keys = [str(found["Key"]) for page in pages for found in page.get("Contents", ())]
        except self._errors as exc:
            raise self._unavailable(exc) from None
        return {key.removeprefix(self._prefix) for key in keys}

    def get(self, name: str) -> bytes | None:
        try:
            found = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name)
            with found["Body"] as body:
                return bytes(body.read())
        except self._s3.exceptions.NoSuchKey:
            return None
        except self._errors as exc:
            raise self._unavailable(exc) from None

    def put(self, name: str, data: bytes, *, cache: str) -> None:
        try:
            self._s3.put_object(
                Bucket=self._bucket,
                Key=self._prefix + name,
                Body=data,
                ContentType="application/json",
                CacheControl=cache,
            )
        except self._errors as exc:
            raise self._unavailable(exc) from None

    def _unavailable(self, exc: Exception) -> StoreError:
        return StoreError(f"s3://{self._bucket}: {exc}", code="place_unavailable")
