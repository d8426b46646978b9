"""``waypost demo``: the whole product in one command, checked by what it says in JSON."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console

from support.debian import needs
from support.demo import KeptDemo, kept_demo, run_demo, starting_demo, wait_for
from waypost.demo import local_model
from waypost.demo.processes import ServerError, running
from waypost.demo.scenes import SCENES, Row, surprises
from waypost.demo.show import demo_table
from waypost.demo.upstream import ANNOUNCEMENT, Config, Profile, Provider

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
needs_curl = needs("curl")


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 60,
    },
    "/v1/messages": {
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 60,
    },
    "/v1/responses": {"input": "Why is the sky blue?", "max_output_tokens": 60},
}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Why is the sky"},
    "/v1/embeddings": {"input": "Why is the sky blue?"},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Generator[KeptDemo, None, None]:
    with kept_demo(tmp_path_factory.mktemp("kept")) as demo:
        yield demo


@pytest.fixture(scope="module")
def told(kept: KeptDemo) -> dict[str, Any]:
    """What one run of the demo wrote."""
    return kept.told


@pytest.fixture
def rows(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["scene"]: row for row in told["rows"]}


Rows = dict[str, dict[str, Any]]


def test_the_demo_plays_every_scene_in_order(told: dict[str, Any]) -> None:
    assert [row["scene"] for row in told["rows"]] == [scene.name for scene in SCENES]


def test_every_api_of_the_demo_is_answered_by_every_model_and_counts_against_none(
    kept: KeptDemo,
) -> None:
    url = kept.shell('echo "$WAYPOST_URL"').stdout.strip()
    mint = next(one["command"] for one in kept.told["next"] if "token mint" in one["command"])
    token = kept.shell(mint.replace("--tier free", "--tier enterprise")).stdout.strip()
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60
    ) as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
        models = [model for model in listed if model != "auto"]

        def ask(path: str, model: str, streamed: bool) -> None:
            body = {**CONVERSATIONS[path], "model": model, "stream": streamed}
            answer = client.post(path, json=body)
            assert answer.status_code == 200, (path, model, answer.text)
            assert "upstream" not in answer.text
            assert f'model="{model}"' in answer.headers["waypost-decision"]
            told = client.get(f"/v1/decisions/{answer.headers['x-request-id']}").text
            assert "does not have this API" not in told, (path, model)

        # Side by side, as the slowest thinks for four seconds.
        with ThreadPoolExecutor(12) as pool:
            for one in [
                pool.submit(ask, path, model, streamed)
                for path, model, streamed in product(CONVERSATIONS, models, (False, True))
            ]:
                one.result()
        for path, body in OTHERS.items():
            answer = client.post(path, json={**body, "model": "auto"})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "endpoint_unsupported"

    assert len(models) == 6


def test_a_short_question_is_accepted_on_the_cheapest_model(rows: Rows) -> None:
    row = rows["short"]

    assert (row["proposed"], row["verdict"], row["model"]) == ("small", "accepted", "small")
    assert 0 < row["cost_nusd"] < row["baseline_cost_nusd"]


def test_a_hard_question_goes_to_a_capable_model(rows: Rows) -> None:
    row = rows["hard"]

    assert (row["verdict"], row["model"]) == ("accepted", "large")
    assert "'hard'" in row["reason"]
    assert row["cost_nusd"] > rows["short"]["cost_nusd"]


def test_background_work_is_answered_whole_by_a_model_that_is_good_enough(rows: Rows) -> None:
    row = rows["background"]

    assert row["verdict"] == "accepted"
    assert row["model"] in {"medium", "eu-medium"}
    assert row["streamed"] is False
    assert row["answer"]


def test_a_free_client_that_claims_the_best_model_is_overridden(rows: Rows) -> None:
    row = rows["cheat"]

    assert (row["proposed"], row["verdict"]) == ("frontier", "overridden")
    assert (row["code"], row["model"]) == ("tier_not_allowed", "small")
    assert "not open to tier free" in row["reason"]


def test_patient_data_goes_only_to_the_provider_with_an_agreement(rows: Rows) -> None:
    row = rows["phi"]

    assert (row["proposed"], row["verdict"], row["code"]) == ("large", "overridden", "duty_unmet")
    assert (row["model"], row["provider"]) == ("clinical", "medcloud")
    assert "hipaa_baa" in row["reason"]


def test_a_duty_in_the_token_keeps_data_in_the_eu(rows: Rows) -> None:
    assert (rows["eu"]["model"], rows["eu"]["provider"]) == ("eu-medium", "mistral")


def test_a_used_up_budget_is_402_and_costs_nothing(rows: Rows) -> None:
    row = rows["budget"]

    assert (row["http_status"], row["verdict"], row["model"]) == (402, "refused", None)
    assert row["code"] in {"budget_exhausted", "unaffordable"}
    assert row["cost_nusd"] == 0
    assert "trial" in row["reason"]


def test_a_forged_token_is_401_and_learns_nothing(rows: Rows) -> None:
    row = rows["forged"]

    assert (row["http_status"], row["verdict"], row["model"]) == (401, "refused", None)
    assert row["code"].startswith("token_")
    assert (row["cost_nusd"], row["answer"]) == (0, "")


def test_an_outage_is_answered_by_the_next_model_of_the_chain(rows: Rows) -> None:
    row = rows["outage"]

    assert (row["proposed"], row["model"]) == ("small", "medium")
    assert row["http_status"] == 200
    assert re.search(r"small failed( twice)?\. medium answered in its place\.", row["reason"])


def test_every_answer_was_paid_for_timed_and_says_it_is_simulated(told: dict[str, Any]) -> None:
    answered = [row for row in told["rows"] if row["http_status"] == 200]

    assert len(answered) == len(SCENES) - 2
    for row in answered:
        assert row["cost_nusd"] > 0
        assert row["ttft_ms"] > 0
        assert row["answer"].startswith("(simulated)")
    assert "SIMULATED" in told["models"]


def test_the_totals_are_those_of_the_rows(told: dict[str, Any]) -> None:
    totals = told["totals"]

    assert totals["requests"] == len(SCENES)
    assert totals["spent_nusd"] == sum(row["cost_nusd"] for row in told["rows"])
    assert totals["saved_nusd"] > 0
    assert (totals["overridden"], totals["refused"]) == (2, 2)


@pytest.mark.parametrize("width", [80, 100, 131, 132, 160, 220])
def test_the_table_fits_the_terminal_and_says_what_answered(
    told: dict[str, Any], width: int
) -> None:
    written = io.StringIO()
    console = Console(file=written, width=width)
    rows = msgspec.convert(told["rows"], list[Row])
    console.print(demo_table(rows, models=told["models"], width=console.width))

    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "SIMULATED" in lines[0]
    for word in ("accepted", "overridden", "refused 402", "refused 401", "eu-medium", "clinical"):
        assert any(word in line for line in lines), word


def test_the_table_is_what_people_see(tmp_path: Path) -> None:
    done = run_demo(tmp=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout
    assert "saved $" in done.stdout
    assert 'curl -s "$WAYPOST_URL/v1/chat/completions"' in done.stdout
    assert "demo --keep" in done.stdout
    assert list(tmp_path.iterdir()) == [], "the demo left files behind"


def test_the_readme_tells_what_is_played(told: dict[str, Any]) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert told["models"] in "\n".join(lines)
    for row in told["rows"]:
        line = next(line for line in lines if line.startswith(f"| {row['shows']} |"))
        for words in (row["proposed"], row["verdict"], row["model"] or "nobody"):
            assert words in line, line


# ── left running ───────────────────────────────────────────────────────────────────────────────


@needs("make")
@pytest.mark.parametrize(("is_terminal", "called"), [(True, "demo --keep"), (False, "demo")])
def test_make_demo_stays_where_somebody_looks(
    tmp_path: Path, is_terminal: bool, called: str
) -> None:
    waypost = tmp_path / "waypost"
    waypost.write_text('#!/bin/sh\necho "called: $*"\n')
    waypost.chmod(0o755)
    screen, end = os.openpty()
    try:
        done = subprocess.run(
            # All but the set-up, with a program that only says how it was called.
            ["make", "-s", "-o", ".venv/demo", f"BIN={tmp_path}", "demo"],
            cwd=ROOT,
            stdin=end if is_terminal else subprocess.DEVNULL,
            stdout=end if is_terminal else subprocess.PIPE,
            check=True,
            timeout=30,
        )
        said = os.read(screen, 1_000) if is_terminal else done.stdout
    finally:
        os.close(screen)
        os.close(end)

    assert said.decode().split() == ["called:", *called.split()]


def command(demo: KeptDemo, part: str) -> str:
    found: str = next(step["command"] for step in demo.told["next"] if part in step["command"])
    return found


@needs_curl
def test_the_printed_curl_is_answered(kept: KeptDemo) -> None:
    done = kept.shell(command(kept, "/v1/chat/completions"))

    assert json.loads(done.stdout)["choices"][0]["message"]["content"].startswith("(simulated)")


@needs_curl
def test_every_printed_command_works(kept: KeptDemo) -> None:
    for step in kept.told["next"]:
        done = kept.shell(step["command"])
        assert done.returncode == 0, (step, done.stderr)
    kept.shell(command(kept, "/outage").replace("PUT", "DELETE"))


@needs_curl
def test_a_minted_token_opens_the_validator(kept: KeptDemo) -> None:
    done = kept.shell(
        f"WAYPOST_TOKEN=$({command(kept, 'token mint')}); " + command(kept, "/v1/decide")
    )

    assert json.loads(done.stdout)["model"] == "small"


def test_the_console_that_it_ends_with_explains_each_request(kept: KeptDemo) -> None:
    console = kept.told["console"]
    with httpx.Client(headers={"origin": console["url"].removesuffix("/console")}) as operator:
        operator.post(f"{console['url']}/login", data={"token": console["token"]})
        page = operator.get(f"{console['url']}/decisions").text
        one = operator.get(f"{console['url']}/decisions/{kept.told['rows'][3]['decision_id']}").text

    assert "Simulated providers" in page
    assert "The client asked for frontier, but it is not open to tier free" in one


# Ends the demo that the tests above share: what needs it running goes before this one.
def test_ctrl_c_ends_every_server_and_removes_every_file(kept: KeptDemo) -> None:
    told = " ".join(step["command"] for step in kept.told["next"])
    ports = {int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", told)}
    assert len(ports) == 2

    assert kept.stop(signal.SIGINT) == 0

    assert list(kept.tmp.iterdir()) == []
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.parametrize("server", ["edge.log", "validator.log"])
def test_a_kill_half_way_ends_every_server_and_removes_every_file(
    tmp_path: Path, server: str
) -> None:
    with starting_demo(tmp_path) as process:
        wait_for(lambda: any(tmp_path.glob(f"waypost-demo-*/{server}")))
        urls = [
            found
            for log in tmp_path.glob("waypost-demo-*/*.log")
            for found in re.findall(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text())
        ]
        process.terminate()
        assert process.wait(30) == 130

    assert list(tmp_path.iterdir()) == []
    for port in urls:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=1)


# ── real models ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(local_model.model_file() is None, reason=local_model.INSTALL)
def test_a_real_local_model_answers_every_scene(tmp_path: Path) -> None:
    done = run_demo("--real", "--json", tmp=tmp_path)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert local_model.MODEL in told["models"]
    verdicts = [(row["scene"], row["verdict"], row["http_status"]) for row in told["rows"]]
    assert verdicts == [
        ("short", "accepted", 200),
        ("hard", "accepted", 200),
        ("background", "accepted", 200),
        ("cheat", "overridden", 200),
        ("phi", "overridden", 200),
        ("eu", "accepted", 200),
        ("budget", "refused", 402),
        ("forged", "refused", 401),
        ("outage", "accepted", 200),
    ]
    for row in told["rows"]:
        assert "simulated" not in row["answer"]
        assert bool(row["answer"]) is (row["http_status"] == 200)


def test_live_without_a_key_says_which_in_one_line(tmp_path: Path) -> None:
    done = run_demo("--live", tmp=tmp_path)

    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_real_and_live_exclude_each_other(tmp_path: Path) -> None:
    assert run_demo("--live", "--real", tmp=tmp_path).returncode == 2


@pytest.fixture
def compatible_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """An OpenAI-compatible server; gives its base URL. Its key is ``sk-acme``."""
    folder = tmp_path_factory.mktemp("server")
    fast = Profile(ttft_ms=5, tokens_per_s=2_000)
    acme = Provider(name="acme", api_key="sk-acme", models={"acme-1": fast})
    path = folder / "upstream.json"
    path.write_bytes(msgspec.json.encode(Config(providers=(acme,))))
    with running(
        "a compatible server",
        [sys.executable, "-m", "waypost.demo.upstream", str(path)],
        announcement=ANNOUNCEMENT,
        log=folder / "log",
    ) as server:
        yield f"{server.url()}/acme/v1"


def test_live_takes_any_openai_compatible_base_url(tmp_path: Path, compatible_server: str) -> None:
    live = {"WAYPOST_LIVE_BASE_URL": compatible_server, "WAYPOST_LIVE_API_KEY": "sk-acme"}
    done = run_demo("--live", "--json", tmp=tmp_path, extra=live)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["mode"], "acme-1" in told["models"]) == ("live", True)
    answered = [row for row in told["rows"] if row["http_status"] == 200]
    assert len(answered) == len(SCENES) - 2


def test_live_with_a_wrong_key_stops_before_anything_starts(
    tmp_path: Path, compatible_server: str
) -> None:
    live = {"WAYPOST_LIVE_BASE_URL": compatible_server, "WAYPOST_LIVE_API_KEY": "sk-wrong"}
    done = run_demo("--live", tmp=tmp_path, extra=live)

    assert done.returncode == 1
    assert "401" in done.stderr
    assert "sk-wrong" not in done.stderr


# ── when something goes wrong ──────────────────────────────────────────────────────────────────


def test_an_answer_that_should_have_come_is_a_failure(told: dict[str, Any]) -> None:
    rows = msgspec.convert(told["rows"], list[Row])
    assert surprises(rows) == []

    broken = msgspec.structs.replace(rows[0], http_status=500, code="internal_error")
    assert surprises([broken, *rows[1:]]) == [
        "request 'short' got HTTP 500 (internal_error), not 200"
    ]


def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    dies = [sys.executable, "-c", "print('port taken'); raise SystemExit(3)"]
    with (
        running("the edge", dies, announcement="listening on", log=tmp_path / "log") as server,
        pytest.raises(ServerError, match=r"the edge ended with code 3 [^$]*port taken"),
    ):
        server.url()


def test_a_server_that_says_nothing_is_given_up_on(tmp_path: Path) -> None:
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        running("the edge", hangs, announcement="listening on", log=tmp_path / "log") as server,
        pytest.raises(ServerError, match="did not listen within"),
    ):
        server.url(deadline_s=0.2)
