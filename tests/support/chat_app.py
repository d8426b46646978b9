"""The example app, and what it needs around it: an edge, a validator, a folder of its own."""

import io
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from support.loopback import asgi, serving
from support.origin import Reply
from support.origin import serving as origin_serving
from support.publisher import Publisher
from support.worlds import a_policy
from waypost.client import Waypost
from waypost.client.testing import FakeValidator, unsigned_token
from waypost.shared.contracts import Endpoint

__all__ = ["APP", "Here", "a_world", "filled"]

APP = Path(__file__).parents[2] / "docs" / "examples" / "chat.py"
PORTAL = Reply(b"<html>Please log in</html>", headers={"Content-Type": "text/html"})
QUESTION = "Hello\n\n"


class Here:
    """A validator and an edge on this machine, and a folder that an app keeps its things in."""

    def __init__(self, folder: Path, validator: str, *dead: str) -> None:
        endpoints = tuple(
            Endpoint(id=str(place), url=url + "/v1") for place, url in enumerate((validator, *dead))
        )
        self.folder = folder
        self.validator = validator
        self.publisher = Publisher(policy=a_policy(projection="client", endpoints=endpoints))
        self.bundle = self.publisher.publish()
        self.portal = False
        (folder / "root.json").write_bytes(self.publisher.root)
        (folder / "token").write_text(unsigned_token(tier="free"))

    def __call__(self, headers: dict[str, str]) -> Reply:
        return PORTAL if self.portal else Reply(self.bundle)

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "waypost"

    def environment(self, manifest_url: str) -> dict[str, str]:
        """Return what the app is told by the environment."""
        return {
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "WAYPOST_MANIFEST_URL": manifest_url,
            "WAYPOST_ROOT": str(self.folder / "root.json"),
            "WAYPOST_BASE_URL": self.validator + "/v1",
            "WAYPOST_TOKEN_FILE": str(self.folder / "token"),
        }

    def run(self, manifest_url: str) -> str:
        """Ask the app one question, in this process; return what it printed."""
        printed = io.StringIO()
        with (
            patch.dict(os.environ, self.environment(manifest_url)),
            patch("sys.stdin", io.StringIO(QUESTION)),
            redirect_stdout(printed),
        ):
            runpy.run_path(str(APP), run_name="__main__")
        return printed.getvalue()

    def start(
        self,
        manifest_url: str,
        command: Sequence[str | Path] = (sys.executable, APP),
        *,
        disk_full: bool = False,
        **environment: str,
    ) -> str:
        """The same in a process of its own, however that is started."""

        def fill_disk() -> None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

        done = subprocess.run(
            [str(part) for part in command],
            input=QUESTION,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            preexec_fn=fill_disk if disk_full else None,
            env={**os.environ, **self.environment(manifest_url), **environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def a_world(folder: Path, *dead: str) -> Iterator[tuple[Here, str]]:
    with serving(asgi(FakeValidator(a_policy()))) as validator:
        here = Here(folder, validator, *dead)
        with origin_serving(here) as edge:
            yield here, edge.url


def filled(here: Here, url: str) -> None:
    """Have a manifest in the cache, as an earlier run leaves it."""
    with Waypost(
        manifest_url=url,
        root=here.publisher.root,
        cache_dir=here.cache,
        refresh_interval_s=None,
    ) as wp:
        assert wp.refresh()
