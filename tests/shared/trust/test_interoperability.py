"""The tree is a TUF repository and the client a TUF client, for others' code too.

``theupdateframework/tuf-conformance`` drives ``tests/conformance_client.py`` against its own
hostile repository; here the same command line meets our tree. ``tests/edge`` has the plain
``tuf.ngclient``, and tuf-js is another implementation in another language.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.debian import need
from support.publisher import Publisher
from support.site import Site, site, tree_of

CLIENT = Path(__file__).parents[2] / "conformance_client.py"
TUF_JS = "tuf-js@4.1.0"  # the newest for Node 20

VERIFY_JS = """
const { Updater } = require("tuf-js");
const fs = require("fs");
const [metadataDir, targetDir, base] = process.argv.slice(2);
(async () => {
  const updater = new Updater({
    metadataDir, targetDir, metadataBaseUrl: base + "/metadata", targetBaseUrl: base + "/targets",
  });
  await updater.refresh();
  for (const path of ["policy/prod.json", "issuers/prod.json", "hints/prod.json"]) {
    const info = await updater.getTargetInfo(path);
    const file = await updater.downloadTarget(info, targetDir + "/" + path.split("/")[0]);
    console.log(path, JSON.parse(fs.readFileSync(file)).version);
  }
})().catch((error) => { console.error(error.name, error.message); process.exit(1); });
"""


class Contract:
    """The conformance command line, on one folder."""

    def __init__(self, folder: Path, root: bytes) -> None:
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self.metadata.mkdir()
        self.targets.mkdir()
        (folder / "root").write_bytes(root)
        assert self._run("init", str(folder / "root")) == 0

    def refresh(self, shelf: Site) -> int:
        return self._run("--metadata-url", f"{shelf.base}/metadata", "refresh")

    def download(self, shelf: Site, *names: str) -> int:
        return self._run(
            *("--metadata-url", f"{shelf.base}/metadata"),
            *(part for name in names for part in ("--target-name", name)),
            *("--target-base-url", f"{shelf.base}/targets", "--target-dir", str(self.targets)),
            "download",
        )

    def version(self, role: str) -> int:
        version: int = json.loads((self.metadata / f"{role}.json").read_bytes())["signed"][
            "version"
        ]
        return version

    def _run(self, *arguments: str) -> int:
        command = [sys.executable, str(CLIENT), "--metadata-dir", str(self.metadata), *arguments]
        return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_conformance_contract_holds_on_our_own_tree(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish()
    old = tree_of(publisher)
    client = Contract(tmp_path, publisher.root)
    with site(old) as shelf:
        assert client.refresh(shelf) == 0
        publisher.replace_key("timestamp")
        publisher.publish()
        shelf.files = tree_of(publisher)
        assert client.download(shelf, "policy/prod.json", "hints/prod.json") == 0
        assert {role: client.version(role) for role in ("root", "timestamp", "targets")} == {
            "root": 2,
            "timestamp": 2,
            "targets": 2,
        }
        (policy, _) = sorted(client.targets.iterdir(), reverse=True)
        assert json.loads(policy.read_bytes())["version"] == 2
        # What was downloaded is not downloaded again, and what is older is not taken.
        shelf.asked.clear()
        assert client.download(shelf, "policy/prod.json") == 0
        assert not [path for path in shelf.asked if path.startswith("/targets/")]
        shelf.files = old
        assert client.refresh(shelf) == 1
        assert client.version("timestamp") == 2
        assert client.download(shelf, "policy/other.json") == 1


@pytest.fixture(scope="module")
def tuf_js(request: pytest.FixtureRequest) -> Path:
    """A folder in which Node finds tuf-js; kept from run to run."""
    folder = Path(request.config.cache.mkdir(TUF_JS.replace("@", "-")))
    need("node", "npm")
    if not (folder / "node_modules" / "tuf-js").is_dir():
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", TUF_JS]
        installed = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=50, check=False
        )
        if installed.returncode != 0:
            pytest.skip(f"npm cannot install {TUF_JS}: {installed.stderr.strip()[-200:]}")
    (folder / "verify.js").write_text(VERIFY_JS)
    return folder


def run_js(tuf_js: Path, folder: Path, shelf: Site) -> subprocess.CompletedProcess[str]:
    command = ["node", "verify.js", str(folder / "metadata"), str(folder / "targets"), shelf.base]
    return subprocess.run(command, cwd=tuf_js, capture_output=True, text=True, check=False)


def test_tuf_js_verifies_the_published_tree_and_refuses_a_forged_one(
    publisher: Publisher, tmp_path: Path, tuf_js: Path
) -> None:
    for name in ("metadata", "targets"):
        (tmp_path / name).mkdir()
    (tmp_path / "metadata" / "root.json").write_bytes(publisher.root)
    publisher.publish()
    publisher.replace_key("snapshot")
    publisher.publish()
    with site(tree_of(publisher)) as shelf:
        taken = run_js(tuf_js, tmp_path, shelf)
        assert taken.stdout.splitlines() == [
            "policy/prod.json 2",
            "issuers/prod.json 2",
            "hints/prod.json 2",
        ], taken.stderr
        stranger = Publisher()
        stranger.publish(version=9)
        shelf.files = tree_of(stranger)
        assert run_js(tuf_js, tmp_path, shelf).returncode == 1
