"""The shared cases, decided by the edge for those who cannot embed the SDK."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from support.publisher import Publisher
from support.worlds import a_policy
from waypost.client import Waypost
from waypost.client.testing import StaticManifest, unsigned_token
from waypost.edge.serving.app import create_app
from waypost.shared.contracts import Declared, Proposal, decode_policy
from waypost.shared.wire.headers import FACTS, PROPOSAL, format_facts, format_proposal

pytestmark = pytest.mark.anyio

VECTORS = Path(__file__).parents[1] / "vectors"
POLICY = decode_policy((VECTORS / "policy.json").read_bytes())
HELLO = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}


def a_tree(folder: Path, publisher: Publisher) -> Path:
    """What an edge serves: the bundle, and the root that it starts from."""
    for path, content in {
        "v1/prod/bundle.json": publisher.publish(),
        "metadata/1.root.json": publisher.root,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def client_of(tree: Path, **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=create_app(tree))
    return httpx.AsyncClient(transport=transport, base_url="http://edge", headers=headers)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    publisher = Publisher(policy=msgspec.structs.replace(POLICY, projection="client"))
    return a_tree(tmp_path_factory.mktemp("tree"), publisher)


def cases() -> Iterator[Any]:
    for case in json.loads((VECTORS / "requests.json").read_text()):
        yield pytest.param(case, id=case["name"])


@pytest.mark.parametrize("case", list(cases()))
async def test_the_edge_decides_requests_as_the_vectors_say(
    case: dict[str, Any], tree: Path
) -> None:
    headers = {"Authorization": f"Bearer {unsigned_token(**case['token'])}"}
    if case["proposal"] is not None:
        headers[PROPOSAL] = format_proposal(Proposal(model=case["proposal"]))
    if case["declared"]:
        headers[FACTS] = format_facts(msgspec.convert(case["declared"], Declared))

    async with client_of(tree, **headers) as client:
        answer = await client.post("/v1/decide", json=case["body"])

    if case["expect"]["verdict"] == "refused":
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            403,
            case["expect"]["reason"],
        )
    else:
        assert {key: answer.json()[key] for key in case["expect"]} == case["expect"]


async def test_a_thin_client_gets_what_the_sdk_chooses(tmp_path: Path) -> None:
    publisher = Publisher(policy=a_policy(projection="client"))
    token = unsigned_token(tier="free")
    async with client_of(a_tree(tmp_path, publisher), Authorization=f"Bearer {token}") as client:
        said = (await client.post("/v1/decide", json=HELLO)).json()

    wp = Waypost(token=token, manifest=StaticManifest(a_policy()), refresh_interval_s=None)
    choice = wp.choose("Hello")
    assert (said["model"], said["route"]) == (choice.model, choice.route)
    assert said["cost_estimate_nusd"] == choice.cost_nusd
    assert said["explanation"]["sentence"] == choice.sentence
    assert said["proposal"] == 'model="small", route="short-chat", manifest=1'


async def test_a_new_publication_is_decided_by_at_once(tmp_path: Path) -> None:
    publisher = Publisher(policy=a_policy(projection="client"))
    async with client_of(
        a_tree(tmp_path, publisher), Authorization=f"Bearer {unsigned_token()}"
    ) as client:
        before = (await client.post("/v1/decide", json=HELLO)).json()["manifest"]
        bundle = tmp_path / "v1/prod/bundle.json"
        bundle.with_suffix(".new").write_bytes(publisher.publish())
        bundle.with_suffix(".new").replace(bundle)
        after = (await client.post("/v1/decide", json=HELLO)).json()["manifest"]
    assert (before, after) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"headers": {}}, 401, "token_missing"),
        ({"headers": {"Authorization": "Bearer none.of.ours"}}, 401, "token_malformed"),
        ({"content": b"{"}, 400, "invalid_json"),
        ({"content": b" " * 4_000_001}, 413, "body_too_large"),
        ({"params": {"channel": "canary"}}, 404, "not_found"),
        ({"params": {"channel": "../../etc"}}, 404, "not_found"),
    ],
)
async def test_what_cannot_be_decided_says_why(
    changes: dict[str, Any], status: int, code: str, tree: Path
) -> None:
    request = {
        "content": json.dumps(HELLO).encode(),
        "headers": {"Authorization": f"Bearer {unsigned_token()}"},
        **changes,
    }
    async with client_of(tree) as client:
        answer = await client.post("/v1/decide", **request)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert b"Traceback" not in answer.content


async def test_by_an_expired_manifest_nothing_is_decided(tmp_path: Path) -> None:
    publisher = Publisher(policy=a_policy(projection="client"))
    tree = a_tree(tmp_path, publisher)
    (tree / "v1/prod/bundle.json").write_bytes(publisher.publish(expires=int(time.time()) - 5))
    async with client_of(tree, Authorization=f"Bearer {unsigned_token()}") as client:
        answer = await client.post("/v1/decide", json=HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "expired")
