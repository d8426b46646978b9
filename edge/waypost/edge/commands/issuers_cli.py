"""``waypost issuers``: an identity provider's keys, brought into the file that is signed."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from waypost.cli.output import fail, print_json
from waypost.edge.commands.common import JSON, say, signers_at_hand
from waypost.edge.commands.publish_cli import To, deliver_to
from waypost.edge.project.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterable

    from waypost.edge.publishing.publish import Published
    from waypost.edge.tokens.jwks import Update
    from waypost.shared.contracts import IssuerKey

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
    publish: Annotated[
        bool,
        typer.Option("--publish", help="Sign and publish the keys, and nothing else."),
    ] = False,
    channel: Annotated[str, typer.Option(help="Where --publish publishes.")] = "prod",
    to: To = None,
    webhook: Annotated[
        str | None,
        typer.Option(envvar="WAYPOST_WEBHOOK", help="Told of alarms and changes, by POST."),
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=10, help="Again every so many seconds, until stopped.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Copy the provider's public keys into the issuer's jwks file.

    They are in force once published. Exit 1, with the file as it was, if they cannot be had, or
    have changed in a way that no planned rotation has them change. With --every that is said, and
    tried again.
    """
    from pydantic import TypeAdapter, ValidationError

    from waypost.edge.authoring.fields import URL

    if every is not None and accept:
        fail("--accept is a person's word for one change; it does not go with --every", exit_code=2)
    if to is not None and not publish:
        fail("--to brings what --publish publishes", exit_code=2)
    try:
        TypeAdapter(URL).validate_python(url)
    except ValidationError as exc:
        fail(f"{url} {exc.errors()[0]['msg']}", exit_code=2)
    job = _Import(url, iss, issuers, accept, channel if publish else None, to, webhook, as_json)
    if every is None:
        raise typer.Exit(0 if job.run() else 1)
    while True:
        job.run()
        time.sleep(every)


class _Import(Struct, frozen=True):
    """What the command line asks for.

    Attributes:
        channel: to publish to; ``None``: that is for another time.
    """

    url: str
    iss: str
    issuers: Path
    accept: bool
    channel: str | None
    to: str | None
    webhook: str | None
    as_json: bool

    def run(self) -> bool:
        """Import once; return whether that went well."""
        from waypost.shared.errors import WaypostError

        try:
            self._run()
        except WaypostError as exc:
            print(f"waypost: {exc.code}: {exc.message}", file=sys.stderr, flush=True)
            self._tell("jwks_alarm", code=exc.code, message=exc.message)
            return False
        return True

    def _run(self) -> None:
        from waypost.edge.authoring.issuers_file import read_issuers
        from waypost.edge.tokens.jwks import JWKSError, fetch, load, update

        named = {issuer.iss: issuer for issuer in read_issuers(self.issuers).issuers}
        issuer = named.get(self.iss)
        if issuer is None or issuer.jwks is None:
            fail(f"{self.issuers} has no issuer '{self.iss}' with a jwks file", exit_code=2)
        path = self.issuers.parent / issuer.jwks
        if self.channel is not None and not self.accept and not path.exists():
            fail(f"there is no {path}: a person imports the first keys, and looks", exit_code=2)
        algorithms = issuer.algorithms
        found = update(path, fetch(self.url), algorithms=algorithms, accept=self.accept)
        taken = found.alarm is None or self.accept
        published = None
        if taken and self.channel is not None:
            published = self._publish(load(path, algorithms=algorithms).values())
        self._say(found, path, taken=taken, published=published)
        if not taken:
            raise JWKSError(
                f"ALARM: {found.alarm}. {path} is as it was; if this is meant, --accept takes it."
            )
        if published is not None:
            changes = {"added": found.added, "removed": found.removed, "changed": found.changed}
            self._tell("jwks_published", **changes)

    def _publish(self, keys: "Iterable[IssuerKey]") -> "Published | None":
        from waypost.edge.publishing.publish import publish_issuer_keys
        from waypost.edge.publishing.signing_keys import ONLINE_ROLES

        project = Project(self.issuers.parent)
        published = publish_issuer_keys(
            project,
            self.iss,
            tuple(keys),
            channel=self.channel or "",
            signers=signers_at_hand(project, ("targets", *ONLINE_ROLES)),
            now=int(time.time()),
        )
        if published is not None and self.to is not None:
            deliver_to(project, self.to, quiet=self.as_json)
        return published

    def _tell(self, event: str, **said: object) -> None:
        from waypost.edge.commands.alarm import tell

        if self.webhook is not None and not tell(
            self.webhook, {"event": event, "iss": self.iss, **said}
        ):
            # Without the URL: it may hold a secret.
            print("waypost: the webhook was not told", file=sys.stderr, flush=True)

    def _say(
        self, found: "Update", path: Path, *, taken: bool, published: "Published | None"
    ) -> None:
        if self.as_json:
            written = taken and not found.is_empty
            print_json({"update": found, "written": written, "published": published})
            return
        for reason in found.skipped:
            say(f"Left out: {reason}")
        for what in ("added", "removed", "changed"):
            for kid in getattr(found, what):
                say(f"{what}: {kid}")
        if taken:
            say(f"{path} is current." if found.is_empty else f"Wrote {path}.")
        if published is not None:
            say(f"Published to {published.channel}: it is in force as validators refresh.")
        elif self.channel is None and taken and not found.is_empty:
            say("It is in force once published: waypost publish")
