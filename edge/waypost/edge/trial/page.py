"""A simulation as one HTML page that loads nothing from anywhere. Pure."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from waypost.edge.trial.simulate import Simulation
from waypost.shared.money import format_usd

__all__ = ["as_page", "flow_rows", "remarks", "tier_rows"]

TIER_COLUMNS = (
    "tier",
    "requests",
    "cost",
    "would cost",
    "first token",
    "would be",
    "refused",
    "would be",
)


def as_page(simulation: Simulation, *, template: str, title: str) -> str:
    """Return the page.

    Args:
        template: has ``$title`` and ``$content``.
    """
    total = simulation.total
    saved = total.cost_before_nusd - total.cost_after_nusd
    content = [
        f"<p>{simulation.requests:,} requests cost {format_usd(total.cost_before_nusd)} and would"
        f" cost {format_usd(total.cost_after_nusd)}:"
        f" {format_usd(abs(saved))} {'less' if saved >= 0 else 'more'}.</p>",
        *(f'<p class="note">{escape(remark)}</p>' for remark in remarks(simulation)),
        "<h2>Models</h2>",
        _models(simulation),
        "<h2>Tiers</h2>",
        _table(TIER_COLUMNS, tier_rows(simulation)),
        "<h2>From where to where</h2>",
        _table(
            ("move", "requests", "cost", "would cost"),
            [(f"{was} → {now}", *rest) for was, now, *rest in flow_rows(simulation)],
        ),
        "<h2>Rules</h2>",
        _table(("rule", "requests"), [(n, f"{c:,}") for n, c in simulation.routes.items()]),
    ]
    if simulation.refusals:
        rows = [(r, f"{was:,}", f"{now:,}") for r, (was, now) in simulation.refusals.items()]
        content += ["<h2>Refusals</h2>", _table(("reason", "before", "after"), rows)]
    return Template(template).substitute(title=escape(title), content="\n".join(content))


def remarks(simulation: Simulation) -> list[str]:
    """Return what has to be said beside the figures."""
    said = [
        f"{count:,} records lack {name}, which the new rules look at; nobody can say what would"
        " have become of them, and they are in no figure"
        for name, count in simulation.incomplete.items()
    ]
    if simulation.skipped:
        said.append(f"{simulation.skipped:,} records have no facts, and are in no figure")
    return [*said, *simulation.remarks]


def tier_rows(simulation: Simulation) -> list[tuple[str, ...]]:
    """Return name, requests, costs, times to the first token and refusals, in words."""
    return [
        (
            name,
            f"{tier.requests:,}",
            format_usd(tier.cost_before_nusd),
            format_usd(tier.cost_after_nusd),
            _ms(tier.ttft_before_ms),
            _ms(tier.ttft_after_ms),
            f"{tier.refused_before:,}",
            f"{tier.refused_after:,}",
        )
        for name, tier in simulation.tiers.items()
    ]


def flow_rows(simulation: Simulation, *, most: int = 20) -> list[tuple[str, str, str, str, str]]:
    """Return the largest groups of requests that another model would get, in words."""
    return [
        (
            flow.before or "refused",
            flow.after or "refused",
            f"{flow.requests:,}",
            format_usd(flow.cost_before_nusd),
            format_usd(flow.cost_after_nusd),
        )
        for flow in simulation.flows
        if flow.before != flow.after
    ][:most]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        made = (
            f"<{tag}{'' if at == 0 else ' class=n'}>{escape(cell)}</{tag}>"
            for at, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    return "\n".join(
        ("<table>", line("th", columns), *(line("td", row) for row in rows), "</table>")
    )


def _models(simulation: Simulation) -> str:
    most = max((max(mix) for mix in simulation.models.values()), default=0) or 1
    rows = [
        f"<tr><td>{escape(name)}</td><td class=n>{before:,}</td><td class=n>{after:,}</td>"
        f'<td class=b><div class="bar" style="width:{100 * before / most:.1f}%"></div>'
        f'<div class="bar after" style="width:{100 * after / most:.1f}%"></div></td></tr>'
        for name, (before, after) in simulation.models.items()
    ]
    head = "<tr><th>model</th><th class=n>before</th><th class=n>after</th><th></th></tr>"
    return "\n".join(("<table>", head, *rows, "</table>"))
