#!/usr/bin/env python
"""Our verifier and store behind the command line of theupdateframework/tuf-conformance.

That suite plays a hostile repository against any TUF client that speaks three commands (``init``,
``refresh``, ``download``; its CLIENT-CLI.md). Only the transport differs from production: files
are asked for one by one, by the names that the verifier asks for, instead of in one bundle.

    pytest tuf_conformance --entrypoint tests/conformance_client.py
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import httpx

from waypost.shared.errors import StoreError
from waypost.shared.trust.store import State, Store, decode_state, encode_state
from waypost.shared.trust.verifier import verify

CHANNEL = "conformance"
_PREFIXED = re.compile(r"(?P<folder>(?:.*/)?)(?P<digest>[0-9a-f]{64})\.(?P<name>[^/]+)")


class Remote(Mapping[str, str]):
    """A repository's files, each fetched when it is asked for."""

    def __init__(self, client: httpx.Client, args: argparse.Namespace) -> None:
        self._client = client
        self._metadata_url = args.metadata_url.rstrip("/")
        self._targets_url = (args.target_base_url or "").rstrip("/")
        self._targets = Path(args.target_dir) if args.target_dir else None

    def __getitem__(self, path: str) -> str:
        root, _, rest = path.partition("/")
        kept = self._kept(rest) if root == "targets" else None
        if kept is not None:
            return kept
        base = self._metadata_url if root == "metadata" else self._targets_url
        answer = self._client.get(f"{base}/{rest}")
        if not answer.is_success:
            raise KeyError(path)
        return answer.content.decode("latin-1" if root == "targets" else "utf-8")

    def _kept(self, path: str) -> str | None:
        """Return a target downloaded before; the verifier checks it like any other."""
        match = _PREFIXED.fullmatch(path)
        if match is None or self._targets is None:
            return None
        with suppress(OSError):
            data = place_of(self._targets, match["folder"] + match["name"]).read_bytes()
            if hashlib.sha256(data).hexdigest() == match["digest"]:
                return data.decode("latin-1")
        return None

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError("nobody can list a repository")

    def __len__(self) -> int:
        raise NotImplementedError("nobody can list a repository")


def place_of(folder: Path, target: str) -> Path:
    """Return where a target is kept: a target's name is never a path on this machine."""
    return folder / quote(target, "")


def init(metadata: Path, root: bytes) -> None:
    """Trust ``root``."""
    (metadata / "shipped").write_bytes(root)
    (metadata / "root.json").write_bytes(root)


def run(metadata: Path, files: Mapping[str, str], targets: list[str]) -> dict[str, bytes]:
    """Return the targets, or end the program with the reason."""
    store = Store(metadata / "store")
    floor: dict[str, str] = {}
    with suppress(StoreError):
        data = store.read()
        floor = {} if data is None else decode_state(data).floor
    verified = verify(
        files,
        root=(metadata / "shipped").read_bytes(),
        floor=floor,
        required=tuple(targets),
        optional=(),
    )
    with store.locked():
        store.write(encode_state(State(channel=CHANNEL, files={}, floor=verified.floor)))
    # The suite reads what a client trusts by these names.
    for name, text in verified.floor.items():
        if not name.endswith(".root"):
            (metadata / f"{name}.json").write_text(text, newline="")
    newest = max((name for name in verified.floor if name.endswith(".root")), key=number_of)
    (metadata / "root.json").write_text(verified.floor[newest], newline="")
    if verified.error is not None:
        sys.exit(f"{verified.error.code}: {verified.error}")
    return verified.targets


def number_of(root: str) -> int:
    return int(root.removesuffix(".root"))


def main() -> None:
    """Run one command; exit 1 if it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metadata-dir", required=True, type=Path)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir")
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    args = parser.parse_args()
    if args.command == "init":
        init(args.metadata_dir, args.trusted_root.read_bytes())
        return
    with httpx.Client() as client:
        found = run(args.metadata_dir, Remote(client, args), args.target_name)
    for target, data in found.items():
        place = place_of(Path(args.target_dir), target)
        if not place.exists() or place.read_bytes() != data:
            place.write_bytes(data)


if __name__ == "__main__":
    main()
