"""The commands around what people write: ``init``, ``policy`` and ``token``.

Thin shells. What takes long to import is imported by the command that needs it, so that
``waypost --help`` is quick.
"""

import json
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args
from uuid import uuid4

import typer

from waypost.cli.output import console, fail, print_json, table
from waypost.edge.commands import analysis_cli, calibrate_cli, training_cli, trial_cli
from waypost.edge.commands.common import JSON, load_unsigned

if TYPE_CHECKING:
    from waypost.edge.tokens.issue import SigningKey
    from waypost.shared.contracts import Issuer, Issuers, Measured, SpendLimit, Window
    from waypost.shared.decision.compiled import CompiledPolicy

__all__ = ["register"]

MAX_LIFETIME_S = 86_400  # no issuer's may be longer
TIMES = {"exp", "iat", "nbf"}

policy_commands = typer.Typer(no_args_is_help=True, help="Check and understand a policy.")
token_commands = typer.Typer(no_args_is_help=True, help="Make and read access tokens.")

PolicyFile = Annotated[Path, typer.Argument(help="The policy, as written.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("init")(_init)
    analysis_cli.add_commands(policy_commands)
    trial_cli.add_commands(policy_commands)
    training_cli.register(policy_commands)
    calibrate_cli.register(policy_commands)
    app.add_typer(policy_commands, name="policy")
    app.add_typer(token_commands, name="token")


def _init(
    folder: Annotated[Path, typer.Argument(help="Where to; made if it is not there.")],
) -> None:
    """Write a policy to start from, settings, and a key to sign access tokens with."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from waypost.edge.commands.init_project import init_project

    written = init_project(folder, key=Ed25519PrivateKey.generate())
    for path in written:
        console.print(f"wrote {path}", highlight=False, markup=False)
    console.print(
        f"""
Next, in {folder}:
  waypost keys new            # the keys that sign manifests, and root.json to trust them by
  waypost policy check        # after each change to policy.yaml, as is
  waypost policy test         # which tries the cases in policy.test.yaml
  waypost publish
  waypost edge serve          # hands the manifest to clients
  waypost validator serve     # in another terminal
  waypost token mint --sub alice --tier pro --account acme
""",
        highlight=False,
        markup=False,
        soft_wrap=True,
        end="",
    )


@policy_commands.command("explain")
def _explain(
    policy: PolicyFile = Path("policy.yaml"),
    tier: Annotated[str | None, typer.Option(help="Default: the policy's first.")] = None,
    text: Annotated[str | None, typer.Option(help="The prompt; measured as a chat.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, help="The prompt's length.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="A data class; may repeat.")] = None,
    task: Annotated[str | None, typer.Option(help="What the client says it is for.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A client's tag; may repeat.")] = None,
    need: Annotated[list[str] | None, typer.Option(help="tools, vision, json, audio.")] = None,
    tenant: Annotated[str | None, typer.Option()] = None,
    region: Annotated[str | None, typer.Option()] = None,
    background: Annotated[bool, typer.Option("--background", help="Nobody is waiting.")] = False,
    propose: Annotated[str | None, typer.Option(help="The model a client proposes.")] = None,
    demand: Annotated[
        str | None, typer.Option(help="""JSON, as in a body: {"provider": {"zdr": true}}.""")
    ] = None,
    at: Annotated[int | None, typer.Option(min=0, help="Unix seconds; default: now.")] = None,
    as_json: JSON = False,
) -> None:
    """Say which model a request would get under a policy, and why not the others."""
    from msgspec import structs

    from waypost.shared.contracts import Declared, Facts, Proposal, Signed
    from waypost.shared.decision.compiled import compile_policy
    from waypost.shared.decision.costs import cost_estimate_nusd
    from waypost.shared.decision.engine import decide
    from waypost.shared.decision.explain import explain
    from waypost.shared.money import format_usd

    now = _now() if at is None else at
    compiled = compile_policy(load_unsigned(policy).full)
    measured = _measured(compiled, text or "", {} if demand is None else _demands(demand))
    if tokens is not None:
        measured = structs.replace(measured, input_tokens=tokens, max_input_tokens=tokens)
    facts = Facts(
        now=now,
        signed=Signed(
            tier=tier or compiled.policy.tiers[0],
            tenant=tenant,
            region=region,
            data_classes=tuple(data or ()),
        ),
        measured=structs.replace(measured, needs=tuple(sorted(need or ()))),
        declared=Declared(interactive=not background, task=task, tags=tuple(tag or ())),
    )
    decision = decide(compiled, facts, Proposal(model=propose) if propose else None)
    explanation = explain(compiled, facts, decision)
    if as_json:
        print_json({"decision": decision, "explanation": explanation, "facts": facts})
        return
    console.print(explanation.sentence, highlight=False, markup=False, soft_wrap=True)
    rows: list[tuple[str, str, str]] = []
    for name in dict.fromkeys((*decision.chain, *compiled.models)):
        out = explanation.exclusions.get(name)
        if out is not None:
            rows.append((name, "-", out.detail))
            continue
        estimate = format_usd(cost_estimate_nusd(compiled.policy, compiled.models[name], facts))
        place = str(decision.chain.index(name) + 1) if name in decision.chain else "allowed"
        rows.append((name, place, f"about {estimate}, first token {compiled.ttft_ms[name]} ms"))
    console.print(table(("model", "order", "why"), rows))


def _demands(text: str) -> dict[str, object]:
    """Return the fields of a body that demand something, as written; the rest is none of them."""
    import msgspec

    try:
        said = msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        said = {}
    if not said or not said.keys() <= {"models", "provider"}:
        fail("--demand takes a JSON object with models, provider or both", exit_code=2)
    return said


def _measured(policy: "CompiledPolicy", text: str, demands: dict[str, object]) -> "Measured":
    """Return what client and validator would measure of a chat that says ``text``."""
    import msgspec

    from waypost.shared.requests.measure import decode_chat, measure_chat

    body = msgspec.json.encode({"messages": [{"role": "user", "content": text}], **demands})
    return measure_chat(decode_chat(body), body=body, reader=policy.reader)


@token_commands.command("mint")
def _mint(
    sub: Annotated[str, typer.Option(help="Who it is for.")],
    tier: Annotated[str, typer.Option()],
    account: Annotated[str, typer.Option(help="Whose budget pays.")],
    key: Annotated[Path, typer.Option(help="The issuer's private key.")] = Path("issuer.key.pem"),
    issuers: Annotated[
        Path, typer.Option(help="Where the key's public half names issuer and key id.")
    ] = Path("issuers.yaml"),
    iss: Annotated[str | None, typer.Option(help="Instead of the issuers file.")] = None,
    kid: Annotated[str | None, typer.Option(help="Instead of the issuers file.")] = None,
    aud: Annotated[
        str | None,
        typer.Option(
            help="The validator's audience, if not as in validator.yaml beside the issuers file."
        ),
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="Dollars per window, as day=5.00; may repeat.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="A duty that always holds.")] = None,
    models: Annotated[list[str] | None, typer.Option(help="Only these; may repeat.")] = None,
    tenant: Annotated[str | None, typer.Option()] = None,
    region: Annotated[str | None, typer.Option()] = None,
    scope: Annotated[str, typer.Option(help="Words with spaces between.")] = "",
    epoch: Annotated[int, typer.Option(min=0, help="The subject's auth_epoch.")] = 0,
    one_time: Annotated[bool, typer.Option("--one-time", help="Good for one request.")] = False,
    jkt: Annotated[
        str | None, typer.Option(help="Thumbprint of the key that alone may use it (DPoP).")
    ] = None,
    lifetime: Annotated[
        int | None,
        typer.Option(
            min=1, max=86_400, help="Seconds; 600, or less where the issuer's max_lifetime_s is."
        ),
    ] = None,
) -> None:
    """Write an access token to standard output. Whoever has it can spend from the account.

    With --jkt, only who holds that key as well.
    """
    from waypost.edge.tokens.issue import mint, new_claims

    signing_key = _signing_key(key)
    longest_s = MAX_LIFETIME_S
    if iss is None or kid is None:
        issuer, named_kid = _named(signing_key, issuers)
        iss, kid, longest_s = iss or issuer.iss, kid or named_kid, issuer.max_lifetime_s
    claims = new_claims(
        iss=iss,
        aud=aud or _audience(issuers.with_name("validator.yaml")),
        sub=sub,
        tier=tier,
        account=account,
        now=_now(),
        jti=uuid4().hex,
        lifetime_s=_lifetime_s(lifetime, longest_s),
        limits=tuple(map(_limit, limit or ())),
        tenant=tenant,
        region=region,
        data_classes=tuple(data or ()),
        models=tuple(models) if models else None,
        scope=scope,
        auth_epoch=epoch,
        one_time=one_time,
        jkt=jkt,
    )
    sys.stdout.write(mint(claims, key=signing_key, kid=kid) + "\n")


def _signing_key(path: Path) -> "SigningKey":
    from waypost.edge.tokens.issue import load_signing_key
    from waypost.shared.errors import StoreError

    try:
        return load_signing_key(path.read_bytes())
    except OSError as exc:
        raise StoreError(
            f"cannot read {path}: {exc.strerror}; `waypost init` writes one, --key names another"
        ) from exc


def _audience(path: Path) -> str:
    """Return the audience of the validator whose settings are at ``path``; else ``init``'s."""
    from waypost.cli.yamlfile import FileError, read_yaml
    from waypost.edge.commands.init_project import AUDIENCE

    if not path.exists():
        return AUDIENCE
    file = read_yaml(path)
    audience = file.value.get("audience")
    if not isinstance(audience, str) or not audience:
        file.find(("audience",), "there is none; name the validator, or give --aud")
        raise FileError(file.findings)
    return audience


def _lifetime_s(wanted_s: int | None, longest_s: int) -> int:
    from waypost.edge.tokens.issue import DEFAULT_LIFETIME_S

    if wanted_s is None:
        return min(DEFAULT_LIFETIME_S, longest_s)
    if wanted_s > longest_s:
        raise typer.BadParameter(
            f"{wanted_s} s is more than the issuer's max_lifetime_s, {longest_s}: every validator"
            " would refuse the token"
        )
    return wanted_s


def _named(key: "SigningKey", path: Path) -> "tuple[Issuer, str]":
    """Return issuer and key id by which the issuers file knows ``key``."""
    from waypost.shared.errors import StoreError
    from waypost.shared.tokens.issuer_keys import public_key

    ours = key.public_key()
    for issuer in _issuers(path).issuers:
        for known in issuer.keys:
            if public_key(known) == ours:
                return issuer, known.kid
    raise StoreError(
        f"{path} does not list this key; add its public half, or give --iss and --kid",
        code="key_unknown",
    )


def _limit(text: str) -> "SpendLimit":
    from waypost.edge.authoring.fields import exact_nusd
    from waypost.shared.contracts import SpendLimit, Window

    window, _, dollars = text.partition("=")
    windows: tuple[str, ...] = get_args(Window)
    if window not in windows or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", dollars):
        raise typer.BadParameter(
            f"'{text}' should be dollars per {', '.join(windows)}, such as day=5.00"
        )
    return SpendLimit(window=cast("Window", window), limit_nusd=exact_nusd(Decimal(dollars)))


@token_commands.command("inspect")
def _inspect(
    token: Annotated[str, typer.Argument(help="The token, or - to read standard input.")],
    issuers: Annotated[
        Path | None, typer.Option(help="Check the signature by this issuers file.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Show what a token says. Exit 1 if its signature is checked and does not hold."""
    from waypost.edge.tokens.issue import is_signed, read_unverified
    from waypost.shared.tokens.narrowing import MAX_NARROWINGS

    if token == "-":  # noqa: S105 - the usual name of standard input
        token = sys.stdin.read()
    token = token.strip()
    header, claims = read_unverified(token)
    narrowings: list[dict[str, object]] = []
    while isinstance(parent := claims.get("parent"), str) and len(narrowings) < MAX_NARROWINGS:
        narrowings.append(claims | {"parent": "below"})
        token = parent
        header, claims = read_unverified(token)
    signed: bool | None = None
    if issuers is not None:
        signed = is_signed(token, _issuers(issuers))
    if as_json:
        said = {"header": header, "claims": claims, "signature_holds": signed}
        print_json({**said, "narrowings": narrowings} if narrowings else said)
    else:
        notice = {
            None: "THE SIGNATURE WAS NOT CHECKED: anyone can have written this. Try --issuers.",
            True: "The signature holds. A validator also checks audience, times and revocation.",
            False: "THE SIGNATURE DOES NOT HOLD by these issuers.",
        }
        console.print(notice[signed], style="bold green" if signed else "bold red")
        for narrowing in narrowings:
            console.print(table(("narrowed by its holder", "not checked here"), _rows(narrowing)))
        console.print(table(("field", "value"), [*_rows(header), *_rows(claims)]))
    if signed is False:
        raise typer.Exit(1)


def _rows(fields: Mapping[str, object]) -> list[tuple[str, str]]:
    # As ASCII JSON: whoever wrote the token may have put control codes for terminals in it.
    return [
        (json.dumps(name)[1:-1], json.dumps(value) + (_when(value) if name in TIMES else ""))
        for name, value in fields.items()
    ]


def _when(value: object) -> str:
    if not isinstance(value, int) or not 0 <= value < 2**36:
        return ""
    return f" ({datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC)"


def _issuers(path: Path) -> "Issuers":
    from waypost.edge.authoring.issuers_file import load_issuers

    return load_issuers(path, channel="draft", version=1, issued_at=_now())


def _now() -> int:
    return int(time.time())
