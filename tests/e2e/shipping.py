"""The SDK where apps take it: frozen, in the browser's Python, under gevent, on other Pythons.

``make shipping`` runs it. Not part of ``make test``: it installs packages, and takes a minute. What
is not to be had on this machine is skipped, with a word.
"""

import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.chat_app import APP, a_world
from support.debian import need
from support.wheels import build_all, install, run

PYODIDE = "314.0.7"
PYINSTALLER, GEVENT, MSGSPEC = "pyinstaller==6.22.3", "gevent==26.9.0", "msgspec==0.22.0"
HERE = Path(__file__).parent
CHOOSING = HERE / "choosing.py"
CHOSEN = ["small", "policy_order", "[]"]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return build_all(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def app(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ``bin`` of an environment for the example app, and for freezing it."""
    folder = tmp_path_factory.mktemp("app")
    venv.create(folder)
    install(folder, wheels["waypost"], "openai", PYINSTALLER, GEVENT)
    return folder / "bin"


def test_a_frozen_app_answers_with_the_root_that_it_was_shipped_with(
    app: Path, tmp_path: Path
) -> None:
    """The recipe of docs/shipping.md, and no more flags than it says."""
    with a_world(tmp_path) as (here, url):
        frozen = subprocess.run(
            [
                app / "python", "-m", "PyInstaller", "--noconfirm", "--log-level=ERROR",
                "--add-data", f"{here.folder / 'root.json'}:.", "--distpath", tmp_path / "dist",
                "--workpath", tmp_path / "work", "--specpath", tmp_path, APP,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert frozen.returncode == 0, frozen.stderr[-2_000:]
        shipped = tmp_path / "dist/chat/_internal/root.json"
        said = here.start(url, [tmp_path / "dist/chat/chat"], WAYPOST_ROOT=str(shipped))
        again = here.start(url, [tmp_path / "dist/chat/chat"], WAYPOST_ROOT=str(shipped))

    assert "This is small." in said
    assert "[none]" not in again, "the second run has the manifest that the first one kept"


def test_a_monkey_patched_app_answers(app: Path, tmp_path: Path) -> None:
    with a_world(tmp_path) as (here, url):
        command: list[str | Path] = [app / "python", "-m", "gevent.monkey", APP]
        said = here.start(url, command)
        again = here.start(url, command)

    assert "This is small." in said
    assert "[none]" not in again


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_app_answers_on_each_python(
    version: str, wheels: Mapping[str, Path], tmp_path: Path
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    made = run(python, "-m", "venv", "--without-pip", tmp_path / "env")
    assert made.returncode == 0, made.stderr
    install(tmp_path / "env", wheels["waypost"], "openai")
    with a_world(tmp_path) as (here, url):
        said = here.start(url, [tmp_path / "env/bin/python", "-W", "error", APP])

    assert "This is small." in said


def interpreter(version: str) -> Path | None:
    """Return the Python of ``version``, on the path or where pyenv keeps those that are not."""
    found = shutil.which(f"python{version}")
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for python in (*([Path(found)] if found else []), *kept):
        if run(python, "--version").stdout.startswith(f"Python {version}."):
            return python
    return None


def test_a_browser_s_python_chooses(wheels: Mapping[str, Path], tmp_path: Path) -> None:
    """Pyodide under Node, without cryptography, which only Pyodide's own CDN has for it."""
    need("node", "npm")
    fetched = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--silent", f"pyodide@{PYODIDE}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if fetched.returncode != 0:
        pytest.skip(f"npm: {fetched.stderr[-300:]}")
    wheel = run(
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", tmp_path,
        "--only-binary=:all:", "--platform=pyemscripten_2026_0_wasm32", "--python-version=3.14",
        "--implementation=cp", "--abi=cp314", MSGSPEC,
    )  # fmt: skip
    assert wheel.returncode == 0, wheel.stderr
    (msgspec,) = tmp_path.glob("*.whl")

    said = subprocess.run(
        ["node", HERE / "pyodide.mjs", CHOOSING, msgspec, wheels["waypost"]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert said.stdout.split() == CHOSEN, said.stderr[-1_000:]


def test_the_extras_of_the_sdk_bring_the_servers(
    wheels: Mapping[str, Path], tmp_path: Path
) -> None:
    def command(*arguments: str) -> str:
        said = run(tmp_path / "bin/waypost", *arguments)
        assert "Traceback" not in said.stderr
        return said.stdout + said.stderr

    venv.create(tmp_path)
    install(tmp_path, wheels["waypost"], wheels["waypost_server"])
    assert "waypost[validator]" in command("validator", "serve")

    find = ("--find-links", wheels["waypost_server"].parent)
    install(tmp_path, *find, f"{wheels['waypost']}[validator]")
    assert "validator.yaml" in command("validator", "serve")
