"""``waypost demo``: the whole flow, played on this machine."""

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from waypost.cli.output import console, fail, print_json
from waypost.shared.errors import WaypostError

if TYPE_CHECKING:
    from waypost.demo.scenes import Row
    from waypost.demo.stage import Mode, Stage

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``waypost demo``."""
    app.command("demo")(demo)


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")
    ] = False,
    real: Annotated[
        bool, typer.Option("--real", help="A real language model on this machine answers.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Real providers answer; needs a key, and costs money.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")] = False,
) -> None:
    """Play the whole flow on this machine: keys, manifest, servers, requests, decisions.

    The models are simulated, and say so, unless --real or --live is given. With --live set
    OPENAI_API_KEY, ANTHROPIC_API_KEY, or WAYPOST_LIVE_BASE_URL and WAYPOST_LIVE_API_KEY.
    """
    if real and live:
        fail("choose one of --real and --live", exit_code=2)
    try:
        with _signals_as_interrupt():
            _run(
                mode="real" if real else "live" if live else "simulated", keep=keep, as_json=as_json
            )
    except WaypostError as exc:
        fail(exc, exit_code=2 if exc.code == "live_not_configured" else 1)
    except KeyboardInterrupt:
        # Everything was ended on the way here. 128 + SIGINT, as shells have it.
        raise typer.Exit(130) from None


def _run(*, mode: "Mode", keep: bool, as_json: bool) -> None:
    # Imported late: servers and SDKs take a second, which `waypost --help` should not.
    from waypost.demo.scenes import SCENES, play, surprises
    from waypost.demo.stage import set_stage

    with ExitStack() as stack:
        status = stack.enter_context(Console(stderr=True).status("starting"))
        stage = stack.enter_context(set_stage(mode, say=lambda doing: status.update(f"{doing} …")))
        rows: list[Row] = []
        status.update(f"request 1 of {len(SCENES)} …")
        for row in play(stage):
            rows.append(row)
            status.update(f"request {min(len(rows) + 1, len(SCENES))} of {len(SCENES)} …")
        status.stop()
        # From here on, with --keep, Ctrl-C is the way to end it and not to break it off.
        with suppress(KeyboardInterrupt) if keep else nullcontext():
            _tell(stage, rows, keep=keep, as_json=as_json)
            while keep:
                time.sleep(60)
        wrong = surprises(rows)
        if wrong:
            raise stage.validator.failed(f"answered otherwise than it must: {'; '.join(wrong)}")


def _tell(stage: "Stage", rows: "list[Row]", *, keep: bool, as_json: bool) -> None:
    from waypost.demo.scenes import add_up
    from waypost.demo.show import demo_table, next_steps, totals_text

    totals = add_up(rows)
    token_file = _write_token(stage) if keep else None
    steps = next_steps(stage, waypost=_as_typed(), token_file=token_file)
    if as_json:
        print_json(
            {
                "mode": stage.mode,
                "models": stage.models,
                "rows": rows,
                "totals": totals,
                "console": {"url": stage.console_url, "token": stage.console_token}
                if keep
                else None,
                "next": [{"what": what, "command": command} for what, command in steps],
            }
        )
    else:
        console.print(demo_table(rows, models=stage.models, width=console.width))
        console.print(totals_text(totals), markup=False, highlight=False)
        console.print("\nTry next:", style="bold")
        for what, command in steps:
            console.print(f"\n  # {what}", style="dim", markup=False, highlight=False)
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        if keep:
            console.print(
                "\nEverything runs until Ctrl-C. Every decision, explained:", style="bold"
            )
            console.print(f"\n  {stage.console_url}", markup=False, highlight=False)
            console.print(f"  operator token: {stage.console_token}", markup=False, highlight=False)
    sys.stdout.flush()


def _write_token(stage: "Stage") -> Path:
    from waypost.demo.scenes import BOB

    path = stage.project.directory / "token"
    path.touch(mode=0o600)
    path.write_text(stage.token(BOB) + "\n", encoding="ascii")
    return path


def _as_typed() -> str:
    """Return how to call this program from where the user is."""
    program = Path(sys.argv[0])
    on_path = shutil.which("waypost")
    if on_path is not None and program.exists() and Path(on_path).samefile(program):
        return "waypost"
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return shlex.quote(str(program))


@contextmanager
def _signals_as_interrupt() -> Generator[None, None, None]:
    """Treat a closed terminal and a polite kill like Ctrl-C, so that servers end with us."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    names = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # Under nohup a closed terminal is meant to be ignored.
    heeded = [name for name in names if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, interrupt) for name in heeded}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
