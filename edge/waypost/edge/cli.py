"""The edge's commands: ``keys``, ``publish``, ``edge serve``, and those on policies.

Thin shells: they read the clock, the environment and the terminal, and say what happened.
Everything heavy is imported by the command that needs it, so that ``waypost --help`` is quick.
"""

import os
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import console, fail, print_json, table
from waypost.edge import policy_cli
from waypost.edge.project import Project

if TYPE_CHECKING:
    from securesystemslib.signer import Signer  # pyright: ignore[reportPrivateImportUsage]

    from waypost.edge.keys import Keyring

__all__ = ["register"]

PASSPHRASE = "WAYPOST_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
PRIVATE_TOKEN = "WAYPOST_EDGE_PRIVATE_TOKEN"  # noqa: S105 - the variable's name

Directory = Annotated[Path, typer.Argument(help="The project's folder.")]
JSON = Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")]


def register(app: typer.Typer) -> None:
    """Add the edge's commands to ``waypost``."""
    keys = typer.Typer(help="Signing keys.", no_args_is_help=True)
    keys.command("new")(keys_new)
    keys.command("list")(keys_list)
    app.add_typer(keys, name="keys")
    app.command("publish")(publish)
    edge = typer.Typer(help="The server that hands out manifests.", no_args_is_help=True)
    edge.command("serve")(serve)
    # One command only, and still by its name.
    edge.callback()(lambda: None)
    app.add_typer(edge, name="edge")
    policy_cli.register(app)


def keys_new(
    directory: Directory = Path(),
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Leave the keys readable on disk.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Make the signing keys and the trust root that clients ship with.

    The keys are encrypted with a passphrase, asked for or taken from WAYPOST_KEY_PASSPHRASE.
    """
    from waypost.edge.keys import create_keys

    project = Project(directory)
    passphrase = None if no_passphrase else _ask_passphrase(new=True)
    keyring = create_keys(project, passphrase=passphrase, now=int(time.time()))
    if as_json:
        print_json({"root": str(project.root), "keys": _rows(keyring)})
        return
    _say(f"Made {len(keyring.keys)} keys in {project.keys}.")
    _say(f"Ship {project.root} with clients and validators: their trust starts there.")
    if no_passphrase:
        _say("The keys are not encrypted. Guard them, or make new ones for production.")


def keys_list(directory: Directory = Path(), as_json: JSON = False) -> None:
    """Show each key: its role, its age, when what it signed lapses, and what then breaks."""
    from waypost.edge.keys import load_keyring
    from waypost.edge.publish import expiries

    project = Project(directory)
    keyring = load_keyring(project.keys)
    lapses = expiries(project)
    if as_json:
        print_json({"keys": _rows(keyring), "expires_at": lapses})
        return
    now = time.time()
    rows = [
        (
            entry.name,
            f"{keyring.thresholds[entry.role]} of {len(keyring.of(entry.role))}",
            f"{(now - entry.created_at) / 86_400:.0f} d",
            _date(lapses.get(entry.role)),
            _BREAKS[entry.role],
            entry.keyid[:8],
        )
        for entry in keyring.keys
    ]
    columns = ("key", "sign", "age", "signature lapses", "what then breaks", "id")
    console.print(table(columns, rows))


# Broken means: clients leave the choice to the validator, which serves on within its grace.
_BREAKS = {
    "root": "all trust",
    "targets": "the manifest",
    "hints": "nothing",
    "snapshot": "the manifest",
    "timestamp": "the manifest",
}


def publish(
    directory: Directory = Path(),
    channel: Annotated[str, typer.Option(help="Which manifest this becomes.")] = "prod",
    as_json: JSON = False,
) -> None:
    """Sign policy.yaml and issuers.yaml and publish them to the public folder."""
    from waypost.edge.keys import load_keyring, load_signers
    from waypost.edge.publish import publish as publish_project
    from waypost.edge.repository import ROLES

    project = Project(directory)
    keyring = load_keyring(project.keys)
    roles = [role for role in ROLES if role != "root"]
    signers = load_signers(
        keyring, project.keys, roles, passphrase=_passphrase(keyring, project, roles)
    )
    published = publish_project(
        project,
        channel=channel,
        signers=signers,
        hints_keys=keyring.of("hints"),
        now=int(time.time()),
    )
    if as_json:
        print_json(published)
        return
    hidden = f", {published.private_models} of them private" if published.private_models else ""
    _say(
        f"Published {channel} v{published.version}: {published.models} models{hidden}; "
        f"valid until {_date(published.expires_at)}, and longer while an edge serves it."
    )


def serve(
    directory: Annotated[Path, typer.Option("--dir", help="The project's folder.")] = Path(),
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8081,
) -> None:
    """Serve the published tree, and keep its timestamp signed.

    The full manifest, private models included, is served to validators that send the token in
    WAYPOST_EDGE_PRIVATE_TOKEN; without that variable to nobody.
    """
    from waypost.edge.serve import listen, run

    project = Project(directory)
    if not project.public.is_dir():
        fail(f"{project.public} does not exist; publish first: waypost publish {directory}")
    sock = listen(host, port)
    run(
        project,
        sock,
        signers=_online_signers(project),
        private_token=os.environ.get(PRIVATE_TOKEN) or None,
        ready=lambda url: print(f"waypost edge listening on {url}", flush=True),
    )


def _online_signers(project: Project) -> "dict[str, list[Signer]]":
    from waypost.edge.keys import ONLINE_ROLES, load_keyring, load_signers

    if not (project.keys / "keyring.json").exists():
        return {}
    keyring = load_keyring(project.keys)
    return load_signers(
        keyring,
        project.keys,
        ONLINE_ROLES,
        passphrase=_passphrase(keyring, project, ONLINE_ROLES),
    )


def _passphrase(keyring: "Keyring", project: Project, roles: Iterable[str]) -> str | None:
    from waypost.edge.keys import needs_passphrase

    needed = needs_passphrase(keyring, project.keys, roles)
    return _ask_passphrase(new=False) if needed else None


def _ask_passphrase(*, new: bool) -> str:
    given = os.environ.get(PASSPHRASE)
    if given:
        return given
    if not sys.stdin.isatty():
        other = ", or say --no-passphrase" if new else ""
        fail(f"the keys need a passphrase: set {PASSPHRASE}{other}", exit_code=2)
    return str(typer.prompt("Passphrase of the keys", hide_input=True, confirmation_prompt=new))


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _rows(keyring: "Keyring") -> list[dict[str, object]]:
    return [
        {
            "name": entry.name,
            "role": entry.role,
            "keyid": entry.keyid,
            "created_at": entry.created_at,
            "threshold": keyring.thresholds[entry.role],
        }
        for entry in keyring.keys
    ]


def _date(at: int | None) -> str:
    return "never signed" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
