"""What nobody knows is refused where it is written: a misspelt duty would be no duty."""

import inspect
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import waypost.client
from support.publisher import Publisher
from support.worlds import a_policy
from waypost.client import AsyncWaypost, Options, Waypost, dpop, testing
from waypost.client._facts import NOTHING, said
from waypost.client.testing import (
    FakeValidator,
    StaticManifest,
    TokenFacts,
    static_async_waypost,
    static_waypost,
    unsigned_token,
)
from waypost.shared.errors import StoreError

Exchange = Callable[..., object]


@pytest.fixture(params=[Waypost, AsyncWaypost])
def client(request: pytest.FixtureRequest) -> type[Waypost]:
    kind: type[Waypost] = request.param
    return kind


def a_client(kind: Exchange, **options: object) -> Any:  # noqa: ANN401 - either
    return kind(manifest=StaticManifest(a_policy()), refresh_interval_s=None, **options)


# ── no argument that nobody reads ──────────────────────────────────────────────────────────────


def taken_by_name(function: Exchange) -> list[str]:
    return [
        name
        for name, each in inspect.signature(function).parameters.items()
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]


def public_calls() -> dict[str, tuple[Exchange, list[str]]]:
    """Return all that apps call, each with what it takes by name."""
    key = dpop.DPoPKey.generate()
    made = {"Waypost": a_client(Waypost), "AsyncWaypost": a_client(AsyncWaypost)}
    made |= {"StaticManifest": StaticManifest(a_policy()), "DPoPKey": key}
    made |= {"FakeValidator": FakeValidator(a_policy())}
    found: dict[str, tuple[Exchange, list[str]]] = {}
    for owner, each in made.items():
        for name, method in inspect.getmembers(each, callable):
            if not name.startswith("_") and inspect.isroutine(method):
                found[f"{owner}.{name}"] = (method, taken_by_name(method))
    options = [*Options.__annotations__, "token"]
    for what, function, names in (
        ("Waypost", Waypost, options),
        ("AsyncWaypost", AsyncWaypost, options),
        ("static_waypost", lambda **more: static_waypost(a_policy(), **more), options),
        ("static_async_waypost", lambda **more: static_async_waypost(a_policy(), **more), options),
        ("unsigned_token", unsigned_token, [*TokenFacts.__annotations__]),
        ("StaticManifest", StaticManifest, taken_by_name(StaticManifest)),
        ("FakeValidator", FakeValidator, taken_by_name(FakeValidator)),
        ("FileKeyStore", dpop.FileKeyStore, taken_by_name(dpop.FileKeyStore)),
        ("KeychainKeyStore", dpop.KeychainKeyStore, taken_by_name(dpop.KeychainKeyStore)),
    ):
        found[what] = (function, names)
    return found


CALLS = public_calls()
MISSPELT = [
    (what, name, wrong)
    for what, (_, names) in CALLS.items()
    for name in names
    if len(name) > 3
    for wrong in (name[:1] + name[2:], name + "s", f"{name[:-1]}_{name[-1]}")
    if wrong not in names
]


@pytest.mark.parametrize("what", sorted({what for what, _, _ in MISSPELT}))
def test_a_misspelt_argument_is_refused_with_the_one_that_was_meant(what: str) -> None:
    call = CALLS[what][0]
    if what in UNNAMED:
        pytest.skip("one positional argument, no duty in it")
    for _, name, wrong in (each for each in MISSPELT if each[0] == what):
        with pytest.raises(TypeError, match=f"has no argument '{wrong}'.*{name}"):
            call(**{wrong: "phi"})


# What takes one thing, which is given by place.
UNNAMED = {
    "StaticManifest.load",
    "FakeValidator.answer",
    "DPoPKey.from_pem",
    "DPoPKey.generate",
}


def test_what_is_like_nothing_there_is_is_refused_too(client: type[Waypost]) -> None:
    with pytest.raises(TypeError, match="has no argument 'nonsense'; there is: base_url, "):
        a_client(client, nonsense=3)


@pytest.mark.parametrize("make", [static_waypost, static_async_waypost])
def test_testing_helpers_take_their_manifest_once(make: Exchange) -> None:
    with pytest.raises(TypeError, match="manifest"):
        make(a_policy(), manifest=StaticManifest(a_policy()))


def test_a_manifest_and_an_address_contradict_each_other(client: type[Waypost]) -> None:
    with pytest.raises(TypeError, match="give manifest, or manifest_url; not both"):
        a_client(client, manifest_url="https://edge.example/v1/prod/bundle.json")


# ── arguments of another kind ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": b"phi"}, "names should be text"),
        ({"data": ["phi", 3]}, "names should be text"),
        ({"data": 3}, "not iterable"),
        ({"tags": [None]}, "names should be text"),
        ({"interactive": "no"}, "interactive should be bool, not str"),
        ({"task": ["a"]}, "task should be str, not list"),
        ({"channel": 3}, "channel should be str, not int"),
        ({"base_url": b"https://x.example"}, "base_url should be str, not bytes"),
        ({"cache_dir": True}, "cache_dir should be str or Path, not bool"),
        ({"refresh_interval_s": "30"}, "refresh_interval_s should be int or float, not str"),
        ({"refresh_interval_s": True}, "refresh_interval_s should be int or float, not bool"),
        ({"proxy": 8080}, "proxy should be str, not int"),
        ({"verify": False}, "verify should be an ssl.SSLContext, not bool"),
        ({"verify": "ca.pem"}, "verify should be an ssl.SSLContext, not str"),
        ({"on_event": []}, "on_event should be a function, not list"),
    ],
)
def test_an_option_of_another_kind_is_refused(
    client: type[Waypost], options: dict[str, object], message: str
) -> None:
    # The rest of the options is as good as none.
    options = {"refresh_interval_s": None, **options}

    with pytest.raises(TypeError, match=message):
        client(manifest=StaticManifest(a_policy()), **options)  # type: ignore[arg-type]


def test_what_is_of_the_right_kind_is_taken(client: type[Waypost], tmp_path: Path) -> None:
    a_client(client, verify=ssl.create_default_context(), cache_dir=str(tmp_path), proxy=None)


@pytest.mark.parametrize("data", ["phi", ("phi",), ["phi"], {"phi"}, (name for name in ["phi"])])
def test_one_class_of_data_may_be_written_in_any_way(data: Any) -> None:  # noqa: ANN401
    assert said(data=data).data_classes == ("phi",)


def test_default_data_is_data_by_another_name(client: type[Waypost]) -> None:
    wp = a_client(client, data="pii", default_data=("phi",))

    assert wp._core.declared(NOTHING).data_classes == ("pii", "phi")


@pytest.mark.parametrize("kind", [str, Path, bytes])
def test_the_trust_root_is_given_as_bytes_or_by_its_path(
    client: type[Waypost], kind: type, tmp_path: Path
) -> None:
    (tmp_path / "root.json").write_bytes(Publisher().root)
    root = Publisher().root if kind is bytes else kind(tmp_path / "root.json")

    client(manifest_url="https://e.example/b.json", root=root, cache_dir=False)

    with pytest.raises(StoreError, match="cannot read the trust root nowhere"):
        client(manifest_url="https://e.example/b.json", root="nowhere.json", cache_dir=False)


def test_all_that_apps_use_is_tried_here() -> None:
    classes = {name for name, each in vars(testing).items() if name in testing.__all__}
    tried = {what.partition(".")[0] for what in CALLS} | {"SeenRequest", "TokenFacts"}

    assert classes <= tried
    assert {"Waypost", "AsyncWaypost"} <= {*waypost.client.__all__} & tried
