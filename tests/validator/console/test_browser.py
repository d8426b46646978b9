"""The console in a real browser: flows, live rows, keyboard, both colour schemes, WCAG AA."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, ViewportSize, expect
from typer.testing import CliRunner

from support.console import Console
from support.recorded import a_record, fill
from support.validator import OPERATOR_TOKEN
from waypost.validator.commands import report_cli

Visit = Callable[..., BrowserContext]

PAGES = ("login", "decisions?tenant=nobody", "decisions?verdict=overridden", "decisions/nope", "routes", "budgets", "providers", "manifest", "playground")  # fmt: skip
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
# Nothing else depends on colours.
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
AXE = Axe()
PHONE: ViewportSize = {"width": 360, "height": 740}
DESK: ViewportSize = {"width": 1280, "height": 860}


FOCUSED = """() => {
  const at = document.activeElement, own = at.closest("tbody") && at.pathname;
  return own || at.name || at.textContent.trim();
}"""


def complaints(page: Page, rules: Any = RULES) -> list[str]:  # noqa: ANN401 - axe-core's own
    found: Any = AXE.run(page, options=rules).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


def test_an_operator_logs_in_looks_up_a_decision_and_leaves(visit: Visit) -> None:
    page = visit(logged_in=False).new_page()
    page.goto("/console/routes?window=7d")
    page.get_by_label("Operator token").fill(OPERATOR_TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Routes", level=1)).to_be_visible()
    assert page.url.endswith("/console/routes?window=7d")

    page.get_by_role("link", name="Decisions").click()
    page.get_by_label("Verdict").select_option("overridden")
    page.get_by_role("button", name="Apply").click()
    page.locator("tbody tr").first.click()
    expect(page.locator(".sentence")).to_contain_text("The client asked for")
    expect(page.get_by_role("img", name="The way of the request").first).to_be_visible()
    page.get_by_text("Record as JSON").click()
    expect(page.locator("pre.json")).to_contain_text('"verdict": "overridden"')

    page.get_by_role("button", name="Log out", exact=True).click()
    page.goto("/console/decisions")
    expect(page.get_by_label("Operator token")).to_be_visible()


def test_a_decision_appears_while_one_looks(visit: Visit, console: Console) -> None:
    page = visit().new_page()
    page.goto("/console/decisions")
    live = page.get_by_role("button", name="Live")
    expect(live).to_have_attribute("aria-pressed", "true")
    now_ms = int(console.running.clock() * 1_000)

    console.run(
        fill(console.running.services.store, a_record(7_001, at_ms=now_ms, account="<b>while</b>"))
    )

    expect(page.locator("tbody tr").first).to_contain_text("<b>while</b>")
    live.click()
    expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "false")


def test_the_playground_answers(visit: Visit) -> None:
    page = visit().new_page()
    page.goto("/console/playground")
    page.get_by_label("What the user would ask").fill("Prove it.")
    page.get_by_label("The client proposes").select_option("frontier")
    page.get_by_role("button", name="Decide").click()

    expect(page.locator(".sentence")).to_contain_text("The client asked for frontier")
    assert complaints(page) == []


def test_a_decision_is_reached_by_keyboard_alone(visit: Visit) -> None:
    page = visit(logged_in=False).new_page()
    page.goto("/console/decisions")
    expect(page.get_by_label("Operator token")).to_be_focused()
    page.keyboard.type(OPERATOR_TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Decisions", level=1)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    reached: list[str] = []
    while not (reached and reached[-1].startswith("/console/decisions/")):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        assert len(reached) < 30, reached
    for wanted in ("id", "7d", "verdict", "account", "Apply", "Export CSV", "Live"):
        assert wanted in reached, reached

    page.keyboard.press("Enter")

    expect(page.locator(".sentence")).to_be_visible()
    assert page.url.endswith(reached[-1])


def test_the_colour_scheme_is_the_reader_s_to_choose_and_stays(visit: Visit) -> None:
    context = visit(color_scheme="light")
    page = context.new_page()
    page.goto("/console/budgets")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate(paper)
    page.goto("/console/manifest")

    assert light != dark == page.evaluate(paper)


def faults(page: Page) -> list[str]:
    """What is wrong with the page that is shown: in the light, in the dark, and on a phone."""
    found = complaints(page)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    found += [f"in the dark, {said}" for said in complaints(page, CONTRAST)]
    page.set_viewport_size(PHONE)
    wide = page.evaluate("document.documentElement.scrollWidth")
    found += [f"{wide} wide on a phone"] if wide > PHONE["width"] else []
    page.set_viewport_size(DESK)
    return found


def test_every_page_meets_wcag_aa_light_and_dark_and_fits_a_phone(visit: Visit) -> None:
    page = visit(color_scheme="light", viewport=DESK).new_page()
    found: dict[str, list[str]] = {}
    for name in PAGES:
        page.goto(f"/console/{name}")
        found[name] = faults(page)
    page.goto("/console/decisions?verdict=overridden")
    page.locator("tbody tr").first.click()
    page.get_by_text("Record as JSON").click()
    found["decision"] = faults(page)
    page.set_viewport_size(PHONE)
    expect(page.locator(".flow.tall")).to_be_visible()
    found["decision on a phone"] = complaints(page)

    assert {name: said for name, said in found.items() if said} == {}


def test_a_report_meets_wcag_aa_and_fits_a_phone(
    visit: Visit, console: Console, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    app = typer.Typer()
    report_cli.register(app)
    records = console.running.services.config.records.path
    arguments = ["--db", str(records), "--html", str(path)]
    # It runs a loop of its own, which a thread that drives a browser has already.
    written = console.run(asyncio.to_thread(lambda: CliRunner().invoke(app, arguments)))
    assert written.exit_code == 0
    page = visit(viewport=DESK).new_page()
    page.goto(path.as_uri())

    assert faults(page) == []


def test_it_reads_without_any_script(visit: Visit) -> None:
    page = visit(java_script_enabled=False).new_page()
    page.goto("/console/decisions")
    expect(page.locator("tbody tr").nth(49)).to_be_visible()
    page.get_by_role("link", name="Earlier decisions").click()
    expect(page.get_by_role("heading", name="Earlier")).to_be_visible()
