"""The pages and the code say the same: links lead somewhere, and every error code is explained."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from waypost.cli import http_body, http_guard, structured
from waypost.shared import errors
from waypost.shared.decision import demands, engine
from waypost.shared.errors import RefusalError, StoreError, TrustCode, WaypostError
from waypost.shared.requests import apis, measure
from waypost.shared.wire import headers
from waypost.validator import manifest, pipeline, routes, services
from waypost.validator.access.jose import TokenCode
from waypost.validator.dialects import providers
from waypost.validator.http import problems
from waypost.validator.http.problems import describe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_index_names_every_page() -> None:
    linked = set(_LINK.findall((DOCS / "README.md").read_text()))

    assert linked == {str(page.relative_to(DOCS)) for page in PAGES[2:]} - {"README.md"}


def test_the_table_of_folders_names_every_folder() -> None:
    rows = re.findall(r"^\| `(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    parts = {path.parent.name for path in ROOT.glob("*/waypost")}

    assert sorted(rows) == sorted({*parts, "deploy", "docs", "tests"})


# ── error codes ────────────────────────────────────────────────────────────────────────────────


def _raised() -> Iterator[tuple[type[WaypostError] | None, str]]:
    """The codes in the validator's source, each with the error that has it, if that is raised."""
    folders = (manifest, pipeline, providers, routes)
    modules = (apis, demands, services, headers, measure, problems, http_body, structured)
    files = [Path(module.__file__ or "") for module in modules]
    files += [file for folder in folders for file in Path(*folder.__path__).glob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            raised = getattr(errors, name, None)
            written = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if written and isinstance(written[0], ast.Constant):
                yield raised, str(written[0].value)
            elif not written and raised is not None and issubclass(raised, RefusalError):
                yield raised, raised.code


def _told() -> set[str]:
    """Every code that a caller of the validator may be told, but for those of tokens."""
    codes = {code for _, code in _raised()}
    # What empties the set of admissible models is its refusal's code.
    codes.update(engine.REFUSAL_CODES)
    codes.update(http_guard.FAULT_STATUS)
    stores = {"ledger_unavailable", "records_unavailable", "replay_unavailable"}
    codes.update(get_args(TrustCode), {"not_in_route", "scope_missing"}, stores)
    codes.update({"idempotency_done", "idempotency_in_progress", "idempotency_key_reused"})
    # Where money is short, the ledger's word is told instead.
    return codes - {"unaffordable"}


def _table(page: str) -> list[tuple[str, set[str]]]:
    """The rows of a page's table of errors: status, codes."""
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+)\|", (DOCS / page).read_text(), re.M)
    return [(status, set(re.findall(r"`(\w+)`", codes))) for status, codes in rows]


def test_the_api_s_page_names_every_error_code_and_no_other() -> None:
    # The last event of a stream has a code, and no status of its own; who hung up is told nothing.
    assert set().union(*(codes for _, codes in _table("api.md"))) == _told() - {
        "upstream_cut_short",
        "caller_gone",
    }


def test_the_tokens_page_names_every_code_of_a_refused_token() -> None:
    text = (DOCS / "tokens.md").read_text() + (DOCS / "dpop.md").read_text()
    named = set(re.findall(r"`((?:token|dpop)_\w+)`", text))

    assert named == set(get_args(TokenCode))


@pytest.mark.parametrize("page", ["checks.md", "complaints.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / page).read_text()))
    tests = (ROOT / "tests").rglob("test_*.py")

    assert named <= {
        name for file in tests for name in re.findall(r"def (test_\w+)", file.read_text())
    }


def test_the_page_of_checks_names_every_code_of_a_refused_token() -> None:
    named = set(re.findall(r"`((?:token|dpop)_\w+)`", (DOCS / "checks.md").read_text()))

    assert set(get_args(TokenCode)) - named == {"token_narrow_depth", "token_narrow_key"}


def test_every_error_has_the_status_that_the_page_says() -> None:
    statuses = {code: status for status, codes in _table("api.md") for code in codes}
    stores = [
        (StoreError, code)
        for code in ("ledger_unavailable", "records_unavailable", "replay_unavailable")
    ]

    for error, code in (*_raised(), *stores):
        if error is not None and code in statuses:
            told = error("…") if code == error.code else error("…", code=code)
            assert (code, statuses[code]) == (code, str(describe(told).status))
