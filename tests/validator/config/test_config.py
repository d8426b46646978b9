"""``validator.yaml``: what is wrong with it is named with its line and the mend."""

import stat
from pathlib import Path

import pytest

from waypost.shared.contracts import SpendLimit
from waypost.shared.errors import StoreError
from waypost.validator.config import ConfigError, load_config
from waypost.validator.config.callers import PseudonymConfig, load_pseudonym_key
from waypost.validator.startup.assembly import open_services

GOOD = """\
audience: https://validator.example
manifest:
  url: https://edge.example/v1/prod/bundle.json
  root: trust/root.json
providers:
  acme:
    base_url: https://api.acme.example/v1/
    api_key: ACME_KEY
budgets:
  default:
    - {window: day, limit_usd: 0.1}
  accounts:
    big:
      - {window: month, limit_usd: "1000"}
"""


def written(folder: Path, text: str = GOOD) -> Path:
    path = folder / "validator.yaml"
    path.write_text(text)
    return path


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    config = load_config(written(tmp_path))

    assert config.manifest.root == tmp_path / "trust/root.json"
    assert config.ledger.path == tmp_path / "state/ledger.sqlite"
    assert config.providers["acme"].base_url == "https://api.acme.example/v1"


def test_dollars_become_nano_dollars_exactly(tmp_path: Path) -> None:
    budgets = load_config(written(tmp_path)).budgets

    assert budgets.account("anyone").limits == (SpendLimit(window="day", limit_nusd=100_000_000),)
    assert budgets.account("big").limits == (SpendLimit(window="month", limit_nusd=10**12),)


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        (
            "audience:",
            "audiense:",
            ["1: audiense: there is no such field; did you mean 'audience'?", "is missing; add it"],
        ),
        ("window: day", "window: year", ["11: budgets.default[0].window: should be 'request',"]),
        ("limit_usd: 0.1", "limit_usd: -1", ["11: budgets.default[0].limit_usd"]),
        ("limit_usd: 0.1", "limit_usd: .nan", ["11: budgets.default[0].limit_usd"]),
        ("limit_usd: 0.1", "limit_usd: a lot", ["11: budgets.default[0].limit_usd", "as in 0.50"]),
        ("limit_usd: 0.1", "limit_usd: 0.0000000001", ["no more than 9 decimal places"]),
        ("https://api", "ftp://user:secret@api", ["7: providers.acme.base_url: should be a URL"]),
        ("https://api", "https://user:secret@api", ["7: providers.acme.base_url"]),
        ("ACME_KEY", "sk-live-abcdef", ["8: providers.acme.api_key", "environment variable"]),
        ("  root: trust/root.json\n", "", ["2: manifest.root: 'root' is missing"]),
        ("api_key: ACME_KEY", "timeout_s: 0", ["8: providers.acme.timeout_s"]),
        (
            "api_key: ACME_KEY",
            "api_key: A\n    api_keys: [B]",
            ["providers.acme: give api_key or api_keys, not both"],
        ),
        ("api_key: ACME_KEY", "api_keys: [A, A]", ["api_keys names a variable twice"]),
        ("api_key: ACME_KEY", "retry_percent: 21", ["8: providers.acme.retry_percent"]),
        ("api_key: ACME_KEY", "breaker: {failures: 0}", ["8: providers.acme.breaker.failures"]),
        ("    api_key: ACME_KEY", "  acme: {}", ["8: providers.acme: is here twice"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_line(
    tmp_path: Path, find: str, put: str, said: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, GOOD.replace(find, put, 1)))

    for words in said:
        assert words in error.value.message
    assert "secret" not in error.value.message
    assert "sk-live" not in error.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML"),
        ("- a\n", "should hold 'name: value' lines"),
        ("", "the file is empty"),
        ("a: !!python/object/apply:os.system [id]", "has no meaning here"),
        ("a: &a [*a]", r"the alias '\*a' is not supported"),
        ("a: " + "x" * 2_000_000, "is larger than 1024 KiB"),
    ],
)
def test_what_is_not_a_configuration_is_said_to_be_none(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(written(tmp_path, text))


def test_an_address_is_kept_as_it_is_sent(tmp_path: Path) -> None:
    text = GOOD.replace("https://api.acme.example/v1/", "https://münchen.example:443/a b/")

    provider = load_config(written(tmp_path, text)).providers["acme"]

    assert provider.base_url == "https://xn--mnchen-3ya.example/a%20b"


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="waypost init"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["", "  ", "sk-\u00fc", "sk-a\nHost: b"])
async def test_a_key_that_cannot_be_one_is_named_by_its_variable_only(
    tmp_path: Path, key: str
) -> None:
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust/root.json").write_bytes(b"{}")
    config = load_config(written(tmp_path))

    with pytest.raises(ConfigError, match="ACME_KEY") as error:
        async with open_services(config, environment={"ACME_KEY": key}):
            pass

    assert "sk-" not in error.value.message


@pytest.mark.anyio
async def test_a_trusted_root_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"root\.json"):
        async with open_services(load_config(written(tmp_path)), environment={"ACME_KEY": "k"}):
            pass


def test_the_pseudonym_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    config = PseudonymConfig(path=tmp_path / "state/key")

    key = load_pseudonym_key(config, {})

    assert load_pseudonym_key(config, {}) == key
    assert len(key) >= 32
    assert config.path is not None
    assert stat.S_IMODE(config.path.stat().st_mode) == 0o600


def test_a_pseudonym_key_can_come_from_the_environment(tmp_path: Path) -> None:
    config = PseudonymConfig(env="KEY")

    assert load_pseudonym_key(config, {"KEY": "k" * 32}) == b"k" * 32
    with pytest.raises(ConfigError, match="KEY"):
        load_pseudonym_key(config, {"KEY": "short"})


def test_a_pseudonym_key_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError):
        load_pseudonym_key(PseudonymConfig(path=tmp_path / "file/key"), {})
