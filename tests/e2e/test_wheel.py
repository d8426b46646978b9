"""The wheel as a user gets it: without extras, in an environment of its own."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT
    )
    assert built.returncode == 0, built.stderr[-2_000:]
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    constraints = ROOT / "constraints.txt"
    installed = run(folder / "bin/python", "-m", "pip", "install", "-q", "-c", constraints, wheel)
    assert installed.returncode == 0, installed.stderr[-2_000:]
    return folder / "bin"


def test_the_sdk_imports_and_decides_without_any_extra(clean: Path) -> None:
    code = (
        "import sys, waypost.client\n"
        "heavy = {'starlette', 'pydantic', 'jwt', 'typer', 'rich', 'yaml'} & sys.modules.keys()\n"
        "print(sorted(heavy), sorted(waypost.client.__all__) == list(waypost.client.__all__))\n"
    )

    result = run(clean / "python", "-W", "error", "-c", code)

    assert result.stdout.strip() == "[] True", result.stderr


def test_the_command_without_extras_says_which_to_install(clean: Path) -> None:
    result = run(clean / "waypost")

    assert result.returncode == 2
    assert "pip install 'waypost[all]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_wheel_is_typed_and_holds_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {f"waypost/{part}/py.typed" for part in ("client", "edge", "shared", "validator")} <= {
        *names
    }
    assert "waypost/__init__.py" not in names
    assert not [name for name in names if name.startswith("tests")]


def test_every_public_type_of_the_sdk_is_known(clean: Path, tmp_path: Path) -> None:
    """Pyright looks where ``python`` on the path has its packages, hence the environment."""
    environment = {
        **os.environ,
        "VIRTUAL_ENV": str(clean.parent),
        "PATH": f"{clean}{os.pathsep}{os.environ['PATH']}",
    }
    pyright = Path(sys.executable).parent / "pyright"
    result = subprocess.run(
        [str(pyright), "--verifytypes", "waypost.client", "--ignoreexternal"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )

    assert "Type completeness score: 100%" in result.stdout, result.stdout[-3_000:]


def test_what_the_sdk_adds_to_an_app_is_small(wheel: Path) -> None:
    """One wheel holds all parts; of these the SDK loads two."""
    sizes = {
        part: sum(
            entry.compress_size
            for entry in zipfile.ZipFile(wheel).infolist()
            if entry.filename.startswith(f"waypost/{part}/")
        )
        for part in ("client", "shared")
    }

    assert sum(sizes.values()) < 150_000, sizes
    metadata = zipfile.ZipFile(wheel).read("waypost-0.1.0.dist-info/METADATA").decode()
    direct = [
        line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert len(direct) == 4
