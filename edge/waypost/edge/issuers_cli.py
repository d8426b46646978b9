"""``waypost issuers``: an identity provider's keys, brought into the file that is signed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import fail, print_json
from waypost.edge.asking import JSON, say

if TYPE_CHECKING:
    from waypost.edge.jwks import Update

__all__ = ["commands"]

commands = typer.Typer(help="Whose access tokens hold.", no_args_is_help=True)


@commands.callback()
def _group() -> None:
    """Keep ``import-jwks`` a command of its own: a group of one would be the command."""


@commands.command("import-jwks")
def _import_jwks(
    url: Annotated[str, typer.Argument(help="The identity provider's jwks_uri.")],
    iss: Annotated[str, typer.Option(help="The issuer in the file that names it.")],
    issuers: Annotated[Path, typer.Option(help="The issuers file.")] = Path("issuers.yaml"),
    accept: Annotated[
        bool, typer.Option("--accept", help="Take what would be an alarm: a person has looked.")
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=10, help="Again every so many seconds, until stopped.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Copy the provider's public keys into the issuer's ``jwks`` file; then publish.

    Exit 1, with the file as it was, if they cannot be had, or have changed in a way that no
    planned rotation has them change. With --every that is said, and tried again.
    """
    if every is not None and accept:
        fail("--accept is a person's word for one change; it does not go with --every", exit_code=2)
    run = _importing(url, iss=iss, issuers=issuers, accept=accept, as_json=as_json)
    if every is None:
        raise typer.Exit(0 if run() else 1)
    while True:
        run()
        time.sleep(every)


def _importing(
    url: str, *, iss: str, issuers: Path, accept: bool, as_json: bool
) -> Callable[[], bool]:
    """Return what imports once, and says whether that went well."""
    from pydantic import TypeAdapter, ValidationError

    from waypost.edge.fields import URL
    from waypost.edge.issuers_file import read_issuers
    from waypost.edge.jwks import fetch, update
    from waypost.shared.errors import WaypostError

    try:
        TypeAdapter(URL).validate_python(url)
    except ValidationError as exc:
        fail(f"{url} {exc.errors()[0]['msg']}", exit_code=2)

    def run() -> bool:
        try:
            named = {issuer.iss: issuer for issuer in read_issuers(issuers).issuers}
            issuer = named.get(iss)
            if issuer is None or issuer.jwks is None:
                fail(f"{issuers} has no issuer '{iss}' with a jwks file", exit_code=2)
            path = issuers.parent / issuer.jwks
            found = update(path, fetch(url), algorithms=issuer.algorithms, accept=accept)
        except WaypostError as exc:
            print(f"waypost: {exc.code}: {exc.message}", file=sys.stderr, flush=True)
            return False
        _tell(found, path, accept=accept, as_json=as_json)
        return found.alarm is None or accept

    return run


def _tell(found: "Update", path: Path, *, accept: bool, as_json: bool) -> None:
    taken = found.alarm is None or accept
    if as_json:
        print_json({"update": found, "written": taken and not found.is_empty})
        return
    for reason in found.skipped:
        say(f"Left out: {reason}")
    for what in ("added", "removed", "changed"):
        for kid in getattr(found, what):
            say(f"{what}: {kid}")
    if not taken:
        message = f"ALARM: {found.alarm}. {path} is as it was; if this is meant, --accept takes it."
        print(f"waypost: {message}", file=sys.stderr, flush=True)
    elif found.is_empty:
        say(f"{path} is current.")
    else:
        say(f"Wrote {path}. It is in force once published: waypost publish")
