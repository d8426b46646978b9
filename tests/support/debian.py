"""Programs of Debian packages that tests run, and how a test is skipped where one is missing."""

import re
import shutil
from collections import Counter
from collections.abc import Iterable

import pytest

# Each program, and the package that has it. ``.ci/run`` installs all of them.
PACKAGES = {
    "chromium": "chromium",
    "curl": "curl",
    "dbus-run-session": "dbus-daemon",
    "gnome-keyring-daemon": "gnome-keyring",
    "haproxy": "haproxy",
    "initdb": "postgresql",
    "make": "make",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "promtool": "prometheus",
    "redis-server": "redis-server",
    "softhsm2-util": "softhsm2",
}
# Debian keeps servers where only root looks, and PostgreSQL's where nobody does.
_FOLDERS = "/usr/sbin:/sbin:/usr/local/sbin"
_REASON = "no {} here (Debian: {})"
_READ_REASON = re.compile(r"\(Debian: ([a-z0-9 .+-]+)\)$")


def find_program(name: str) -> str | None:
    """Return the path of a program; ``None`` where it is not installed."""
    return shutil.which(name) or shutil.which(name, path=_FOLDERS)


def missing(programs: Iterable[str]) -> str:
    """Return why a test that needs ``programs`` is skipped; empty if all are installed."""
    names = [name for name in programs if find_program(name) is None]
    packages = sorted({PACKAGES[name] for name in names})
    return _REASON.format(" and no ".join(names), " ".join(packages)) if names else ""


def need(*programs: str) -> None:
    """Skip the test that runs unless ``programs`` are installed."""
    if reason := missing(programs):
        pytest.skip(reason)


def program(name: str, *, found: str | None = None) -> str:
    """Return the path of a program that the test needs; skips the test where there is none.

    Args:
        found: where the caller found it by itself.
    """
    path = found or find_program(name)
    if path is None:
        pytest.skip(missing([name]))
    return path


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is skipped unless ``programs`` are installed."""
    reason = missing(programs)
    return pytest.mark.skipif(bool(reason), reason=reason)


def summary(reasons: Iterable[str]) -> list[str]:
    """Return the lines that end a run: what was skipped for want of packages, and the remedy."""
    wanted = [found[1].split() for reason in reasons if (found := _READ_REASON.search(reason))]
    if not wanted:
        return []
    counts = Counter(package for packages in wanted for package in packages)
    each = ", ".join(f"{package} {count}" for package, count in sorted(counts.items()))
    return [
        f"{len(wanted)} tests were skipped for want of Debian packages: {each}.",
        f"This installs them: sudo apt-get install {' '.join(sorted(counts))}",
    ]
