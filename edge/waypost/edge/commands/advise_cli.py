"""``waypost advise``: whether routing is worth it yet, from a usage export."""

from pathlib import Path
from typing import Annotated

import typer

from waypost.cli.output import console, print_json, printable, table

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``waypost advise`` to ``app``."""
    app.command("advise")(_advise)


def _advise(
    usage: Annotated[
        Path, typer.Argument(help="A CSV export of OpenAI, Anthropic, OpenRouter or LiteLLM.")
    ],
    cheap: Annotated[
        str | None, typer.Option(help="The model to compare with; else each maker's small one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")] = False,
) -> None:
    """Say honestly whether routing is worth it yet, and which rule would save most."""
    # The price list takes a third of a second to import, which `--help` should not.
    from waypost.edge.advice.advise import advise
    from waypost.edge.advice.usage_export import read_usage

    advice = advise(read_usage(usage), cheap=cheap)
    if as_json:
        print_json(advice)
        return
    for place, sentence in enumerate(advice.sentences):
        style = "bold" if place == 0 else None
        console.print(printable(sentence), style=style, markup=False, highlight=False)
    bills = [
        (
            bill.model,
            f"{bill.requests:,}",
            f"${bill.cost_usd:,.2f}" if bill.is_priced else "unknown",
        )
        for bill in advice.models[:12]
    ]
    rules = [
        (
            f"{rule.model} below {rule.input_tokens_below:,} input tokens",
            rule.to,
            f"{rule.requests_share:.0%}",
            f"${rule.saves_usd:,.2f}",
        )
        for rule in advice.rules[:9]
    ]
    for columns, rows, title in (
        (("model", "requests", "cost"), bills, "In the time of the export"),
        (("requests of", "to", "of all", "saves a month"), rules, "Rules"),
    ):
        if rows:
            shown = table(columns, rows, title=title)
            for column in shown.columns[-2:]:
                column.justify = "right"
            console.print(shown)
    if advice.rules and advice.verdict in ("perhaps", "worth_it"):
        console.print("\nAs a route in policy.yaml:", style="bold")
        console.print(_printable_lines(advice.rules[0].policy), markup=False, highlight=False)
    console.print(f"\nPrices: {advice.prices}.", style="dim", markup=False, highlight=False)


def _printable_lines(text: str) -> str:
    """Return text of ours with names of others', rid of what cannot be seen but line breaks."""
    return "\n".join(map(printable, text.split("\n")))
