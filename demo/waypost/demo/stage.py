"""Everything a demonstration plays on: a project, its keys and manifest, and three servers.

Nothing here knows more than a user could do by hand: the same project files, the same servers
started by the same commands. Whatever was made is gone when the stage is left.
"""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import httpx
import msgspec
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from waypost.demo import local_model, upstream
from waypost.demo.live import find_live
from waypost.demo.processes import Server, running, waypost_command
from waypost.edge.authoring.load_policy import load_policy
from waypost.edge.commands.init_project import AUDIENCE, ISSUER, KID, init_project
from waypost.edge.project.project import Project
from waypost.edge.publishing.publish import publish
from waypost.edge.publishing.repository import ROLES
from waypost.edge.publishing.signing_keys import create_keys, load_keyring, load_signers
from waypost.edge.tokens.issue import mint, new_claims
from waypost.shared.contracts import Policy
from waypost.shared.errors import StoreError

__all__ = ["CHANNEL", "Mode", "Persona", "Stage", "set_stage"]

Mode = Literal["simulated", "real", "live"]

CHANNEL = "prod"
TOKEN_LIFETIME_S = 3_600  # what the project's issuers file allows
TRIAL_ACCOUNT = "trial"
TRIAL_LIMIT_USD = 0.000001  # less than the cheapest answer
MANIFEST_REFRESH_S = 1.0
CONSOLE_VARIABLE = "WAYPOST_DEMO_CONSOLE_TOKEN"
READY_DEADLINE_S = 30.0

CAPABLE_QUALITY = 85  # from here on, live mode takes the provider's better model


class Persona(Struct, frozen=True, kw_only=True):
    """Somebody who asks, as their token says it."""

    name: str
    tier: str
    account: str
    data_classes: tuple[str, ...] = ()
    region: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A running deployment.

    Attributes:
        models: what answers, in words; shown above every table.
    """

    mode: Mode
    models: str
    project: Project
    edge_url: str
    validator: Server
    upstream_url: str
    key: Ed25519PrivateKey
    console_token: str

    @property
    def validator_url(self) -> str:
        """Where requests go."""
        return self.validator.url()

    @property
    def console_url(self) -> str:
        """Where an operator looks; ``console_token`` lets in."""
        return f"{self.validator_url}/console"

    @property
    def manifest_url(self) -> str:
        """Where clients fetch the manifest."""
        return f"{self.edge_url}/v1/{CHANNEL}/bundle.json"

    def token(self, persona: Persona, *, forged: bool = False) -> str:
        """Return an access token, good for an hour.

        Args:
            forged: sign it with a key of the forger's own, and claim the issuer's key id.
        """
        claims = new_claims(
            iss=ISSUER,
            aud=AUDIENCE,
            sub=persona.name,
            tier=persona.tier,
            account=persona.account,
            now=int(time.time()),
            jti=secrets.token_hex(16),
            lifetime_s=TOKEN_LIFETIME_S,
            data_classes=persona.data_classes,
            region=persona.region,
        )
        key = Ed25519PrivateKey.generate() if forged else self.key
        return mint(claims, key=key, kid=KID)

    @contextmanager
    def outage(self, provider: str) -> Generator[None, None, None]:
        """Have ``provider`` answer 503 for the length of the block."""
        url = f"{self.upstream_url}/{provider}/outage"
        httpx.put(url).raise_for_status()
        try:
            yield
        finally:
            httpx.delete(url).raise_for_status()


@contextmanager
def set_stage(mode: Mode, *, say: Callable[[str], None]) -> Generator[Stage, None, None]:
    """Build and start everything; end and remove it when the block is left.

    Args:
        say: is told what is being done.

    Raises:
        WaypostError: something could not be made or did not start; nothing is left behind.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="waypost-demo-")))
        now = int(time.time())

        say("writing a policy, making keys and the trust root")
        project = Project(folder)
        key = Ed25519PrivateKey.generate()
        init_project(folder, key=key)
        create_keys(project, passphrase=None, now=now)
        policy = load_policy(project.policy, channel=CHANNEL, version=1, issued_at=now).full

        say("signing and publishing the manifest")
        _publish(project, now=now)

        say("starting the models and the edge")
        relays, models = _relays(mode, policy, stack, folder)
        api_keys = {model.provider: secrets.token_urlsafe(24) for model in policy.models}
        played = _start_upstreams(stack, folder, _play(policy, api_keys, relays))
        edge = stack.enter_context(
            running(
                "the edge",
                waypost_command("edge", "serve", "--dir", str(folder), "--port", "0"),
                announcement="waypost edge listening on",
                log=folder / "edge.log",
            )
        )
        edge_url, upstream_url = edge.url(), played.url()

        say("starting the validator")
        console_token = secrets.token_urlsafe(24)
        _write_validator_settings(
            folder / "validator.yaml",
            manifest_url=f"{edge_url}/v1/{CHANNEL}/bundle.json",
            upstream_url=upstream_url,
            max_tokens_fields={name: field for name, (_, field) in relays.items()},
            providers=api_keys,
            simulated=mode == "simulated",
        )
        validator = stack.enter_context(
            running(
                "the validator",
                waypost_command(
                    "validator",
                    "serve",
                    "--config",
                    str(folder / "validator.yaml"),
                    "--port",
                    "0",
                    "--grace-s",
                    "0",
                ),
                announcement="waypost validator listening on",
                log=folder / "validator.log",
                environment={
                    **{_variable(name): secret for name, secret in api_keys.items()},
                    CONSOLE_VARIABLE: console_token,
                },
            )
        )
        validator_url = validator.url()

        say("publishing where the validator is")
        _point_policy_at(project.policy, policy, validator_url)
        version = _publish(project, now=int(time.time()))
        _until_serving(validator, validator_url, version=version)
        yield Stage(
            mode=mode,
            models=models,
            project=project,
            edge_url=edge_url,
            validator=validator,
            upstream_url=upstream_url,
            key=key,
            console_token=console_token,
        )


def _relays(
    mode: Mode, policy: Policy, stack: ExitStack, folder: Path
) -> tuple[dict[str, tuple[upstream.Relay, str]], str]:
    """Return what stands behind each provider, with its word for ``max_tokens``; and all of it
    in words."""
    providers = sorted({model.provider for model in policy.models})
    match mode:
        case "simulated":
            return {}, "SIMULATED models: real HTTP, keys and streams, canned answers"
        case "real":
            if local_model.model_file() is None:
                raise StoreError(
                    f"the local model is not installed: {local_model.INSTALL}",
                    code="model_missing",
                )
            secret = secrets.token_urlsafe(24)
            server = stack.enter_context(
                running(
                    "the local model",
                    [sys.executable, "-m", "waypost.demo.local_model"],
                    announcement=local_model.ANNOUNCEMENT,
                    log=folder / "local-model.log",
                    stdin=f"{secret}\n",
                )
            )
            relay = upstream.Relay(base_url=f"{server.url()}/v1", api_key=secret)
            return (
                dict.fromkeys(providers, (relay, "max_tokens")),
                f"REAL local model: {local_model.MODEL} plays every model; small, so often wrong",
            )
        case "live":
            with httpx.Client() as http:
                found = find_live(os.environ, http=http)
            relays: dict[str, tuple[upstream.Relay, str]] = {}
            for provider in providers:
                live = found.get(provider, found[""])
                names = {
                    model.name: live.capable if model.quality >= CAPABLE_QUALITY else live.cheap
                    for model in policy.models
                    if model.provider == provider
                }
                relay = msgspec.structs.replace(live.relay, models=names)
                relays[provider] = (relay, live.max_tokens_field)
            used = sorted(
                {f"{live.host} ({live.cheap}, {live.capable})" for live in found.values()}
            )
            return relays, f"LIVE models of {' and '.join(used)}; prices are the demo policy's"


def _play(
    policy: Policy,
    api_keys: Mapping[str, str],
    relays: Mapping[str, tuple[upstream.Relay, str]],
) -> upstream.Config:
    """Return the upstream process's configuration: as fast as the policy expects each model."""
    return upstream.Config(
        providers=tuple(
            upstream.Provider(
                name=provider,
                api_key=secret,
                models={
                    model.name: upstream.Profile(
                        ttft_ms=model.ttft_prior_ms, tokens_per_s=model.tokens_per_s_prior
                    )
                    for model in policy.models
                    if model.provider == provider
                },
                relay=relays[provider][0] if provider in relays else None,
            )
            for provider, secret in api_keys.items()
        )
    )


def _start_upstreams(stack: ExitStack, folder: Path, config: upstream.Config) -> Server:
    path = folder / "upstream.json"
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(config))
    return stack.enter_context(
        running(
            "the model providers",
            [sys.executable, "-m", "waypost.demo.upstream", str(path)],
            announcement=upstream.ANNOUNCEMENT,
            log=folder / "upstream.log",
        )
    )


def _variable(provider: str) -> str:
    return f"WAYPOST_DEMO_KEY_{provider.upper().replace('-', '_')}"


def _write_validator_settings(
    path: Path,
    *,
    manifest_url: str,
    upstream_url: str,
    providers: Mapping[str, str],
    max_tokens_fields: Mapping[str, str],
    simulated: bool,
) -> None:
    settings = {
        "audience": AUDIENCE,
        "channel": CHANNEL,
        "manifest": {"url": manifest_url, "root": "root.json", "refresh_s": MANIFEST_REFRESH_S},
        "providers": {
            name: {
                "base_url": f"{upstream_url}/{name}/v1",
                "api_key": _variable(name),
                "max_tokens_field": max_tokens_fields.get(name, "max_tokens"),
                "simulated": simulated,
                **_speaking(name, simulated=simulated),
            }
            for name in providers
        },
        "console": {"token": CONSOLE_VARIABLE},
        "budgets": {
            "default": [{"window": "day", "limit_usd": 5}],
            "accounts": {TRIAL_ACCOUNT: [{"window": "day", "limit_usd": f"{TRIAL_LIMIT_USD:f}"}]},
        },
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _speaking(provider: str, *, simulated: bool) -> dict[str, object]:
    """Return what a provider speaks: as in docs/providers.md, but for those that are relayed."""
    if simulated and provider in upstream.SPEAKING_MESSAGES:
        return {"dialect": "anthropic"}
    return {"apis": ["chat.completions"]}


def _point_policy_at(file: Path, policy: Policy, validator_url: str) -> None:
    # As text, so that whoever looks into the project finds the comments still there.
    text = file.read_text(encoding="utf-8")
    for endpoint in policy.endpoints:
        text = text.replace(endpoint.url, validator_url)
    file.write_text(text, encoding="utf-8")


def _publish(project: Project, *, now: int) -> int:
    """Return the version that clients and validators will find from now on."""
    keyring = load_keyring(project.keys)
    signing = [role for role in ROLES if role != "root"]
    return publish(
        project,
        channel=CHANNEL,
        signers=load_signers(keyring, project.keys, signing, passphrase=None),
        hints_keys=keyring.of("hints"),
        now=now,
    ).version


class _Readiness(Struct):
    checks: dict[str, str]


def _until_serving(validator: Server, url: str, *, version: int) -> None:
    give_up_at = time.monotonic() + READY_DEADLINE_S
    while time.monotonic() < give_up_at:
        try:
            answer = httpx.get(f"{url}/readyz")
        except httpx.TransportError:
            raise validator.failed("stopped answering while it was starting") from None
        manifest = msgspec.json.decode(answer.content, type=_Readiness).checks.get("manifest")
        if answer.status_code == HTTPStatus.OK and manifest == f"v{version}":
            return
        time.sleep(0.05)
    raise validator.failed(f"did not serve manifest v{version} within {READY_DEADLINE_S:.0f} s")
