"""The two wheels as a user gets them, in an environment of its own."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.wheels import PROJECTS, build_all, install, run

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return build_all(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def clean(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ``bin`` of an environment with the SDK and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder)
    install(folder, wheels["waypost"])
    return folder / "bin"


def names(wheel: Path) -> set[str]:
    return {*zipfile.ZipFile(wheel).namelist()}


def project(name: str) -> Any:  # noqa: ANN401 - as TOML has it
    return tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text())["project"]


def test_the_sdk_alone_chooses_without_a_server_library(clean: Path) -> None:
    result = run(clean / "python", "-W", "error", Path(__file__).parent / "choosing.py")

    assert result.stdout.split() == ["small", "policy_order", "[]"], result.stderr
    assert not (clean / "waypost").exists()


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


def test_what_the_sdk_adds_to_an_app_is_small(wheels: Mapping[str, Path]) -> None:
    assert wheels["waypost"].stat().st_size < 180_000
    assert len(project("waypost")["dependencies"]) == 4


def test_no_file_is_in_both_wheels_and_no_test_in_either(wheels: Mapping[str, Path]) -> None:
    sdk, server = names(wheels["waypost"]), names(wheels["waypost_server"])

    assert {"waypost/client/py.typed", "waypost/shared/py.typed"} <= sdk
    assert {"waypost/edge/py.typed", "waypost/validator/py.typed"} <= server
    assert not sdk & server
    parts = {name.split("/")[1] for name in sdk | server if name.startswith("waypost/")}
    assert parts == {"cli", "client", "demo", "edge", "shared", "validator"}
    assert {name.split("/")[0].partition("-")[0] for name in sdk | server} == {
        "waypost",
        "waypost_server",
    }


def test_server_and_sdk_are_of_one_version() -> None:
    sdk, server = project("waypost"), project("waypost_server")

    assert server["version"] == sdk["version"]
    assert f"waypost=={sdk['version']}" in server["dependencies"]


def test_each_extra_of_the_server_is_one_of_the_sdk() -> None:
    sdk = project("waypost")["optional-dependencies"]
    server = project("waypost_server")["optional-dependencies"]

    expected = {name: [f"waypost-server[{name}]"] for name in server}
    assert {name: sdk.get(name) for name in server} == expected


def test_a_command_whose_extra_is_missing_says_so() -> None:
    code = (
        "import sys\n"
        "sys.modules['pydantic'] = None  # as where it is not installed\n"
        "sys.argv = ['waypost', 'validator', 'serve']\n"
        "from waypost.cli import main\n"
        "main()\n"
    )

    result = run(sys.executable, "-c", code)

    assert result.returncode == 2
    assert "waypost[validator]" in result.stderr
    assert "Traceback" not in result.stderr
