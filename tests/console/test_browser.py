"""The console in a real browser: flows, live rows, keyboard, both colour schemes, WCAG AA."""

from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from console.conftest import Console
from support.recorded import a_record, fill
from support.validator import OPERATOR_TOKEN

Visit = Callable[..., BrowserContext]

PAGES = ("login", "decisions?tenant=nobody", "decisions?verdict=overridden", "decisions/nope", "routes", "budgets", "providers", "manifest", "playground")  # fmt: skip
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
AXE = Axe()


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

    page.get_by_role("button", name="Log out").click()
    page.goto("/console/decisions")
    expect(page.get_by_label("Operator token")).to_be_visible()


def test_a_decision_appears_while_one_looks(visit: Visit, console: Console) -> None:
    page = visit().new_page()
    page.goto("/console/decisions")
    live = page.get_by_role("button", name="Live")
    expect(live).to_have_attribute("aria-pressed", "true")
    now_ms = int(console.running.clock() * 1_000)

    console.run(
        fill(console.running.desk.store, a_record(7_001, at_ms=now_ms, account="<b>while</b>"))
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


def test_everything_is_reached_by_keyboard(visit: Visit) -> None:
    page = visit().new_page()
    page.goto("/console/decisions")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    reached: list[str] = []
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.name || document.activeElement.textContent.trim()"
            )
        )
    for wanted in ("id", "7d", "verdict", "account", "Apply", "Export CSV", "Live"):
        assert wanted in reached, reached
    page.keyboard.press("Enter")


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


def test_every_page_meets_wcag_aa(visit: Visit) -> None:
    page = visit().new_page()
    found: dict[str, list[str]] = {}
    for name in PAGES:
        page.goto(f"/console/{name}")
        found[name] = complaints(page)
    page.goto("/console/decisions?verdict=overridden")
    page.locator("tbody tr").first.click()
    page.get_by_text("Record as JSON").click()
    found["decision"] = complaints(page)

    assert {name: said for name, said in found.items() if said} == {}


def test_contrast_meets_wcag_aa_in_the_dark(visit: Visit) -> None:
    page = visit(color_scheme="dark").new_page()
    for name in ("login", "decisions?verdict=refused", "budgets", "manifest", "playground"):
        page.goto(f"/console/{name}")
        assert complaints(page, CONTRAST) == [], name
    page.goto("/console/decisions?verdict=overridden")
    page.locator("tbody tr").first.click()
    page.get_by_text("Record as JSON").click()
    assert complaints(page, CONTRAST) == []


def test_on_a_phone_nothing_sticks_out(visit: Visit) -> None:
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True).new_page()
    for name in PAGES:
        page.goto(f"/console/{name}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, name
    page.goto("/console/decisions")
    page.locator("tbody tr").first.click()
    expect(page.locator(".flow.tall")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert complaints(page) == []


def test_it_reads_without_any_script(visit: Visit) -> None:
    page = visit(java_script_enabled=False).new_page()
    page.goto("/console/decisions")
    expect(page.locator("tbody tr").nth(49)).to_be_visible()
    page.get_by_role("link", name="Earlier decisions").click()
    expect(page.get_by_role("heading", name="Earlier")).to_be_visible()
