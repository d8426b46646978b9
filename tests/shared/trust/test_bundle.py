"""The bundle is transport: it carries no trust, and it has limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.publisher import Publisher
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Route
from waypost.shared.errors import TrustError
from waypost.shared.trust.bundle import (
    MAX_BUNDLE_BYTES,
    MAX_FILES,
    pack_bundle,
    unpack_bundle,
)

DIGEST = "a" * 64


def code_of(bundle: bytes) -> str:
    with pytest.raises(TrustError) as caught:
        unpack_bundle(bundle)
    return caught.value.code


def test_a_bundle_gives_back_the_exact_text_it_was_made_of() -> None:
    files = {
        "metadata/1.root.json": '{"é": "\\u00e9"}',
        "metadata/timestamp.json": "{}\n",
        f"targets/policy/{DIGEST}.prod.json": " ",
    }
    assert unpack_bundle(pack_bundle(files)) == files


def test_equal_repositories_make_equal_bundles_whatever_the_order_of_their_files() -> None:
    files = {"metadata/2.root.json": "b", "metadata/1.root.json": "a"}
    assert pack_bundle(files) == pack_bundle(dict(reversed(files.items())))


@pytest.mark.parametrize(
    "path",
    [
        "metadata/../../etc/passwd.json",
        "/metadata/1.root.json",
        "metadata/1.root.json/../../x",
        "metadata//1.root.json",
        "metadata/root.json",
        "metadata/1.ROOT.json",
        "metadata/1.root.json\n",
        "metadata/1.r\u043e\u043et.json",
        "metadata/\u0661.root.json",
        "metadata/12345678901.root.json",
        f"targets/policy/{DIGEST}.../x.json",
        f"targets/../{DIGEST}.prod.json",
        "targets/policy/prod.json",
        f"targets\\policy\\{DIGEST}.prod.json",
        "",
    ],
)
def test_a_path_that_no_repository_has_is_refused(path: str) -> None:
    assert code_of(pack_bundle({path: "{}"})) == "format"


@pytest.mark.parametrize(
    "bundle",
    [
        b"",
        b"null",
        b"[]",
        b"<!doctype html><title>502</title>",
        b'{"format":"tuf-bundle/1"}',
        b'{"files":{}}',
        b'{"format":"tuf-bundle/2","files":{}}',
        b'{"format":"tuf-bundle/1","files":{"metadata/1.root.json":{}}}',
        b'{"format":"tuf-bundle/1","files":{"metadata/1.root.json":"\\ud800"}}',
        b'{"format":"tuf-bundle/1","files":{"metadata/1.root.json":"\xff"}}',
        b'{"format":"tuf-bundle/1","files":{}} {}',
        b"[" * 100_000,
        b'{"format":"tuf-bundle/1","files":{}, "x":' + b"[" * 100_000,
        '{"format":"tuf-bundle/1","files":{}}'.encode("utf-16"),
    ],
)
def test_what_is_not_a_bundle_is_refused_as_such(bundle: bytes) -> None:
    assert code_of(bundle) == "format"


def test_a_bundle_beyond_the_limits_is_refused_as_too_large() -> None:
    assert code_of(b" " * (MAX_BUNDLE_BYTES + 1)) == "too_large"
    assert code_of(pack_bundle({"metadata/1.root.json": "x" * (2**21 + 1)})) == "too_large"
    many = {f"metadata/{n}.root.json": "" for n in range(MAX_FILES + 1)}
    assert code_of(pack_bundle(many)) == "too_large"


def test_a_policy_of_two_thousand_models_fits() -> None:
    models = tuple(
        a_model(f"model-{n}", promises=("hipaa_baa", "no_training", "zero_retention"))
        for n in range(2_000)
    )
    names = tuple(model.id for model in models)
    policy = a_policy(models=models, routes=(Route(name="default", models=names),), last_resort=())
    bundle = Publisher(policy=policy).publish()
    assert len(unpack_bundle(bundle)) < MAX_FILES
    assert len(bundle) < MAX_BUNDLE_BYTES / 3


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_trust_error(data: bytes) -> None:
    for bundle in (data, b'{"format":"tuf-bundle/1","files":{"metadata/1.root.json":"' + data):
        with pytest.raises(TrustError):
            unpack_bundle(bundle)
