"""A new project, and the commands around what people write."""

import json
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from typer.testing import CliRunner, Result

from support.tokens import NOW, App
from waypost.client.dpop import DPoPKey
from waypost.edge.authoring.issuers_file import load_issuers
from waypost.edge.authoring.load_policy import load_policy
from waypost.edge.commands.init_project import AUDIENCE, init_project
from waypost.edge.commands.policy_cli import register
from waypost.edge.tokens.issue import (
    SigningKey,
    issuer_key,
    load_signing_key,
    mint,
    new_claims,
)
from waypost.shared.errors import PolicyError, StoreError, WaypostError
from waypost.shared.tokens.issuer_keys import public_key
from waypost.validator.access.tokens import TokenVerifier
from waypost.validator.config import load_config

WAYPOST = Path(sys.executable).with_name("waypost")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    init_project(tmp_path / "project", key=Ed25519PrivateKey.generate())
    return tmp_path / "project"


def pem(key: SigningKey, password: bytes | None = None) -> bytes:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def run(*arguments: str, stdin: str | None = None) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)
    return CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": "200"})


def mint_in(project: Path, *arguments: str) -> str:
    key, issuers = project / "issuer.key.pem", project / "issuers.yaml"
    wanted = ("--sub", "alice", "--tier", "pro", "--account", "acme", *arguments)
    result = run("token", "mint", "--key", str(key), "--issuers", str(issuers), *wanted)
    assert result.exit_code == 0, result.output
    return result.output.strip()


# ── init ───────────────────────────────────────────────────────────────────────────────────────


def test_a_new_project_holds_together(project: Path) -> None:
    policy = load_policy(project / "policy.yaml", channel="prod", version=1, issued_at=NOW).full
    issuers = load_issuers(project / "issuers.yaml", channel="prod", version=1, issued_at=NOW)
    config = load_config(project / "validator.yaml")

    # Every provider that a model is at can be reached, and the key signs what validators take.
    assert {model.provider for model in policy.models} == config.providers.keys()
    key = load_signing_key((project / "issuer.key.pem").read_bytes())
    assert issuers.issuers[0].keys[0] == issuer_key(key, kid=issuers.issuers[0].keys[0].kid)
    assert config.audience == AUDIENCE


def test_only_its_owner_can_read_the_token_key(project: Path) -> None:
    assert stat.S_IMODE((project / "issuer.key.pem").stat().st_mode) == 0o600


def test_each_project_has_a_key_of_its_own(tmp_path: Path) -> None:
    assert run("init", str(tmp_path / "a")).exit_code == 0
    assert run("init", str(tmp_path / "b")).exit_code == 0

    keys = {(tmp_path / name / "issuer.key.pem").read_bytes() for name in "ab"}
    assert len(keys) == 2


@pytest.mark.parametrize("name", ["policy.yaml", "issuer.key.pem"])
def test_init_writes_over_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")

    with pytest.raises(StoreError, match=f"already has {name}; nothing was written") as caught:
        init_project(tmp_path, key=Ed25519PrivateKey.generate())

    assert caught.value.code == "already_exists"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_init_follows_no_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "issuer.key.pem").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreError, match="already has"):
        init_project(tmp_path, key=Ed25519PrivateKey.generate())
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match=r"cannot write to .*file/project") as caught:
        init_project(tmp_path / "file" / "project", key=Ed25519PrivateKey.generate())
    assert caught.value.code == "store_unavailable"


def test_init_says_what_to_do_next(tmp_path: Path) -> None:
    output = run("init", str(tmp_path / "p")).output

    for command in ("keys new", "policy check", "publish", "edge serve", "validator serve"):
        assert f"waypost {command}" in output


# ── policy check, policy explain ───────────────────────────────────────────────────────────────


def test_a_good_policy_is_called_good(project: Path) -> None:
    result = run("policy", "check", str(project / "policy.yaml"))

    assert result.exit_code == 0
    assert "policy.yaml: good, 9 notes" in result.output
    assert "warning" not in result.output


def test_a_wrong_policy_is_exit_1_with_one_line_per_mistake(project: Path) -> None:
    path = project / "policy.yaml"
    path.write_text(path.read_text().replace("models: capable", "models: capabel"))

    result = run("policy", "check", str(path))

    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "there is no model 'capabel'; did you mean 'capable'?" in result.output


def test_findings_come_as_json_for_scripts(project: Path) -> None:
    path = project / "policy.yaml"
    path.write_text(path.read_text().replace("fallback: medium", "fallback: mediun"))

    result = run("policy", "check", str(path), "--json")

    assert result.exit_code == 1
    [finding] = json.loads(result.output)["findings"]
    assert finding["file"] == "policy.yaml"
    assert finding["path"] == "routes[2].fallback[0]"
    assert path.read_text().splitlines()[finding["line"] - 1].strip() == "fallback: mediun"


def test_explain_says_which_model_and_why_not_the_others(project: Path) -> None:
    result = run(
        "policy", "explain", str(project / "policy.yaml"),
        "--tier", "free", "--text", "Prove it, step by step.", "--propose", "frontier",
    )  # fmt: skip

    assert result.exit_code == 0
    assert "keywords has 'prove', 'step by step'" in result.output
    assert "so medium was used instead" in result.output
    assert "not open to tier free" in result.output


@pytest.mark.parametrize(
    ("options", "model", "route"),
    [
        (["--tier", "pro", "--data", "phi"], "clinical", "short-chat"),
        (["--tier", "pro", "--tokens", "9000"], "medium", "long-input"),
        (["--tier", "pro", "--tokens", "500", "--background"], "medium", "background"),
        (["--tier", "pro", "--tokens", "500", "--task", "coding"], "large", "coding"),
        (["--tier", "pro", "--tenant", "sandbox"], "small", "sandbox"),
        (["--need", "vision"], "medium", "short-chat"),
        (["--data", "phi"], None, None),
        (["--tier", "pro", "--demand", '{"models": ["large"]}'], "large", "short-chat"),
        (["--demand", '{"provider": {"only": ["unheard-of"]}}'], None, None),
    ],
)
def test_explain_takes_the_facts_one_by_one(
    project: Path, options: list[str], model: str | None, route: str | None
) -> None:
    result = run("policy", "explain", str(project / "policy.yaml"), "--json", *options)

    decision = json.loads(result.output)["decision"]
    assert (decision["model"], decision["route"]) == (model, route)


@pytest.mark.parametrize(
    ("demand", "code"),
    [("large", 2), ("[]", 2), ('{"model": "large"}', 2), ('{"provider": {"olny": []}}', 1)],
)
def test_a_demand_that_no_body_can_make_is_not_explained(
    project: Path, demand: str, code: int
) -> None:
    result = run("policy", "explain", str(project / "policy.yaml"), "--demand", demand)

    assert result.exit_code == code


# ── token mint, token inspect ──────────────────────────────────────────────────────────────────


def test_a_minted_token_is_taken_by_the_projects_validator(project: Path) -> None:
    token = mint_in(
        project, "--limit", "day=5.00", "--limit", "total=0.000000001", "--data", "phi",
        "--region", "eu", "--models", "small", "--tenant", "acme", "--lifetime", "60",
    )  # fmt: skip
    issuers = load_issuers(project / "issuers.yaml", channel="prod", version=1, issued_at=NOW)
    verifier = TokenVerifier(issuers, audience=load_config(project / "validator.yaml").audience)
    iat = json.loads(run("token", "inspect", token, "--json").output)["claims"]["iat"]

    claims = verifier.verify(f"Bearer {token}", now=iat)

    assert [(one.window, one.limit_nusd) for one in claims.budget.limits] == [
        ("day", 5_000_000_000),
        ("total", 1),
    ]
    assert (claims.sub, claims.tier, claims.region, claims.tenant) == ("alice", "pro", "eu", "acme")
    assert (claims.data_classes, claims.models) == (("phi",), ("small",))
    assert claims.exp - claims.iat == 60


def inspected(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(run("token", "inspect", token, "--json").output)["claims"]
    return claims


def test_a_minted_token_is_for_the_validator_and_as_short_as_the_issuer_of_its_folder(
    project: Path,
) -> None:
    settings, issuers = project / "validator.yaml", project / "issuers.yaml"
    settings.write_text(settings.read_text().replace("audience: waypost", "audience: https://llm"))
    issuers.write_text(issuers.read_text().replace("max_lifetime_s: 3_600", "max_lifetime_s: 90"))

    claims = inspected(mint_in(project))

    assert (claims["aud"], claims["exp"] - claims["iat"]) == ("https://llm", 90)
    assert inspected(mint_in(project, "--aud", "other"))["aud"] == "other"
    result = run(
        "token", "mint", "--sub", "a", "--tier", "b", "--account", "c", "--lifetime", "91",
        "--key", str(project / "issuer.key.pem"), "--issuers", str(issuers),
    )  # fmt: skip
    assert result.exit_code == 2
    assert "max_lifetime_s, 90" in " ".join(result.output.split())


@pytest.mark.parametrize("text", ["channel: prod", "audience: 7", "audience: ''"])
def test_settings_without_an_audience_mint_nothing(project: Path, text: str) -> None:
    (project / "validator.yaml").write_text(text)

    result = run(
        "token", "mint", "--sub", "a", "--tier", "b", "--account", "c",
        "--key", str(project / "issuer.key.pem"), "--issuers", str(project / "issuers.yaml"),
    )  # fmt: skip

    assert isinstance(result.exception, WaypostError)
    assert "validator.yaml" in result.exception.message
    assert "--aud" in result.exception.message


def test_waypost_says_its_version() -> None:
    said = subprocess.run([WAYPOST, "--version"], capture_output=True, text=True, check=True)

    assert said.stdout == f"waypost {version('waypost')}\n"


@pytest.mark.parametrize("limit", ["day", "day=", "day=-1", "day=1e9", "eon=1", "day=0.0000000001"])
def test_a_limit_that_makes_no_sense_is_a_usage_error(project: Path, limit: str) -> None:
    result = run(
        "token", "mint", "--sub", "a", "--tier", "b", "--account", "c", "--limit", limit,
        "--key", str(project / "issuer.key.pem"), "--issuers", str(project / "issuers.yaml"),
    )  # fmt: skip

    assert result.exit_code == 2
    assert "such as day=5.00" in result.output


def test_a_key_the_issuers_do_not_list_mints_nothing(project: Path) -> None:
    (project / "issuer.key.pem").write_bytes(pem(App().key))
    result = run(
        "token", "mint", "--sub", "a", "--tier", "b", "--account", "c",
        "--key", str(project / "issuer.key.pem"), "--issuers", str(project / "issuers.yaml"),
    )  # fmt: skip

    assert isinstance(result.exception, WaypostError)
    assert result.exception.code == "key_unknown"


def test_inspect_shows_what_a_narrowed_token_comes_down_to(project: Path) -> None:
    key = DPoPKey.generate()
    bound = mint_in(project, "--jkt", key.thumbprint, "--one-time", "--scope", "infer")
    narrowed = key.narrow(bound, to=key.thumbprint, lifetime_s=60, models=["small"])

    told = json.loads(
        run(
            "token", "inspect", narrowed, "--issuers", str(project / "issuers.yaml"), "--json"
        ).output
    )

    assert told["signature_holds"]
    assert told["claims"]["cnf"] == {"jkt": key.thumbprint}
    assert (told["claims"]["one_time"], told["claims"]["scope"]) == (True, "infer")
    assert told["narrowings"][0]["models"] == ["small"]
    assert "narrowed by its holder" in run("token", "inspect", narrowed).output


def test_inspect_warns_that_it_checked_nothing(project: Path) -> None:
    result = run("token", "inspect", "-", stdin=mint_in(project) + "\n")

    assert result.exit_code == 0
    assert "THE SIGNATURE WAS NOT CHECKED" in result.output
    assert '"alice"' in result.output


def test_inspect_checks_the_signature_when_given_issuers(project: Path) -> None:
    issuers = str(project / "issuers.yaml")
    stranger = App(iss="https://app.example", kid="app-1").mint()

    good = run("token", "inspect", mint_in(project), "--issuers", issuers)
    forged = run("token", "inspect", stranger, "--issuers", issuers)

    assert (good.exit_code, "The signature holds." in good.output) == (0, True)
    assert (forged.exit_code, "THE SIGNATURE DOES NOT HOLD" in forged.output) == (1, True)


def test_a_token_cannot_command_the_terminal() -> None:
    app = App()
    token = app.sign(b'{"iss":"\\u001b[2J\\u009b2J"}')

    output = run("token", "inspect", token).output

    assert "\x1b[2J" not in output
    assert "\x9b" not in output


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "e30.W10.AA", "é.é.é"])
def test_what_is_no_token_is_named_so(text: str) -> None:
    result = run("token", "inspect", "--", text)

    assert isinstance(result.exception, WaypostError)
    assert result.exception.code == "token_format"


# ── issuing ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("app", [App(), App.with_es256()], ids=["EdDSA", "ES256"])
def test_a_key_survives_its_file_and_its_public_half_loads(app: App) -> None:
    loaded = load_signing_key(pem(app.key))

    assert issuer_key(loaded, kid=app.kid) == app.public_key()
    assert public_key(app.public_key()) == app.key.public_key()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a key",
        pem(Ed25519PrivateKey.generate(), password=b"secret"),
        pem(generate_private_key(SECP384R1())),
        pem(generate_private_key(SECP256R1()))[:-60],
    ],
    ids=["empty", "text", "encrypted", "P-384", "cut"],
)
def test_only_plain_ed25519_and_p256_keys_sign_tokens(data: bytes) -> None:
    with pytest.raises(StoreError) as caught:
        load_signing_key(data)
    assert caught.value.code == "key_unusable"


def test_claims_no_validator_would_take_are_not_made() -> None:
    with pytest.raises(PolicyError, match=r"the token would be refused: .*jti") as caught:
        new_claims(iss="i", aud="a", sub="s", tier="pro", account="acme", now=NOW, jti="too-short")
    assert caught.value.code == "claims_invalid"


def test_a_token_says_what_is_set_and_nothing_else() -> None:
    app = App()
    token = mint(app.claims(), key=app.key, kid=app.kid)
    claims = json.loads(run("token", "inspect", token, "--json").output)["claims"]

    assert None not in claims.values()
    assert "models" not in claims
