"""The examples of the guide's pages, run as a reader would run them.

The SDK's page, the key ceremony and the CDN guide have tests of their own.
"""

import re
import shlex
import sqlite3
import textwrap
import time
from contextlib import closing
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import openai
import pytest
import yaml
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs

from support.command import Command
from support.ledgers import a_hold
from support.projects import a_project
from support.publisher import Publisher
from support.tokens import App
from support.upstream import running_upstream
from support.validator import HELLO, running_validator
from support.worlds import a_policy
from waypost.edge.authoring.issuers_file import load_issuers
from waypost.edge.authoring.load_policy import load_policy
from waypost.edge.tokens.issue import issuer_key
from waypost.shared.contracts import CONVERSATIONS, Issuers
from waypost.validator.access.tokens import TokenVerifier
from waypost.validator.config import ValidatorConfig, load_config
from waypost.validator.ledger import open_sqlite
from waypost.validator.records import SqliteRecordStore

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = {
    "audience": "waypost",
    "manifest": {"root": "root.json"},
    "providers": {"acme": {"base_url": "https://api.acme.example/v1"}},
}


def blocks(page: str, language: str) -> list[str]:
    """Return the page's code blocks in ``language``; "" for those that say none."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return [
        code
        for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
        if kind == language
    ]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The ``waypost`` command in a new project."""
    a_project(tmp_path)
    monkeypatch.setenv("WAYPOST_KEY_PASSPHRASE", "")
    return Command(tmp_path, monkeypatch, capsys)


def commands_of(block: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [line[1:] for line in lines if line[:1] == ["waypost"]]


# ── policy*.md ─────────────────────────────────────────────────────────────────────────────────


def test_the_smallest_complete_policy_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(next(b for b in blocks("policy", "yaml") if b.startswith("tiers:")))

    policy = load_policy(path, channel="prod", version=1, issued_at=0)

    assert [model.id for model in policy.full.models] == ["small"]


@pytest.mark.parametrize(
    ("page", "begins"), [("policy-conditions", "routes:"), ("policy", "extends:")]
)
def test_the_routes_of_the_policy_pages_are_read_with_their_conditions(
    tmp_path: Path, page: str, begins: str
) -> None:
    smallest = next(b for b in blocks("policy", "yaml") if b.startswith("tiers:"))
    two_models = yaml.safe_load(smallest)
    two_models["models"]["medium"] = deepcopy(two_models["models"]["small"])
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(two_models))
    shown = next(b for b in blocks(page, "yaml") if b.startswith(begins))
    path = tmp_path / "policy.yaml"
    path.write_text(shown if begins == "extends:" else f"extends: base.yaml\n{shown}")

    policy = load_policy(path, channel="prod", version=1, issued_at=0)

    assert policy.full.routes[0].name == yaml.safe_load(shown)["routes"][0]["name"]
    assert policy.full.routes[0].when


def test_the_price_by_length_of_the_prices_page_is_read(tmp_path: Path) -> None:
    smallest = next(b for b in blocks("policy", "yaml") if b.startswith("tiers:"))
    priced = yaml.safe_load(smallest)
    priced["models"]["small"]["price"] = yaml.safe_load(blocks("policy-prices", "yaml")[0])["price"]
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(priced))

    policy = load_policy(path, channel="prod", version=1, issued_at=0)

    (above,) = policy.full.models[0].price.above
    assert above.above_input_tokens == 272_000


def test_the_invariants_of_the_policy_page_are_proved_or_shown_to_be_broken(
    command: Command,
) -> None:
    path = command.folder / "policy.yaml"
    own = re.sub(r"^invariants:\n(?:[ #].*\n|\n)*", "", path.read_text(), flags=re.M)
    example = next(b for b in blocks("policy", "yaml") if b.startswith("invariants:"))
    path.write_text(own + example)

    said = command("policy", "prove").out

    assert "holds   patient data stays under an agreement" in said
    assert "holds   free stays cheap" in said
    assert "BROKEN  nobody depends on one model" in said
    assert 'curl "$WAYPOST_URL/v1/decide"' in said


def test_the_cases_of_the_policy_page_are_as_expected(command: Command) -> None:
    cases = next(b for b in blocks("policy-commands", "yaml") if b.startswith("cases:"))
    (command.folder / "policy.test.yaml").write_text(cases)

    assert "2 of 2 cases as expected" in command.good("policy", "test")


def test_the_commands_of_the_policy_page_run(command: Command) -> None:
    for line in commands_of(blocks("policy-commands", "")[0]):
        command.good(*line)


# ── validator.md ───────────────────────────────────────────────────────────────────────────────


def test_the_first_start_of_the_validator_page_ends_with_a_published_policy_and_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WAYPOST_KEY_PASSPHRASE", "for tests alone")
    make, _, use = blocks("validator", "")[:3]
    new, *then = commands_of(make)
    Command(tmp_path, monkeypatch, capsys).good(*new)
    gateway = Command(tmp_path / new[-1], monkeypatch, capsys)

    for line in then:
        if "serve" not in line:
            gateway.good(*line)
    mint = re.findall(r"TOKEN=.\(waypost (.*)\)", use)[0]

    assert gateway.good(*shlex.split(mint)).count(".") == 2
    assert (gateway.folder / "public/v1/prod/bundle.json").is_file()


# ── tokens.md ──────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_minted_and_inspected_as_the_page_says(command: Command) -> None:
    mint, inspect = commands_of(blocks("tokens", "")[0])

    token = command.good(*mint).strip()
    said = command.good(*[token if word == "$TOKEN" else word for word in inspect])

    assert "The signature holds." in said


def test_the_backend_of_the_tokens_page_issues_a_token_that_holds(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(command.folder)
    issuers = load_issuers(Path("issuers.yaml"), channel="prod", version=1, issued_at=0)
    names: dict[str, Any] = {}

    exec(blocks("tokens", "python")[0], names)  # noqa: S102

    verifier = TokenVerifier(issuers, audience="waypost")
    claims = verifier.verify(f"Bearer {names['token']}", now=int(time.time()))
    assert (claims.sub, claims.tier, claims.budget.account) == ("alice", "pro", "acme")


def test_taking_back_is_written_as_the_tokens_page_says(tmp_path: Path) -> None:
    issuers = _issuers_of_tokens_page(tmp_path, 0, "app-1", "app-2")

    assert [key.status for key in issuers.issuers[0].keys] == ["revoked", "active"]
    assert len(issuers.revoked_jtis) == len(issuers.min_iat_by_subject) == 1
    assert len(issuers.min_iat_by_tenant) == len(issuers.min_epoch_by_subject) == 1


def test_several_issuers_are_written_as_the_tokens_page_says(tmp_path: Path) -> None:
    ours, partner = _issuers_of_tokens_page(tmp_path, 1, "app-1", "partner-1").issuers

    assert (ours.accounts, ours.tenants) == (("acme", "team-*"), ("acme",))
    assert (partner.accounts, partner.tenants) == (("partner",), None)


def _issuers_of_tokens_page(folder: Path, place: int, *kids: str) -> Issuers:
    text = blocks("tokens", "yaml")[place]
    for kid in kids:
        public = issuer_key(Ed25519PrivateKey.generate(), kid=kid)
        text = re.sub(rf'(kid: {kid}, .*x: )"…"', rf'\1"{public.x}"', text)
    path = folder / "issuers.yaml"
    path.write_text(text)
    return load_issuers(path, channel="prod", version=1, issued_at=0)


# ── dpop.md ────────────────────────────────────────────────────────────────────────────────────


def test_the_settings_of_the_dpop_page_are_settings(tmp_path: Path) -> None:
    issuers, settings = blocks("dpop", "yaml")
    public = issuer_key(Ed25519PrivateKey.generate(), kid="app-1")
    (tmp_path / "issuers.yaml").write_text(issuers.replace("…", public.x or ""))
    (tmp_path / "validator.yaml").write_text(yaml.safe_dump(SETTINGS) + settings)

    (issuer,) = load_issuers(
        tmp_path / "issuers.yaml", channel="prod", version=1, issued_at=0
    ).issuers
    config = load_config(tmp_path / "validator.yaml")

    assert (issuer.dpop, issuer.bearer_clients) == ("required", ("nightly",))
    assert config.dpop is not None
    assert config.dpop.origins == ["https://gateway.example"]


def test_a_token_is_narrowed_and_used_as_the_dpop_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    parts = [textwrap.dedent(block) for block in blocks("dpop", "python")]
    issuer = App(audience="waypost")
    made: dict[str, Any] = {
        "ask_app_for_token": lambda *, bound_to: issuer.mint(jkt=bound_to, now=int(time.time())),
        "manifest_url": "https://edge.example/v1/prod/bundle.json",
        "root": Publisher().root,
    }

    exec(parts[0], made)  # noqa: S102
    made["token"] = made["ask_app_for_token"](bound_to=made["key"].thumbprint)
    exec(parts[1], made)  # noqa: S102
    exec(parts[2], made)  # noqa: S102

    verifier = TokenVerifier(issuer.issuers(), audience="waypost")
    claims = verifier.verify(f"DPoP {made['narrowed']}", now=int(time.time()))
    assert (claims.models, claims.data_classes) == (("small",), ("phi",))
    assert [one.limits[0].limit_nusd for one in claims.allowances] == [50_000_000]


# ── validator.md, budgets.md ───────────────────────────────────────────────────────────────────


def test_the_settings_of_the_validator_page_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "validator.yaml"
    path.write_text(
        blocks("validator", "yaml")[0].replace("projection: client", "projection: full")
    )

    assert load_config(path).providers["openai"].max_tokens_field == "max_completion_tokens"


@pytest.mark.parametrize("number", range(len(blocks("budgets", "yaml"))))
def test_the_settings_of_the_budgets_page_are_settings(number: int, tmp_path: Path) -> None:
    path = tmp_path / "validator.yaml"
    path.write_text(yaml.safe_dump(SETTINGS) + blocks("budgets", "yaml")[number])

    assert isinstance(load_config(path), ValidatorConfig)


async def test_the_commands_of_the_budgets_page_run(command: Command) -> None:
    records = command.folder / "state" / "records.sqlite"
    records.parent.mkdir(exist_ok=True)
    await SqliteRecordStore.open(records).close()
    path = command.folder / "state" / "ledger.sqlite"
    path.parent.mkdir(exist_ok=True)
    await open_sqlite(path).close()
    for line in [*commands_of(blocks("budgets", "")[0]), *commands_of(blocks("budgets", "")[1])]:
        await to_thread.run_sync(partial(command.good, *line))


async def test_the_query_of_the_budgets_page_finds_books_that_do_not_balance(
    tmp_path: Path,
) -> None:
    query = blocks("budgets", "sql")[0]
    path = tmp_path / "ledger.sqlite"
    ledger = open_sqlite(path)
    await ledger.reserve(a_hold("one", 10))
    await ledger.settle("one", 7)
    await ledger.close()

    with closing(sqlite3.connect(path)) as books:
        assert books.execute(query).fetchall() == []
        books.execute("UPDATE windows SET spent_nusd = spent_nusd + 1 WHERE window = 'total'")
        assert len(books.execute(query).fetchall()) == 1


def test_the_settings_of_the_providers_page_are_settings(tmp_path: Path) -> None:
    path = tmp_path / "validator.yaml"
    rest = {name: value for name, value in SETTINGS.items() if name != "providers"}
    path.write_text(yaml.safe_dump(rest) + blocks("providers", "yaml")[0])

    assert load_config(path).providers["gemini"].dialect == "gemini"


# ── api.md ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_api_page_s_client_is_answered_and_its_json_is_what_comes(tmp_path: Path) -> None:
    models = [structs.replace(m, endpoints=CONVERSATIONS) for m in a_policy().models]
    policy = a_policy(models=tuple(models))
    error, anthropics, decision = (msgspec.json.decode(text) for text in blocks("api", "json"))
    async with (
        running_upstream() as acme,
        running_validator(tmp_path, {"acme": acme, "medcloud": acme}, policy=policy) as validator,
    ):
        names = {
            "anthropic": anthropic,
            "openai": openai,
            "token": validator.bearer().removeprefix("Bearer "),
        }
        source = blocks("api", "python")[0].replace("http://127.0.0.1:8080", validator.url)
        source += blocks("api", "python")[1].replace("http://127.0.0.1:8080", validator.url)
        await to_thread.run_sync(exec, source, names)
        names["client"].close()  # type: ignore[attr-defined]
        names["claude"].close()  # type: ignore[attr-defined]
        told = await validator.client.post(
            "/v1/decide",
            json={**HELLO, "model": "frontier"},
            headers=validator.headers(tier="free"),
        )
        unknown = await validator.chat({**HELLO, "model": "gpt-99"})
        unknown_too = await validator.client.post(
            "/v1/messages", json={**HELLO, "model": "gpt-99"}, headers=validator.headers()
        )

    assert [seen.json["messages"][0]["content"] for seen in acme.seen] == ["2 + 2?"] * 2
    assert told.json().keys() == decision.keys()
    assert told.json()["explanation"].keys() == decision["explanation"].keys()
    assert (told.json()["verdict"], told.json()["reason"]) == (
        decision["verdict"],
        decision["reason"],
    )
    told_claude = unknown_too.json()
    assert told_claude.keys() == anthropics.keys()
    assert told_claude["error"]["details"] == anthropics["error"]["details"]
    wrong = unknown.json()["error"]
    assert wrong.keys() == error["error"].keys()
    assert {**wrong, "message": ""} == {**error["error"], "message": ""}
