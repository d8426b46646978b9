"""The recipe for token exchange, run against an identity provider that really signs."""

import hmac
import json
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import keyring
import pytest
from anyio import to_thread
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from keyring.backends import fail
from msgspec import structs

from support.origin import Reply, serving
from support.tokens import App
from support.upstream import running_upstream
from support.validator import HELLO, running_validator
from support.validator import serving as running
from waypost.client.dpop import DPoPKey
from waypost.shared.contracts import Claims
from waypost.shared.tokens.issuer_keys import as_jwk, b64url
from waypost.validator.access.dpop import ProofChecker
from waypost.validator.access.tokens import TokenVerifier

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs/tokens.md"
RECIPE = Path(__file__).parents[2] / "docs/examples/token_exchange.py"
BACKEND = App(iss="https://app.example", audience="waypost")


def load_recipe() -> ModuleType:
    module = ModuleType("token_exchange")
    exec(compile(RECIPE.read_text(), str(RECIPE), "exec"), module.__dict__)  # noqa: S102
    return module


@dataclass
class Provider:
    """An identity provider with keys that it may rotate."""

    url: str = ""
    signer: App = field(default_factory=lambda: App(kid="idp-1", key=App.with_rs256().key))
    asked: list[str] = field(default_factory=list)
    issuer: str = ""

    def answer(self, headers: dict[str, str]) -> Reply:
        self.asked.append(headers[":path"])
        if headers[":path"] == "/.well-known/openid-configuration":
            found: Any = {"issuer": self.issuer or self.url, "jwks_uri": f"{self.url}/keys"}
        else:
            found = {"keys": [as_jwk(self.signer.public_key())]}
        return Reply(json.dumps(found).encode())

    def id_token(self, *, by: App | None = None, **changes: Any) -> str:  # noqa: ANN401
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": "my-app",
            "sub": "alice",
            "iat": now,
            "exp": now + 300,
            "org": "clinic",
            "groups": ["waypost-pro"],
            **changes,
        }
        said = {name: value for name, value in claims.items() if value is not ...}
        return (by or self.signer).sign(json.dumps(said).encode(), typ="JWT")


@contextmanager
def a_provider() -> Iterator[Provider]:
    provider = Provider()
    with serving(provider.answer) as origin:
        provider.url = origin.url.removesuffix("/v1/prod/bundle.json")
        yield provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    with a_provider() as made:
        yield made


@pytest.fixture
async def backend(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[httpx.AsyncClient]:
    """The recipe, set up from its environment as its docstring says."""
    key = tmp_path / "issuer.key.pem"
    key.write_bytes(BACKEND.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for name, value in {
        "IDP_ISSUER": provider.url,
        "IDP_CLIENT_ID": "my-app",
        "WAYPOST_ISSUER": BACKEND.iss,
        "WAYPOST_KID": BACKEND.kid,
        "WAYPOST_KEY": str(key),
    }.items():
        monkeypatch.setenv(name, value)
    app = load_recipe().from_environment()
    async with running(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def exchanged(backend: httpx.AsyncClient, token: str, **more: str) -> httpx.Response:
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "subject_token": token,
        **more,
    }
    return await backend.post("/token", data=form)


def verified(response: httpx.Response) -> Claims:
    answer = response.json()
    verifier = TokenVerifier(BACKEND.issuers(), audience="waypost")
    return verifier.verify(f"{answer['token_type']} {answer['access_token']}", now=int(time.time()))


async def test_an_id_token_becomes_an_access_token_that_holds(
    backend: httpx.AsyncClient, provider: Provider
) -> None:
    response = await exchanged(backend, provider.id_token())

    claims = verified(response)
    assert (claims.sub, claims.client_id, claims.tier) == ("alice", "my-app", "pro")
    assert (claims.budget.account, claims.data_classes) == ("clinic", ("phi",))
    assert 290 <= response.json()["expires_in"] <= 300  # no longer than the session
    assert response.headers["cache-control"] == "no-store"


async def test_the_page_s_client_is_served_by_a_validator(
    backend: httpx.AsyncClient, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M)[-1]
    monkeypatch.setattr(keyring, "get_keyring", fail.Keyring)  # none of who runs this
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "validator").mkdir()
    async with (
        running_upstream() as acme,
        running_validator(
            tmp_path / "validator", {"acme": acme, "medcloud": acme}, audience="waypost"
        ) as validator,
    ):
        checker = ProofChecker([validator.url], nonce_key=b"n" * 32)
        structs.force_setattr(validator.services.access, "proofs", checker)
        bundle = validator.publisher.publish(issuers=BACKEND.issuers())
        await validator.client.put("/admin/bundle", content=bundle)

        def ask() -> httpx.Response:
            with serving(lambda _: Reply(bundle)) as edge:
                names: dict[str, Any] = {
                    "session": {"id_token": provider.id_token(nonce="n-0S6"), "nonce": "n-0S6"},
                    "manifest_url": edge.url,
                    "root": validator.publisher.root,
                }
                exec(  # noqa: S102
                    source.replace(
                        "https://app.example", str(backend.base_url).rstrip("/")
                    ).replace("https://gateway.example", validator.url),
                    names,
                )
                with names["wp"] as wp, wp.http_client() as client:
                    answer: httpx.Response = client.post(
                        f"{wp.base_url}/chat/completions", json=HELLO
                    )
                    return answer

        answer = await to_thread.run_sync(ask)

    # The clinic's data goes where it may.
    assert (answer.status_code, acme.seen[0].json["model"]) == (200, "acme-clinical")


async def test_a_client_that_names_its_key_gets_a_token_bound_to_it(
    backend: httpx.AsyncClient, provider: Provider
) -> None:
    key = DPoPKey.generate()

    response = await exchanged(backend, provider.id_token(), dpop_jkt=key.thumbprint)

    assert response.json()["token_type"] == "DPoP"
    assert verified(response).cnf.jkt == key.thumbprint  # type: ignore[union-attr]


async def test_the_provider_is_asked_for_its_keys_once(
    backend: httpx.AsyncClient, provider: Provider
) -> None:
    for _ in range(3):
        assert (await exchanged(backend, provider.id_token())).status_code == 200
    for _ in range(3):
        unknown = App(kid="unknown", key=provider.signer.key)
        assert (await exchanged(backend, provider.id_token(by=unknown))).status_code == 400

    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another-app"},
        {"aud": ["my-app", "another-app"]},
        {"azp": "another-app"},
        {"iss": "https://evil.example"},
        {"exp": int(time.time()) - 60},
        {"iat": int(time.time()) + 3_600, "exp": int(time.time()) + 7_200},
        {"exp": ...},
        {"sub": ...},
        {"sub": 7},
    ],
)
async def test_an_id_token_that_is_not_for_us_or_not_now_is_refused(
    backend: httpx.AsyncClient, provider: Provider, changes: dict[str, Any]
) -> None:
    response = await exchanged(backend, provider.id_token(**changes))

    assert (response.status_code, response.json()) == (400, {"error": "invalid_grant"})


async def test_forged_id_tokens_are_refused(backend: httpx.AsyncClient, provider: Provider) -> None:
    thief = App(kid="idp-1", key=App.with_rs256().key)
    head, body, _ = provider.id_token().split(".")
    none = b64url(b'{"alg":"none","kid":"idp-1","typ":"JWT"}')
    hs256 = b64url(b'{"alg":"HS256","kid":"idp-1","typ":"JWT"}')
    public = provider.signer.key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = b64url(hmac.digest(pem, f"{hs256}.{body}".encode(), "sha256"))

    for forged in (
        provider.id_token(by=thief),
        f"{none}.{body}.",
        f"{hs256}.{body}.{signature}",
        f"{head}.{body}.",
        "",
        "x",
    ):
        response = await exchanged(backend, forged)
        assert (response.status_code, response.json()) == (400, {"error": "invalid_grant"})


async def test_an_id_token_of_another_login_is_refused(
    backend: httpx.AsyncClient, provider: Provider
) -> None:
    ours, without = provider.id_token(nonce="n-0S6", azp="my-app"), provider.id_token()

    assert (await exchanged(backend, ours, nonce="n-0S6")).status_code == 200
    for token, nonce in ((ours, "another"), (ours, ""), (without, "n-0S6")):
        refused = await exchanged(backend, token, nonce=nonce)
        assert (refused.status_code, refused.json()) == (400, {"error": "invalid_grant"})


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"requested_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"audience": "another-validator"}, "invalid_target"),
        ({"resource": "https://elsewhere.example"}, "invalid_target"),
        ({"scope": "everything"}, "invalid_scope"),
        ({"dpop_jkt": "short"}, "invalid_request"),
    ],
)
async def test_another_request_is_refused(
    backend: httpx.AsyncClient, provider: Provider, form: dict[str, str], error: str
) -> None:
    response = await exchanged(backend, provider.id_token(), **form)

    assert (response.status_code, response.json()) == (400, {"error": error})


@pytest.mark.parametrize("body", [b"a=1&a=2", b"\xff", b"a" * 30_000])
async def test_a_body_that_is_no_form_is_refused(backend: httpx.AsyncClient, body: bytes) -> None:
    response = await backend.post("/token", content=body)

    assert (response.status_code, response.json()) == (400, {"error": "invalid_request"})


async def test_the_document_of_another_issuer_is_not_believed(
    backend: httpx.AsyncClient, provider: Provider
) -> None:
    provider.issuer = "https://evil.example"

    assert (await exchanged(backend, provider.id_token())).status_code == 400
