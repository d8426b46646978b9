"""Who gets into the console, and what whoever does not is told. Over real HTTP."""

import time
from collections.abc import Generator

import httpx
import pytest
from msgspec import structs

from support.console import Console
from support.validator import OPERATOR_TOKEN
from waypost.shared.errors import StoreError
from waypost.validator.console.session import (
    SESSION_S,
    LoginLimiter,
    Session,
    is_token,
    new_session,
    session_of,
)

NOW = 1_764_000_000
PAGES = ("decisions", "decisions.csv", "decisions/live", "routes", "budgets", "providers",
         "manifest", "playground")  # fmt: skip


@pytest.fixture
def stranger(console: Console) -> Generator[httpx.Client]:
    with httpx.Client(base_url=console.running.url) as client:
        yield client


# ── sessions ───────────────────────────────────────────────────────────────────────────────────


def test_a_session_holds_for_its_time_and_with_its_token_only() -> None:
    cookie = new_session(OPERATOR_TOKEN, name="5e55", now=NOW)
    session = Session(NOW + SESSION_S, "5e55")

    assert session_of(cookie, OPERATOR_TOKEN, now=NOW + SESSION_S - 1) == session
    assert session_of(cookie, OPERATOR_TOKEN, now=NOW + SESSION_S) is None
    assert session_of(cookie, f"{OPERATOR_TOKEN}x", now=NOW) is None


@pytest.mark.parametrize(
    "forge",
    [
        lambda s: "",
        lambda s: ".",
        lambda s: s.partition(".")[0],
        lambda s: s.replace(".", "."*2),
        lambda s: f"{int(s.partition('.')[0]) + 9_999}.{s.partition('.')[2]}",
        lambda s: s.replace("5e55", "5e56"),
        lambda s: f" {s}",
        lambda s: f"+{s}",
        lambda s: s.upper() if s.upper() != s else f"{s}0",
        lambda s: f"{s}\u0430",
        lambda s: f"{'9' * 4_000}.{s.partition('.')[2]}",
        lambda s: s.replace("1", "\u0661", 1),
    ],
)  # fmt: skip
def test_a_forged_session_does_not_hold(forge: object) -> None:
    cookie = new_session(OPERATOR_TOKEN, name="5e55", now=NOW)

    assert session_of(forge(cookie), OPERATOR_TOKEN, now=NOW) is None  # type: ignore[operator]


def test_only_the_token_is_the_token() -> None:
    assert is_token(OPERATOR_TOKEN, OPERATOR_TOKEN)
    for wrong in ("", OPERATOR_TOKEN[:-1], f"{OPERATOR_TOKEN}0", "\ud800", "ä" * 24):
        assert not is_token(wrong, OPERATOR_TOKEN)


def test_failed_logins_are_slowed_per_address_and_forgotten_after_a_minute() -> None:
    limiter = LoginLimiter()
    for second in range(10):
        assert limiter.wait_s("a", second) == 0
        limiter.failed("a", second)

    assert limiter.wait_s("a", 10) == 51
    assert limiter.wait_s("b", 10) == 0
    assert limiter.wait_s("a", 61) == 0


def test_an_attacker_of_many_addresses_does_not_fill_the_memory() -> None:
    limiter = LoginLimiter()
    for number in range(20_000):
        limiter.failed(str(number), 0.0)

    assert len(limiter._failures) <= 10_000


# ── over HTTP ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES)
def test_a_stranger_s_browser_is_led_to_the_login(stranger: httpx.Client, page: str) -> None:
    answer = stranger.get(f"/console/{page}", headers={"accept": "text/html"})

    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/console/login?next=%2Fconsole%2F")


@pytest.mark.parametrize("page", PAGES)
def test_a_stranger_is_told_nothing(stranger: httpx.Client, page: str) -> None:
    answer = stranger.get(f"/console/{page}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "console_login")


def test_whoever_has_not_logged_in_does_not_see_the_frame_either(stranger: httpx.Client) -> None:
    answer = stranger.get("/console/static/passwords.txt")

    assert answer.status_code == 404
    assert "manifest v" not in answer.text


def test_logging_in_sets_a_cookie_that_no_script_and_no_other_site_gets(
    stranger: httpx.Client, console: Console
) -> None:
    answer = stranger.post(
        "/console/login", data={"token": OPERATOR_TOKEN}, headers={"origin": console.running.url}
    )

    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    for attribute in ("HttpOnly", "SameSite=strict", "Path=/console", f"Max-Age={SESSION_S}"):
        assert attribute in cookie
    assert OPERATOR_TOKEN not in cookie


def test_a_wrong_token_is_401_and_a_flood_of_them_429(console: Console) -> None:
    origin = {"origin": console.running.url}
    with httpx.Client(base_url=console.running.url, headers=origin) as attacker:
        said = [attacker.post("/console/login", data={"token": "guess"}) for _ in range(11)]
        right = attacker.post("/console/login", data={"token": OPERATOR_TOKEN})
    structs.force_setattr(console.running.services, "monotonic", lambda: time.monotonic() + 120)

    assert [answer.status_code for answer in said] == [401] * 10 + [429]
    assert right.status_code == 429  # or the flood would be an oracle
    assert "not the operator" in said[0].text


def _is_let_in(client: httpx.Client) -> bool:
    return client.get("/console/manifest").status_code == 200


def test_a_cookie_that_was_stolen_ends_with_its_session(console: Console) -> None:
    with console.operator() as victim, console.operator() as other:
        stolen = dict(victim.cookies)
        with httpx.Client(base_url=console.running.url, cookies=stolen) as thief:
            assert _is_let_in(thief)

            victim.post("/console/logout")

            assert not _is_let_in(thief)
        assert _is_let_in(other)


def test_logging_out_everywhere_ends_every_session_and_no_later_one(console: Console) -> None:
    clock = console.running.clock
    with console.operator() as one, console.operator() as other:
        one.post("/console/logout", data={"everywhere": ""})

        assert not _is_let_in(one)
        assert not _is_let_in(other)
    clock.ahead_s += 1
    with console.operator() as later:
        assert _is_let_in(later)


def test_a_page_that_follows_is_cut_off_when_its_session_ends(console: Console) -> None:
    with console.operator() as operator, operator.stream("GET", "/console/decisions/live") as live:
        lines = live.iter_lines()
        next(lines)
        with httpx.Client(base_url=console.running.url, cookies=operator.cookies) as same:
            same.post("/console/logout", headers={"origin": console.running.url})

        assert "event: over" in list(lines)


def test_where_nobody_can_tell_whether_a_session_has_ended_nobody_is_let_in(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: bytes) -> int:
        raise StoreError("/secret/replay.sqlite is locked", code="replay_unavailable")

    with console.operator() as operator:
        monkeypatch.setattr(console.running.services.access.seen, "ended_until", broken)
        answer = operator.get("/console/manifest")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replay_unavailable")
    assert "/secret" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "same-site"},  # another port of this host
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},
    ],
)
@pytest.mark.parametrize("path", ["login", "logout", "playground"])
def test_a_form_of_another_site_is_refused(
    console: Console, path: str, headers: dict[str, str]
) -> None:
    with console.operator() as operator:
        del operator.headers["origin"]
        answer = operator.post(f"/console/{path}", data={"token": OPERATOR_TOKEN}, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_origin")


@pytest.mark.parametrize(
    "aim",
    ["https://evil.example/", "//evil.example", "/console//evil.example/../..\\", "/console\r\nx:y",
     "javascript:alert(1)", "/v1/models", "/console@evil.example", "/consoleevil"],
)  # fmt: skip
def test_logging_in_leads_to_no_other_place(console: Console, aim: str) -> None:
    with console.operator() as operator:
        answer = operator.post("/console/login", data={"token": OPERATOR_TOKEN, "next": aim})

    assert answer.headers["location"] == "/console/"


def test_a_session_is_not_given_out_over_a_line_that_anyone_can_read(console: Console) -> None:
    headers = {"host": "waypost.example", "origin": "http://waypost.example"}
    with httpx.Client(base_url=console.running.url) as client:
        answer = client.post("/console/login", data={"token": OPERATOR_TOKEN}, headers=headers)

    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_behind_tls_the_cookie_is_for_tls_only(console: Console) -> None:
    headers = {"host": "waypost.example", "origin": "https://waypost.example"}
    with httpx.Client(base_url=console.running.url) as client:
        answer = client.post("/console/login", data={"token": OPERATOR_TOKEN}, headers=headers)

    assert answer.status_code == 303
    assert "Secure" in answer.headers["set-cookie"]


def test_every_answer_is_fenced(console: Console) -> None:
    with console.operator() as operator:
        answers = [
            operator.get("/console/decisions"),
            operator.get("/console/decisions/nope", headers={"accept": "text/html"}),
            operator.get("/console/decisions.csv"),
            operator.get("/console/static/console.js"),
            httpx.get(f"{console.running.url}/console/decisions"),
        ]

    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "no-store" in answer.headers["cache-control"] or "immutable" in str(answer.headers)


def test_a_form_that_is_too_large_is_refused(console: Console) -> None:
    with console.operator() as operator:
        answer = operator.post("/console/playground", data={"text": "x" * 600_000})

    assert answer.status_code == 413


def test_without_a_token_in_the_settings_there_is_no_console(console: Console) -> None:
    operators = console.running.services.operators
    token = operators.console
    structs.force_setattr(operators, "console", None)
    try:
        answer = httpx.get(f"{console.url}/decisions")
        asset = httpx.get(f"{console.url}/static/console.css")
    finally:
        structs.force_setattr(operators, "console", token)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert asset.status_code == 404
