"""The wheel as a user gets it: without extras, in an environment of its own."""

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
