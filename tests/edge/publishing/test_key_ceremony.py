"""The key ceremony's page, command by command, before the eyes of clients that never restart."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from support.command import Command
from waypost.edge.publishing import signing_keys
from waypost.shared.errors import TrustError
from waypost.shared.trust import ManifestKeeper, Projection

PAGE = Path(__file__).parents[3] / "docs" / "key-ceremony.md"
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    for line in block.splitlines()
]


class Readers:
    """A client and a validator that know the first root alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kinds: tuple[Projection, ...] = ("client", "full")
        self.keepers = {
            kind: ManifestKeeper(
                url=None,
                channel="prod",
                root=(folder / "root.json").read_bytes(),
                cache=None,
                projection=kind,
            )
            for kind in kinds
        }

    def bundle(self, kind: Projection) -> bytes | None:
        tree = "public" if kind == "client" else "private"
        path = self.folder / tree / "v1/prod/bundle.json"
        return path.read_bytes() if path.exists() else None

    def follow(self) -> None:
        """Take what is published; raises TrustError for what they would refuse."""
        for kind, keeper in self.keepers.items():
            bundle = self.bundle(kind)
            if bundle is not None:
                keeper.accept(bundle, etag=None)

    @property
    def root_version(self) -> int:
        current = self.keepers["client"].current
        return current.versions["root"] if current is not None else 0


def test_the_page_s_commands_lock_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WAYPOST_KEY_PASSPHRASE", "correct horse battery staple")
    monkeypatch.setattr(
        signing_keys, "KDF_ROUNDS", 1_000
    )  # a hundred openings, none by an attacker
    waypost = Command(tmp_path, monkeypatch, capsys)
    readers: Readers | None = None
    signed_by_the_thief = b""
    for line in LINES:
        words = shlex.split(line, comments=True)
        if "revoke" in words:
            signed_by_the_thief = (tmp_path / "acme/public/v1/prod/bundle.json").read_bytes()
        if words[0] == "waypost":
            waypost.good(*words[1:])
        else:
            subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
        if readers is None and (tmp_path / "acme/root.json").exists():
            readers = Readers(tmp_path / "acme")
        if readers is not None:
            readers.follow()

    assert readers is not None
    # One root for each change of keys that the page makes, after the first.
    assert readers.root_version == 8
    with pytest.raises(TrustError) as caught:
        readers.keepers["client"].accept(signed_by_the_thief, etag=None)
    assert caught.value.code == "signature"
    rows = json.loads(waypost.good("keys", "list", "--dir", "acme", "--json"))["keys"]
    used = {row["name"] for row in rows if row["in_use"] and row["role"] in ("root", "targets")}
    assert used == {"alice", "bob", "grace", "dave", "heidi"}
    assert {path.name for path in (tmp_path / "www").iterdir()} == {"metadata", "targets", "v1"}


def test_the_page_sends_no_private_key_anywhere() -> None:
    for line in LINES:
        for private in re.findall(r"\S+\.p12", line):
            assert line.startswith("waypost sign "), private
