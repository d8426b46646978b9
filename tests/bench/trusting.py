"""What trust costs: verifying a manifest, asking for a newer one, starting cold.

Processor time, the least of several runs. How the cold start divides: tuf and what it imports
(securesystemslib, cryptography, urllib3) are about half of what is not httpx.
"""

import hashlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.deciding import median_us
from support.origin import Reply, serving
from support.publisher import Publisher
from support.tokens import App
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route
from waypost.shared.trust import ManifestKeeper, open_bundle
from waypost.shared.trust.bundle import unpack_bundle
from waypost.shared.trust.verifier import verify

STARTS = 12
URL = "https://edge.invalid/v1/prod/bundle.json"

# A development environment has packages that the plain install has not, and which httpx and
# securesystemslib import where they find them. Both sides of the comparison do without.
LEAN = """
import sys
sys.modules.update(dict.fromkeys((
    "asn1crypto", "boto3", "botocore", "brotli", "click", "google", "h2", "hvac", "pkcs11",
    "PyKCS11", "pygments", "rich", "socksio", "zstandard",
)))
"""

START = (
    LEAN
    + """
import os, sys
from pathlib import Path
from waypost.client import Waypost
folder = Path(sys.argv[1])
wp = Waypost(
    manifest_url=sys.argv[2],
    root=folder / "root.json",
    token=(folder / "token").read_text(),
    cache_dir=folder / "cache",
)
choice = wp.choose([{"role": "user", "content": "2 + 2?"}])
print(choice.model, flush=True)
os._exit(0)  # the refresh that begins here is not what is measured
"""
)


def a_wide_policy(models: int) -> Policy:
    """``models`` models, and a default route over all of them."""
    some = tuple(
        a_model(f"model-{n}", promises=("hipaa_baa", "no_training", "zero_retention"))
        for n in range(models)
    )
    names = tuple(model.id for model in some)
    return a_policy(models=some, routes=(Route(name="default", models=names),), last_resort=())


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    return [*_opening(), *_asking(), *_starting(folder)]


def _opening() -> list[tuple[str, str, str]]:
    result: list[tuple[str, str, str]] = []
    for models, aim_ms in ((20, 8), (2_000, 80)):
        publisher = Publisher(policy=a_wide_policy(models))
        bundle = publisher.publish()
        ms = _cpu_ms(lambda b=bundle, p=publisher: open_bundle(b, root=p.root, channel="prod"))  # type: ignore[misc]
        what = f"verify and open a bundle of {models:,} models"
        result.append((what, f"{ms:.1f} ms", f"≤ {aim_ms} ms"))
    publisher = Publisher()
    for turn in range(100):
        publisher.replace_key(("timestamp", "snapshot", "targets")[turn % 3])
    publisher.publish()
    roots = {path: data for path, data in publisher.files.items() if path.endswith(".root.json")}
    bundle = publisher.bundle()
    floor = {Path(path).name.removesuffix(".json"): data.decode() for path, data in roots.items()}
    files = unpack_bundle(bundle)
    required = ("policy/prod.json", "issuers/prod.json")
    ms = _cpu_ms(
        lambda: verify(files, root=publisher.root, floor=floor, required=required, optional=())
    )
    result.append(("the same after 100 rotations", f"{ms:.1f} ms", ""))
    return result


def _cpu_ms(call: Callable[[], object]) -> float:
    """Return the least processor time of 25 calls, which other processes disturb least."""
    took: list[int] = []
    for _ in range(25):
        start = time.process_time_ns()
        call()
        took.append(time.process_time_ns() - start)
    return min(took) / 1e6


def _asking() -> list[tuple[str, str, str]]:
    publisher = Publisher(policy=a_wide_policy(2_000))
    bundle = publisher.publish()

    def answer(headers: dict[str, str]) -> Reply:
        if headers.get("if-none-match") == '"1"':
            return Reply(status=304)
        return Reply(bundle, headers={"ETag": '"1"'})

    with serving(answer) as origin, httpx.Client() as client:
        keeper = ManifestKeeper(url=origin.url, channel="prod", root=publisher.root, cache=None)
        keeper.refresh(client)
        before = keeper.current
        bare_us = median_us(lambda _: client.get(origin.url, headers={"If-None-Match": '"1"'}), 50)
        asked = len(origin.requests)
        us = median_us(lambda _: keeper.refresh(client), 50)
        asked = len(origin.requests) - asked
    same = keeper.current is before
    return [
        (
            "no-change refresh, against a bare httpx GET of the same 304",
            f"{us / bare_us:.2f} ×, {asked / 50:.0f} request, {'not ' * same}parsed",
            "1 request, not parsed",
        )
    ]


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keep_a_manifest(folder: Path) -> None:
    """Leave in ``folder`` what `START` needs: root, token and a cached manifest."""
    publisher = Publisher()
    (folder / "root.json").write_bytes(publisher.root)
    (folder / "token").write_text(App().bearer(now=int(time.time())).removeprefix("Bearer "))
    mark = hashlib.sha256(URL.encode() + b"\0" + publisher.root).hexdigest()[:12]
    cache = folder / "cache" / f"prod-{mark}.json"
    keeper = ManifestKeeper(url=URL, channel="prod", root=publisher.root, cache=cache)
    keeper.accept(publisher.publish(), etag=None)


def _starting(folder: Path) -> list[tuple[str, str, str]]:
    keep_a_manifest(folder)
    programs = {
        "httpx": LEAN + "import httpx",
        "tuf": LEAN + "import httpx, tuf.ngclient",
        "first": START,
    }
    best: dict[str, float] = {}
    for _ in range(STARTS):
        for name, program in programs.items():
            command = [sys.executable, "-c", program, str(folder), URL]
            before_s = _children_s()
            out = subprocess.run(command, capture_output=True, check=True).stdout
            took_ms = (_children_s() - before_s) * 1_000
            best[name] = min(took_ms, best.get(name, took_ms))
            if name == "first" and out.strip() == b"auto":
                raise RuntimeError("the cached manifest was not used, so its cost was not seen")
    httpx_ms, tuf_ms, first_ms = best["httpx"], best["tuf"], best["first"]
    return [
        ("import httpx, in a new process", f"{httpx_ms:.0f} ms", ""),
        ("import httpx and tuf.ngclient", f"{tuf_ms / httpx_ms:.2f} × that", ""),
        (
            "import the SDK, verify the cached manifest, choose",
            f"{first_ms / httpx_ms:.2f} × that",
            "≤ 1.6 ×",
        ),
    ]
