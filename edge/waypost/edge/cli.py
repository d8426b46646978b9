"""The edge's commands: all of them are registered here, those of the server are here.

Thin shells: they read the clock, the environment and the terminal, and say what happened.
Everything heavy is imported by the command that needs it, so that ``waypost --help`` is quick.
"""

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import fail
from waypost.edge.commands import advise_cli, issuers_cli, keys_cli, policy_cli, publish_cli
from waypost.edge.commands.common import Directory, passphrase_for, say, secret
from waypost.edge.commands.publish_cli import To
from waypost.edge.project.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

    from securesystemslib.signer import Signer  # pyright: ignore[reportPrivateImportUsage]

    from waypost.cli.spans import Spans

__all__ = ["register"]

PRIVATE_TOKEN = "WAYPOST_EDGE_PRIVATE_TOKEN"  # noqa: S105 - the variable's name


def register(app: typer.Typer) -> None:
    """Add the edge's commands to ``waypost``."""
    app.add_typer(keys_cli.commands, name="keys")
    app.add_typer(issuers_cli.commands, name="issuers")
    publish_cli.register(app)
    edge = typer.Typer(help="The server that hands out manifests.", no_args_is_help=True)
    edge.command("serve")(_serve)
    edge.command("resign")(_resign)
    app.add_typer(edge, name="edge")
    policy_cli.register(app)
    advise_cli.register(app)


def _serve(
    directory: Directory = Path(),
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8081,
    traces: Annotated[
        str | None, typer.Option(metavar="URL", help="Where spans go, as OTLP over HTTP.")
    ] = None,
    trace_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of requests to trace, if the caller does not decide."
        ),
    ] = 0.0,
) -> None:
    """Serve the published tree, and keep its timestamp signed.

    Validators that send the token in WAYPOST_EDGE_PRIVATE_TOKEN get the full manifest with the
    private models. Without that variable, nobody gets it. A collector's key for traces goes into
    OTEL_EXPORTER_OTLP_HEADERS.
    """
    from waypost.cli.listening import listen
    from waypost.edge.serving.serve import run

    project = Project(directory)
    _require_published(project)
    signers = _online_signers(project)
    spans = None if traces is None else _spans(traces)
    sock = listen(host, port)
    run(
        project,
        sock,
        signers=signers,
        private_token=os.environ.get(PRIVATE_TOKEN) or None,
        ready=lambda url: print(f"waypost edge listening on {url}", flush=True),
        spans=spans,
        trace_share=trace_share,
    )


def _require_published(project: Project) -> None:
    # `waypost keys new` makes the folder; the timestamp is in it once something was published.
    if not (project.public / "metadata" / "timestamp.json").is_file():
        fail(
            f"nothing is published in {project.public}; publish first:"
            f" waypost publish --dir {project.directory}"
        )


def _spans(endpoint: str) -> "Spans":
    try:
        from waypost.cli.spans import Spans
    except ImportError as exc:
        fail(f"--traces needs the extra: pip install 'waypost[otel]' ({exc.name})")
    return Spans.to(endpoint, headers=None, service="waypost-edge", version=version("waypost"))


def _resign(directory: Directory = Path(), to: To = None) -> None:
    """Sign again, once, what is about to expire: for a timer, if no edge serves the tree."""
    from waypost.edge.publishing.publish import resign

    project = Project(directory)
    _require_published(project)
    resign(project, signers=_online_signers(project)(), now=int(time.time()))
    say("Signed again what was about to expire.")
    if to is not None:
        publish_cli.deliver_to(project, to)


def _online_signers(project: Project) -> "Callable[[], dict[str, list[Signer]]]":
    """Return what loads the online keys that are at hand then: a rotation needs no restart."""
    from waypost.edge.publishing.signing_keys import ONLINE_ROLES, load_keyring, load_signers

    def load() -> "dict[str, list[Signer]]":
        if not listed.exists():
            return {}
        return load_signers(
            load_keyring(project.keys),
            project.keys,
            ONLINE_ROLES,
            passphrase=passphrase,
            secrets=secret,
        )

    listed, passphrase = project.keys / "keyring.json", None
    if listed.exists():
        # Asked for once, while somebody is there to answer.
        passphrase = passphrase_for(load_keyring(project.keys), project, ONLINE_ROLES)
        load()
    return load
