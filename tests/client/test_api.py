"""The API as a whole: what is exported, and where files go."""

import inspect
from pathlib import Path
from types import ModuleType

import pytest

import waypost.client
import waypost.client.testing
from waypost.client import AsyncWaypost, Waypost
from waypost.client._paths import user_cache_dir


@pytest.mark.parametrize("module", [waypost.client, waypost.client.testing])
def test_all_lists_the_api_in_order(module: ModuleType) -> None:
    names = module.__all__
    assert names == sorted(names)
    assert all(hasattr(module, name) for name in names)


def test_everything_public_in_the_package_is_listed() -> None:
    public = {
        name
        for name, value in vars(waypost.client).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(waypost.client.__all__)


def test_everything_public_has_a_docstring() -> None:
    for module in (waypost.client, waypost.client.testing):
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.isclass(value):
                continue
            assert value.__doc__, name
            for member, what in vars(value).items():
                if not member.startswith("_") and inspect.isfunction(what):
                    assert what.__doc__, f"{name}.{member}"


def test_both_clients_have_the_same_methods() -> None:
    def api(client: type) -> set[str]:
        return {name.removeprefix("a") for name in dir(client) if not name.startswith("_")}

    assert api(Waypost) == api(AsyncWaypost)


HOME = Path("/home/u")


@pytest.mark.parametrize(
    ("platform", "env", "expected"),
    [
        ("linux", {}, HOME / ".cache" / "waypost"),
        ("linux", {"XDG_CACHE_HOME": "/var/c"}, Path("/var/c/waypost")),
        ("linux", {"XDG_CACHE_HOME": "relative"}, HOME / ".cache" / "waypost"),
        ("linux", {"XDG_CACHE_HOME": ""}, HOME / ".cache" / "waypost"),
        ("darwin", {}, HOME / "Library" / "Caches" / "waypost"),
        ("win32", {"LOCALAPPDATA": "/l"}, Path("/l/waypost/Cache")),
        ("win32", {}, HOME / "AppData" / "Local" / "waypost" / "Cache"),
    ],
)
def test_caches_go_where_the_platform_keeps_them(
    platform: str, env: dict[str, str], expected: Path
) -> None:
    assert user_cache_dir(platform=platform, env=env, home=HOME) == expected
