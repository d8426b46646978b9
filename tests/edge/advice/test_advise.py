"""``waypost advise``: exports as they come, and honest advice from them."""

import csv
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from waypost.edge.advice.advise import Advice, advise
from waypost.edge.advice.usage_export import UsageError, Used, read_usage
from waypost.edge.authoring.load_policy import load_policy
from waypost.edge.commands import advise_cli

START = datetime(2026, 10, 1, tzinfo=UTC)


def used(model: str = "gpt-4o", *, day: int = 0, times: int = 1, **figures: int) -> Used:
    taken = figures.get("taken", 80)
    return Used(
        model=model,
        at=START + timedelta(days=day),
        requests=times,
        input_tokens=taken * times,
        cached_tokens=figures.get("cached", 0),
        output_tokens=figures.get("output", 200) * times,
        cost_usd=None,
    )


def a_month(requests_a_day: int, **figures: int) -> Advice:
    return advise(used("gpt-4o", day=day, times=requests_a_day, **figures) for day in range(30))


def write(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


# ── reading ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (
            "start_time,num_model_requests,model,input_tokens,output_tokens,input_cached_tokens",
            "1790812800,3,gpt-4o,300,90,60",
        ),
        (
            "usage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_read"
            ",usage_output_tokens,requests",
            "2026-10-01,gpt-4o,240,60,90,3",
        ),
        (
            "startTime,model,prompt_tokens,completion_tokens,cached_tokens,n_requests,spend",
            "2026-10-01T00:00:00Z,gpt-4o,300,90,60,3,",
        ),
        (
            "generation_id,created_at,cost_total,tokens_prompt,tokens_completion,tokens_reasoning"
            ",tokens_cached,model_permaslug,provider_name,request_count",
            "gen-1,2026-10-01 00:00:00.000,,300,90,9,60,gpt-4o,OpenAI,3",
        ),
        (
            "usage_date_utc,model_version,workspace,usage_input_tokens_no_cache"
            ",usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h"
            ",usage_input_tokens_cache_read,usage_output_tokens,requests",
            "2026-10-01,gpt-4o,Default,100,120,20,60,90,3",
        ),
        (
            "date,model,input_tokens,output_tokens,cache_creation_input_tokens"
            ",cache_read_input_tokens,request_count",
            "2026-10-01,gpt-4o,100,90,140,60,3",
        ),
        (
            "date,model,prompt_tokens,completion_tokens,cache_creation_input_tokens"
            ",cache_read_input_tokens,api_requests",  # LiteLLM's prompt holds both
            "2026-10-01,gpt-4o,300,90,140,60,3",
        ),
        ("Date,Model,Input Tokens,Output Tokens,Cached Tokens,Requests",
         '2026-10-01,gpt-4o,300,90,"60",3'),
    ],
)  # fmt: skip
def test_exports_of_every_kind_say_the_same(tmp_path: Path, header: str, row: str) -> None:
    (found,) = read_usage(write(tmp_path / "usage.csv", header, row, "2026-10-01,,,,,"))

    assert found == Used(
        model="gpt-4o",
        at=START,
        requests=3,
        input_tokens=300,
        cached_tokens=60,
        output_tokens=90,
        cost_usd=None,
    )


ROWS = ("model;date;input_tokens;output_tokens;requests;spend", "gpt-4o;2026-10-01;300;90;3;0,25")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
def test_files_that_spreadsheets_write_are_read(
    tmp_path: Path, encoding: str, delimiter: str
) -> None:
    text = "\n".join(ROWS).replace("0,25", "0.25") if delimiter == "," else "\n".join(ROWS)
    (tmp_path / "u.csv").write_text(text.replace(";", delimiter), encoding=encoding)

    (found,) = read_usage(tmp_path / "u.csv")

    assert (found.requests, found.input_tokens, found.cost_usd) == (3, 300, Decimal("0.25"))


def test_costs_are_taken_as_the_export_says_them(tmp_path: Path) -> None:
    path = write(tmp_path / "u.csv", "model,prompt_tokens,completion_tokens,cost", "x,1,1,$0.25")

    assert [one.cost_usd for one in read_usage(path)] == [Decimal("0.25")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column for model"),
        ("model,words\na,1", "no column for input: input_tokens or prompt_tokens"),
        ("model,input_tokens,output_tokens\na,1,-2", "line 2: '-2' is not an amount"),
        ("model,input_tokens,output_tokens\na,1e999,2", "line 2"),
        ("model,input_tokens,output_tokens\na,NaNa,2", "line 2"),
        ('model,input_tokens,output_tokens\na,"1\x00",2', "u.csv|line 2"),
    ],
)
def test_what_is_no_export_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "u.csv"
    path.write_text(text)

    with pytest.raises(UsageError, match=said):
        list(read_usage(path))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "u.csv"
    path.write_bytes("modèle".encode("latin-1"))

    with pytest.raises(UsageError, match="not CSV in UTF-8"):
        list(read_usage(path))
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_usage(tmp_path / "none.csv"))


# ── advice ─────────────────────────────────────────────────────────────────────────────────────


def test_a_small_bill_is_not_worth_it_and_the_advice_says_why() -> None:
    advice = a_month(1_000)

    assert advice.verdict == "not_yet"
    assert 0 < advice.monthly_usd < 500
    assert "costs more than it saves" in " ".join(advice.sentences)


def test_between_the_marks_it_depends() -> None:
    advice = a_month(12_000)

    assert 500 < advice.monthly_usd < 1_000
    assert advice.verdict == "perhaps"


def test_a_large_bill_of_short_requests_is_worth_it_and_the_figures_are_the_price_list_s() -> None:
    advice = a_month(100_000)
    best = advice.rules[0]

    # 3 million requests of 80 tokens at $2.50 and 200 at $10; gpt-5-mini takes $0.25 and $2.
    assert advice.monthly_usd == pytest.approx(3 * (80 * 2.5 + 200 * 10))
    assert (best.model, best.to) == ("gpt-4o", "gpt-5-mini")
    assert best.saves_usd == pytest.approx(advice.monthly_usd - 3 * (80 * 0.25 + 200 * 2))
    assert advice.verdict == "worth_it"


def test_long_requests_leave_nothing_to_save() -> None:
    assert a_month(100_000, taken=5_000).verdict == "nothing_to_save"


def test_cheap_models_leave_nothing_to_save() -> None:
    advice = advise(used("gpt-5-mini", day=day, times=200_000) for day in range(30))

    assert (advice.verdict, advice.rules) == ("nothing_to_save", ())


def test_negotiated_prices_are_believed_and_savings_scaled_to_them() -> None:
    listed = advise([used(times=3_000_000)])
    paid = Decimal(str(sum(bill.cost_usd for bill in listed.models))) / 2
    row = used(times=3_000_000)
    halved = advise(
        [Used(**{f: getattr(row, f) for f in row.__struct_fields__} | {"cost_usd": paid})]
    )

    assert halved.rules[0].saves_usd == pytest.approx(listed.rules[0].saves_usd / 2, rel=1e-3)


def test_what_has_no_price_is_said_and_left_out() -> None:
    advice = advise([used("house-model"), used(times=100)])

    assert advice.unpriced == ("house-model",)
    assert "house-model" in advice.sentences[-1]
    assert advise([used("house-model")]).verdict == "unknown"


def test_gateways_names_are_understood() -> None:
    names = ("openai/gpt-4o", "azure/gpt-4o", "anthropic/claude-sonnet-4-5")

    assert advise(used(name) for name in names).unpriced == ()


def test_caching_is_named_where_it_would_save_more_than_routing() -> None:
    advice = a_month(100_000, taken=5_000)

    assert "prompt caching first" in " ".join(advice.sentences)
    assert advice.caching_usd == pytest.approx(3_000_000 * 5_000 * 1.25 / 1e6)


# ── the command ────────────────────────────────────────────────────────────────────────────────


def run(*arguments: str) -> Result:
    app = typer.Typer()
    advise_cli.register(app)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["advise", *arguments])


def an_export(path: Path) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("date", "model", "input_tokens", "output_tokens", "requests"))
        for day in range(30):
            at = f"{START + timedelta(days=day):%Y-%m-%d}"
            rows.writerow((at, "gpt-4o", 8_000_000, 20_000_000, 100_000))
    return path


def test_the_rule_it_proposes_is_one_that_a_policy_takes(tmp_path: Path) -> None:
    found = run(str(an_export(tmp_path / "usage.csv")), "--json")
    rule = json.loads(found.stdout)["rules"][0]["policy"]
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "tiers: [free]\nproviders: {openai: {}}\nmodels:\n  gpt-5-mini:\n    provider: openai\n"
        "    name: gpt-5-mini\n    price: {input: 0.25, output: 2.00}\n    tiers: [free]\n"
        "    tokens: {context: 400_000, output: 128_000}\nroutes:\n"
        + "".join(f"  {line}\n" for line in rule.splitlines())
        + "  - name: default\n    models: gpt-5-mini\n"
    )

    loaded = load_policy(policy, channel="prod", version=1, issued_at=0).full

    assert [route.name for route in loaded.routes] == ["short", "default"]


def test_it_tells_people_in_words(tmp_path: Path) -> None:
    said = run(str(an_export(tmp_path / "usage.csv"))).stdout

    assert said.startswith("Worth it.\n")
    assert "gpt-5-mini" in said
    assert "genai-prices" in said


def test_an_export_s_own_text_does_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    path = tmp_path / "usage.csv"
    path.write_text("model,input_tokens,output_tokens\n\x1b[31mred[bold],1,1\n")

    assert "\x1b[31m" not in run(str(path)).stdout


def test_a_sum_of_nobody_knows_how_many_requests_is_no_verdict_on_their_length(
    tmp_path: Path,
) -> None:
    days = [f"2026-10-{day:02},claude-opus-4-1,9000000,900000" for day in range(1, 31)]
    header = "usage_date_utc,model_version,usage_input_tokens_no_cache,usage_output_tokens"

    advice = advise(read_usage(write(tmp_path / "u.csv", header, *days)))

    assert advice.verdict == "unknown"
    assert advice.monthly_usd > 1_000
    assert "how many requests" in " ".join(advice.sentences)


def test_one_day_is_not_said_to_be_a_month_without_a_word() -> None:
    assert "So few days" in " ".join(advise([used(times=100_000)]).sentences)
    assert "So few days" not in " ".join(a_month(1_000).sentences)


@pytest.mark.parametrize("model", ["text-embedding-3-small", "voyage-3", "mistral-embed"])
def test_embeddings_have_a_price(model: str) -> None:
    advice = advise([used(model, output=0)])

    assert not advice.unpriced
