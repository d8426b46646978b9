"""What the edge's commands share: files, passphrases and PINs, keys at hand, plain sentences."""

import os
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import console, fail, printable
from waypost.edge.project.project import Project

if TYPE_CHECKING:
    from securesystemslib.signer import Signer  # pyright: ignore[reportPrivateImportUsage]

    from waypost.edge.authoring.load_policy import Authored
    from waypost.edge.publishing.signing_keys import Keyring

__all__ = [
    "JSON",
    "Directory",
    "Draft",
    "Out",
    "date",
    "load_unsigned",
    "new_passphrase",
    "passphrase_for",
    "say",
    "secret",
    "signers_at_hand",
    "write_draft",
]

PASSPHRASE = "WAYPOST_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
PIN = "WAYPOST_KEY_PIN"

Directory = Annotated[Path, typer.Option("--dir", help="The project's folder.")]
JSON = Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")]
Draft = Annotated[
    bool, typer.Option("--draft", help="Write what has to be signed, and change nothing.")
]
Out = Annotated[Path, typer.Option("--out", help="Where to write the draft.")]


def say(text: str) -> None:
    """Write a sentence, whatever it holds, as plain text."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def load_unsigned(policy: Path) -> "Authored":
    """Return the policy as written, as if it were the first of its channel and signed now."""
    from waypost.edge.authoring.load_policy import load_policy

    return load_policy(policy, channel="draft", version=1, issued_at=int(time.time()))


def date(at: int | None) -> str:
    """Return an instant as people read it."""
    return "never signed" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def secret(name: str) -> str:
    """Return the ``passphrase`` or ``pin`` of a key, from the environment or the terminal."""
    variable = PIN if name == "pin" else PASSPHRASE
    return os.environ.get(variable) or _ask(variable, f"The key's {name}")


def new_passphrase(*, mend: str = "") -> str:
    """Return the passphrase to encrypt new keys with; asked for twice."""
    return os.environ.get(PASSPHRASE) or _ask(PASSPHRASE, "Passphrase of the keys", True, mend)


def _ask(variable: str, prompt: str, confirm: bool = False, mend: str = "") -> str:
    if not sys.stdin.isatty():
        what = "a PIN" if variable == PIN else "a passphrase"
        fail(f"the keys need {what}: set {variable}{mend}", exit_code=2)
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm))


def passphrase_for(keyring: "Keyring", project: Project, roles: Iterable[str]) -> str | None:
    """Return the passphrase of the keys at hand, if one of them is encrypted."""
    from waypost.edge.publishing.signing_keys import needs_passphrase

    return secret("passphrase") if needs_passphrase(keyring, project.keys, roles) else None


def signers_at_hand(project: Project, roles: Iterable[str]) -> "dict[str, list[Signer]]":
    """Return what can sign for ``roles`` on this machine."""
    from waypost.edge.publishing.signing_keys import load_keyring, load_signers

    keyring, wanted = load_keyring(project.keys), tuple(roles)
    passphrase = passphrase_for(keyring, project, wanted)
    return load_signers(keyring, project.keys, wanted, passphrase=passphrase, secrets=secret)


def write_draft(path: Path, data: bytes) -> None:
    """Write a draft for its signers' eyes, and say what to do with it."""
    from waypost.edge.project.atomic_write import write_file

    # It holds the full policy, private models included.
    write_file(path, data, mode=0o600)
    say(f"Wrote {path}. Its signers each run: waypost sign {path} --key …")
    say(f"Then: waypost publish {path} (and the other signed copies, if there are any)")
