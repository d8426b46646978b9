"""The validator's commands: ``validator``, ``decisions``, ``receipts`` and ``report``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from waypost.validator.commands import budget_cli, decisions_cli, receipts_cli, report_cli

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the validator's commands to ``app``."""
    validator = typer.Typer(help="Check, pay for and forward requests.", no_args_is_help=True)
    validator.command("serve")(serve)
    validator.callback()(lambda: None)
    app.add_typer(validator, name="validator")
    budget_cli.register(app)
    decisions_cli.register(app)
    receipts_cli.register(app)
    report_cli.register(app)


def serve(
    config: Annotated[Path, typer.Option(help="The validator's settings.")] = Path(
        "validator.yaml"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8_080,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes to run.")] = 1,
    grace_s: Annotated[
        float,
        typer.Option(
            "--grace-s",
            min=0,
            max=3_600,
            help="After SIGTERM, how long to take requests while /readyz says 503.",
        ),
    ] = 5,
    drain_s: Annotated[
        float,
        typer.Option(
            "--drain-s",
            min=0,
            max=86_400,
            help="After that, how long running answers may take; 0: no limit.",
        ),
    ] = 30,
) -> None:
    """Serve chat completions under the signed manifest."""
    # Server and stores take half a second to import, which `--help` should not.
    from waypost.validator.startup.server import run
    from waypost.validator.startup.supervisor import Stopping

    run(
        config,
        host=host,
        port=port,
        workers=workers,
        stopping=Stopping(grace_s, drain_s),
        ready=_say_ready,
    )


def _say_ready(address: str) -> None:
    sys.stdout.write(f"waypost validator listening on {address}\n")
    sys.stdout.flush()
