"""The table of a demonstration, at any width; and what to try next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from waypost.demo.scenes import OUTAGE_PROVIDER, Row, Totals
from waypost.demo.stage import Stage
from waypost.shared.money import format_usd

__all__ = ["demo_table", "next_steps", "totals_text"]

# Below this many columns, cells are stacked instead of squeezed.
WIDE = 132
ANSWER_CHARS = 150

_STYLES = {
    "accepted": "green",
    "decided": "green",
    "overridden": "yellow",
    "refused": "red",
}


def demo_table(rows: Sequence[Row], *, models: str, width: int) -> Table:
    """Return the table of ``rows`` for a terminal ``width`` columns wide.

    Args:
        models: what answered, in words.
    """
    table = Table(
        title=f"Waypost demo, {models}",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.ROUNDED,
        show_lines=True,
        expand=True,
    )
    table.add_column("#", justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column("request", ratio=5)
        table.add_column("client\nproposed", min_width=9)
        table.add_column("validator's\nverdict", min_width=11)
        table.add_column("answered\nby", min_width=9)
        table.add_column("cost", justify="right", no_wrap=True)
        table.add_column("first\ntoken", justify="right", min_width=7)
        table.add_column("why", ratio=5)
        for number, row in enumerate(rows, 1):
            table.add_row(
                str(number),
                _request(row),
                Text(row.proposed or "-"),
                _verdict(row),
                Text(row.model or "nobody"),
                _cost(row),
                _first_token(row),
                Text(row.reason),
            )
        return table
    table.add_column("request, and why it went where it went", ratio=1)
    table.add_column("proposed\nverdict\nanswered by", min_width=11)
    table.add_column("cost\nfirst token", justify="right", no_wrap=True)
    for number, row in enumerate(rows, 1):
        table.add_row(
            str(number),
            Text("\n").join([_request(row), Text.assemble(("why: ", "bold"), row.reason)]),
            Text("\n").join(
                [Text(row.proposed or "-"), _verdict(row), Text(row.model or "nobody")]
            ),
            Text("\n").join([_cost(row), _first_token(row)]),
        )
    return table


def totals_text(totals: Totals) -> str:
    """Return the totals as one sentence or two."""
    return (
        f"{totals.requests} requests: spent {format_usd(totals.spent_nusd)}, saved "
        f"{format_usd(totals.saved_nusd)} against always taking the best model allowed; "
        f"{totals.overridden} proposals overridden, {totals.refused} requests refused."
    )


def _request(row: Row) -> Text:
    text = Text.assemble((row.shows, "italic"), "\n", (f"{row.who} ({row.tier})", "bold"), " ")
    text.append(row.prompt)
    if row.answer:
        answer = " ".join(row.answer.split())
        if len(answer) > ANSWER_CHARS:
            answer = answer[: answer.rindex(" ", 0, ANSWER_CHARS)] + " …"
        text.append(f"\n→ {answer}", "dim")
    return text


def _verdict(row: Row) -> Text:
    text = Text(row.verdict, _STYLES[row.verdict])
    if row.http_status != 200:
        text.append(f" {row.http_status}")
    return text


def _cost(row: Row) -> Text:
    return Text(format_usd(row.cost_nusd))


def _first_token(row: Row) -> Text:
    if row.ttft_ms is None:
        return Text("-")
    text = Text(f"{row.ttft_ms:.0f} ms")
    if not row.streamed:
        text.append("\n(whole)")
    return text


def next_steps(stage: Stage, *, waypost: str, token_file: Path | None) -> list[tuple[str, str]]:
    """Return what to try next: what it does, and the command.

    Args:
        waypost: how the user calls this program.
        token_file: holds an access token while the stage is kept; ``None``: it is about to end.
    """
    chat = (
        'curl -s "$WAYPOST_URL/v1/chat/completions" -H "Authorization: Bearer $WAYPOST_TOKEN"'
        ' -H "Content-Type: application/json" -d \'{"model": "auto", "messages":'
        ' [{"role": "user", "content": "Why is the sky blue?"}]}\''
    )
    if token_file is None:
        mode = "" if stage.mode == "simulated" else f" --{stage.mode}"
        return [
            (
                "leave it all running, with a console to look around in; prints its address and"
                " token, and WAYPOST_URL and WAYPOST_TOKEN for the next line",
                f"{waypost} demo{mode} --keep",
            ),
            ("ask by hand, from another terminal; add -i to see what was decided", chat),
            ("a real language model on this machine answers", "make demo-real"),
            (
                "a real provider answers: set OPENAI_API_KEY or ANTHROPIC_API_KEY",
                f"{waypost} demo --live",
            ),
            ("start a deployment of your own", f"{waypost} init my-waypost"),
        ]
    folder = stage.project.directory

    def path(name: str) -> str:
        return shlex.quote(str(folder / name))

    return [
        (
            "in another terminal",
            f"export WAYPOST_URL={stage.validator_url}"
            f' WAYPOST_TOKEN="$(cat {shlex.quote(str(token_file))})"',
        ),
        ("ask by hand; add -i to see what was decided", chat),
        (
            "which model, why and at what price, without spending",
            chat.replace("/v1/chat/completions", "/v1/decide"),
        ),
        (
            "every decision so far, and why the last one came out as it did",
            f"{waypost} decisions list --config {path('validator.yaml')}"
            f" && {waypost} decisions explain --config {path('validator.yaml')}",
        ),
        (
            "what the policy does with a prompt",
            f"{waypost} policy explain {path('policy.yaml')} --tier free"
            ' --text "Prove that P is not NP."',
        ),
        (
            "take a provider down, and ask again; DELETE brings it back",
            f"curl -s -X PUT {stage.upstream_url}/{OUTAGE_PROVIDER}/outage",
        ),
        (
            "another token, for an hour",
            f"{waypost} token mint --sub alice --tier free --account alice --lifetime 3600"
            f" --key {path('issuer.key.pem')} --issuers {path('issuers.yaml')}",
        ),
    ]
