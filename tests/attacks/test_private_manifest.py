"""Reading what is private out of what is public: not a bit of it is there.

Two operators who differ only in what they marked private publish the same bytes, down to the
signatures. So nothing of it can be derived: no name, price, length, hash or count.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.projects import a_project
from waypost.edge.project.project import Project
from waypost.edge.publishing.publish import publish
from waypost.edge.publishing.repository import ROLES
from waypost.edge.publishing.signing_keys import load_keyring, load_signers
from waypost.shared.trust.bundle import unpack_bundle

NOW = int(time.time())

Model = Mapping[str, object]


def a_model(provider: str, **changes: object) -> dict[str, object]:
    return {
        "provider": provider,
        "price": {"input": 1, "output": 2},
        "tiers": ["free", "pro"],
        "tokens": {"context": 8_000, "output": 4_000},
        **changes,
    }


def policy(private: Mapping[str, Model], *, providers: Mapping[str, object] | None = None) -> str:
    """Return a policy with two public models, and ``private`` ones wherever a model can be."""
    names = list(private)
    return yaml.safe_dump(
        {
            "tiers": ["free", "pro"],
            "providers": {"open": {}, **(providers or {})},
            "models": {
                "small": a_model("open"),
                "large": a_model("open", quality=80),
                **{name: {**model, "private": True} for name, model in private.items()},
            },
            "routes": [
                {"name": "batch", "when": {"interactive": False}, "models": ["small", *names]},
                {"name": "default", "models": ["small"], "fallback": [*names, "large"]},
            ],
            "last_resort": [*names, "large"],
        },
        sort_keys=False,
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with keys that every operator below shares, so that signatures compare."""
    return a_project(tmp_path_factory.mktemp("keys") / "project").directory


def published(keys: Path, folder: Path, text: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the public and the private tree after publishing ``text`` twice."""
    shutil.rmtree(folder, ignore_errors=True)
    project = Project(shutil.copytree(keys, folder))
    project.policy.write_text(text)
    keyring = load_keyring(project.keys)
    for _ in range(2):
        publish(
            project,
            channel="prod",
            signers=load_signers(keyring, project.keys, ROLES, passphrase=None),
            hints_keys=keyring.of("hints"),
            now=NOW,
        )
    return tree(project.public), tree(project.private)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).filter(
    lambda name: (
        name
        not in (
            "small",
            "large",
            "open",
            "null",
            "true",
            "false",
            "yes",
            "no",
            "on",
            "off",
            "y",
            "n",
        )
    )
)
secret_models = st.dictionaries(
    names,
    st.builds(
        a_model,
        st.sampled_from(["open", "secretive"]),
        price=st.fixed_dictionaries({"input": st.integers(0, 99), "output": st.integers(0, 99)}),
        quality=st.integers(0, 100),
        name=names,
        tokens=st.fixed_dictionaries(
            {"context": st.integers(5_000, 90_000), "output": st.integers(1, 4_000)}
        ),
    ),
    max_size=4,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret_models)
def test_what_is_private_changes_not_one_public_byte(
    keys: Path, tmp_path: Path, private: dict[str, Model]
) -> None:
    bare, _ = published(keys, tmp_path / "bare", policy({}))
    public, full = published(
        keys,
        tmp_path / "rich",
        policy(private, providers={"secretive": {"promises": ["no_training"]}}),
    )
    assert public == bare
    for name in private:
        assert any(name.encode() in data for data in full.values())


def test_nothing_private_stands_in_a_public_byte_in_any_spelling(
    keys: Path, tmp_path: Path
) -> None:
    secrets = {
        "moonshot": a_model(
            "acquisition-target",
            name="moonshot-preview-0451",
            price={"input": 123.456, "output": 987.654},
            tiers=["pro"],
            quality=97,
        )
    }
    text = policy(secrets, providers={"acquisition-target": {"region": "antarctica"}})
    public, full = published(keys, tmp_path / "project", text)
    everything = b"\n".join([*(name.encode() for name in public), *public.values()]).lower()
    hidden = b"\n".join(full.values()).lower()
    for word in (b"moonshot", b"acquisition", b"antarctica", b"123456", b"987654"):
        assert word in hidden
        assert word not in everything
    # Nor a digest, which would confirm a guess.
    for data in full.values():
        assert hashlib.sha256(data).hexdigest().encode() not in everything


def test_what_a_client_learns_of_the_full_manifest_is_its_version(
    keys: Path, tmp_path: Path
) -> None:
    public, _ = published(keys, tmp_path / "project", policy({"moonshot": a_model("open")}))
    files = unpack_bundle(public["v1/prod/bundle.json"])
    assert not [path for path in files if "full" in path]
    (snapshot,) = [json.loads(text) for path, text in files.items() if "snapshot" in path]
    assert snapshot["signed"]["meta"]["full.json"] == {"version": 2}


def test_a_route_to_private_models_alone_shows_its_row_and_no_model(
    keys: Path, tmp_path: Path
) -> None:
    text = policy({"moonshot": a_model("open")}).replace("  - small\n  - moonshot", "  - moonshot")
    public, _ = published(keys, tmp_path / "project", text)
    policies = [json.loads(data) for path, data in public.items() if "/policy/" in path]
    newest = max(policies, key=lambda policy: policy["version"])
    batch, default = newest["routes"]
    assert (batch["name"], batch["models"]) == ("batch", [])
    assert default["fallback"] == ["large"]
