"""The two distributions, built as they are published: wheels by way of sdists."""

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["CONSTRAINTS", "PROJECTS", "build_all", "install", "run"]

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
PROJECTS = {"waypost": ROOT / "client_sdk", "waypost_server": ROOT}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command whatever comes of it, and keep what it says."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )


def build_all(folder: Path) -> Mapping[str, Path]:
    """Return the wheel of each distribution, below ``folder``."""

    def build(name: str) -> Path:
        place = folder / name
        built = run(
            sys.executable, "-m", "build", "--no-isolation", "--outdir", place, PROJECTS[name]
        )
        assert built.returncode == 0, built.stderr[-2_000:]
        return next(place.glob("*.whl"))

    with ThreadPoolExecutor() as pool:
        return dict(zip(PROJECTS, pool.map(build, PROJECTS), strict=True))


def install(environment: Path, *packages: str | Path) -> None:
    """Install into a virtual environment, which needs no pip of its own."""
    done = run(
        sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "-q",
        "--no-compile", "-c", CONSTRAINTS, *packages,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
