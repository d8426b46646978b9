"""Whatever is done to a file that people write, it is read, or it is said what is wrong where."""

import gzip
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import BaseModel

from support import written
from support.mutations import mutated_nodes, mutated_texts
from waypost.cli.yamlfile import FileError, FileModel, Finding, YAMLFile, read_yaml
from waypost.edge.authoring import issuers_file, layers
from waypost.edge.authoring.issuers_file import IssuersFile, load_issuers
from waypost.edge.authoring.load_policy import Authored, load_policy
from waypost.edge.authoring.policy_file import PolicyFile
from waypost.edge.training.labels import read_graded, read_labels
from waypost.edge.trial import cases as trial
from waypost.edge.trial.cases import load_cases, run_cases
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.scoring import complexity, judge
from waypost.shared.scoring.judge import JudgeModel
from waypost.validator import config
from waypost.validator.config import ConfigError, ValidatorConfig, load_config
from waypost.validator.upstream.breaker import BreakerRules

NOW = 1_790_000_000  # 2026-09-21
KEY = rsa.generate_private_key(65_537, 2_048).public_key().public_numbers()
MODULUS = urlsafe_b64encode(KEY.n.to_bytes(256)).decode().rstrip("=")

FILES = {
    "policy.yaml": written.POLICY,
    "top.yaml": written.TOP,
    "base.yaml": written.POLICY,
    "talk.yaml": written.UTTERANCES,
    "policy.test.yaml": written.CASES,
    "issuers.yaml": written.ISSUERS.replace("RSA_MODULUS", MODULUS),
    "validator.yaml": written.VALIDATOR,
}
# How often each is changed as YAML and as text; 30,000 together, most where reading is cheap.
COUNTS = {
    "policy.yaml": (3_600, 300),
    "top.yaml": (2_000, 150),
    "base.yaml": (800, 50),
    "talk.yaml": (200, 50),
    "policy.test.yaml": (6_000, 300),
    "issuers.yaml": (12_500, 300),
    "validator.yaml": (3_200, 300),
}
LABELS = 300
JUDGE = JudgeModel(weights=(0.0,) * len(judge.FEATURES))

Read = Callable[[], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    key = {"kty": "OKP", "crv": "Ed25519", "kid": "theirs", "alg": "EdDSA", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}  # fmt: skip
    (folder / "complexity.json").write_bytes(msgspec.json.encode(complexity.BUILT_IN))
    (folder / "judge.json").write_bytes(msgspec.json.encode(JUDGE))
    (folder / "keys").mkdir()
    (folder / "keys/other.json").write_text(json.dumps({"keys": [key]}), encoding="utf-8")
    return folder


def read(path: Path, policy: Authored) -> object:
    """Read a file as the commands do."""
    match path.name:
        case "issuers.yaml":
            return load_issuers(path, channel="prod", version=1, issued_at=NOW)
        case "validator.yaml":
            config = load_config(path)
            return config.budgets.calendar, [
                BreakerRules(**each.breaker.model_dump()) for each in config.providers.values()
            ]
        case "policy.test.yaml":
            return run_cases(compile_policy(policy.full), *load_cases(path, policy.full))
        case "base.yaml":
            return load(path.with_name("top.yaml"))
        case _:
            return load(path)


def load(path: Path) -> Authored:
    return load_policy(path, channel="prod", version=1, issued_at=NOW)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Authored:
    return load(folder / "policy.yaml")


def said_of(act: Read, name: str) -> list[str]:
    """Return what is said of a file that is wrong, line by line; nothing if it is right."""
    try:
        act()
    except (FileError, ConfigError) as exc:
        return exc.message.splitlines()
    except Exception as exc:  # whatever it is, it must not be one of these
        pytest.fail(f"{name}: {type(exc).__name__}: {exc}")
    return []


FOUND = re.compile(r"([\w.]+\.yaml):(\d+): (?:[^ ]*: )?(\S.*)")
WHOLE = re.compile(r"[\w.]+\.yaml: (the file is empty|cannot be read|is not YAML|is larger).*")
FOREIGN = re.compile(r"pydantic|Traceback|Error\b|validation|Input |function-|\bNone\b")


def check(said: Iterable[str], name: str) -> None:
    """Each mistake names a file and a line that is there, and speaks our words."""
    for line in said:
        found = FOUND.fullmatch(line)
        assert found is not None or WHOLE.fullmatch(line), line
        assert not FOREIGN.search(line.replace("'", "")), line
        assert line.isprintable(), line
        if found is not None:
            assert found[1] in (name, "base.yaml", "top.yaml")
            assert 1 <= int(found[2]) <= FILES[found[1]].count("\n") + 1 + LONGER


LONGER = 2  # a line twice, or a break put in


def test_thirty_thousand_mistakes_are_counted() -> None:
    assert sum(map(sum, COUNTS.values())) + LABELS >= 30_000


@pytest.mark.parametrize("name", COUNTS)
def test_a_value_mangled_anywhere_is_read_or_explained(
    name: str, folder: Path, policy: Authored, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: dict[str, yaml.Node | None] = {
        other: yaml.compose(text, Loader=yaml.CSafeLoader) for other, text in FILES.items()
    }
    here: list[yaml.Node] = []

    def read_mangled(path: Path) -> YAMLFile:
        file = YAMLFile(path.name)
        file.load(here[0] if path.name == name else whole[path.name])
        return file

    # Composing takes longer than all the rest; what a file's text does to it is tried below.
    for module in (layers, issuers_file, trial, config):
        monkeypatch.setattr(module, "read_yaml", read_mangled)
    refused = 0
    for node in mutated_nodes(FILES[name], COUNTS[name][0], seed=12):
        here[:] = [node]
        said = said_of(lambda: read(folder / name, policy), name)
        check(said, name)
        refused += bool(said)

    assert 0.5 < refused / COUNTS[name][0] < 0.98  # neither all wrong, nor looked at by nobody


@pytest.mark.parametrize("name", COUNTS)
def test_text_mangled_anywhere_is_read_or_explained(
    name: str, folder: Path, policy: Authored, tmp_path: Path
) -> None:
    for each in folder.iterdir():
        (tmp_path / each.name).symlink_to(each)
    path = tmp_path / name
    path.unlink()
    for data in mutated_texts(FILES[name], COUNTS[name][1], seed=12):
        path.write_bytes(data)
        check(said_of(lambda: read(path, policy), name), name)


@pytest.mark.parametrize("reader", [read_labels, read_graded])
def test_labels_mangled_anywhere_are_read_or_explained(
    reader: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    line = {"prompt": "hello", "weak": 0.25, "strong": 1.0, "answer": "hi", "confidence": 0.5}
    good = json.dumps(line) + "\n"
    deep = "[" * 100_000
    said = set()
    for data in (
        *mutated_texts(good, LABELS // 2, seed=12),
        deep.encode(),
        f'{{"x": {deep}'.encode(),
    ):
        path.write_bytes(good.encode() * 100 + data)
        for finding in said_of(partial(reader, path), path.name):
            assert re.fullmatch(r"labels\.jsonl(:10[1-9])?: \S.*", finding), finding
            said.add(finding)
    zipped = gzip.compress(good.encode() * 100)
    for at in range(10, len(zipped)):
        path = tmp_path / "labels.jsonl.gz"
        path.write_bytes(zipped[:at] + bytes([zipped[at] ^ 0xFF]) + zipped[at + 1 :])
        said_of(partial(reader, path), path.name)

    assert len(said) > 10


# ── that all there is to mangle is there ───────────────────────────────────────────────────────


def fields_of(model: type[BaseModel]) -> set[str]:
    """Return all that can be written below a model."""
    found: set[str] = set()

    def visit(each: object) -> None:
        schema = getattr(each, "model_fields", None)
        if schema is None:
            for inner in getattr(each, "__args__", ()):
                visit(inner)
            return
        for name, field in schema.items():
            name = f"{each.__name__}.{field.alias or name}"  # type: ignore[attr-defined]
            if name not in found:
                found.add(name)
                visit(field.annotation)

    visit(model)
    return found


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (PolicyFile, ["policy.yaml", "top.yaml", "talk.yaml"]),
        (IssuersFile, ["issuers.yaml"]),
        (ValidatorConfig, ["validator.yaml"]),
        (trial._CasesFile, ["policy.test.yaml"]),
    ],
)
def test_every_field_there_is_stands_in_the_files_that_are_mangled(
    model: type[BaseModel], names: list[str]
) -> None:
    text = "\n".join(FILES[name] for name in names)
    missing = {
        field for field in fields_of(model) if not re.search(rf"\b{field.split('.')[1]}:", text)
    }

    # The rest of a pair of which only one may be there.
    assert missing <= {"PseudonymConfig.env", "_Request.semantic", "MetricsConfig.token_file"}


def test_each_file_is_right_as_it_is(folder: Path, policy: Authored) -> None:
    assert [said_of(partial(read, folder / name, policy), name) for name in FILES] == [[]] * 7


def subclasses(model: type[BaseModel]) -> set[type[BaseModel]]:
    return {model, *(each for below in model.__subclasses__() for each in subclasses(below))}


def test_no_file_that_people_write_has_fields_that_nobody_reads() -> None:
    ours = {each for each in subclasses(BaseModel) if each.__module__.startswith("waypost.")}

    assert len(ours) > 40
    assert {each.__name__ for each in ours if not issubclass(each, FileModel)} == set()
    assert {each.__name__ for each in ours if each.model_config.get("extra") != "forbid"} == set()


# ── what it was found by ───────────────────────────────────────────────────────────────────────


def findings(folder: Path, name: str, before: str, after: str) -> list[Finding]:
    assert before in FILES[name]
    path = folder / name
    path.write_text(FILES[name].replace(before, after, 1), encoding="utf-8")
    with pytest.raises(FileError) as caught:
        load(path)
    return list(caught.value.findings)


def test_a_field_misspelt_below_for_is_told_with_its_mend(tmp_path: Path) -> None:
    found = findings(tmp_path, "policy.yaml", "input_tokens: 4_000,", "input_tokes: 4_000,")

    assert [str(each).partition(": ")[2] for each in found] == [
        "invariants[1].then.for.input_tokens: 'input_tokens' is missing; add it",
        "invariants[1].then.for.input_tokes: there is no such field; did you mean 'input_tokens'?",
    ]
    lines = FILES["policy.yaml"].splitlines()
    assert {lines[each.line - 1].strip()[:15] for each in found} == {"then: {max_cost"}


def test_a_field_misspelt_in_one_of_several_kinds_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.test.yaml"
    path.write_text(
        "cases: [{name: a, request: {messages: [{role: user, contnt: x}]}, expect: {reason: ok}}]",
        encoding="utf-8",
    )
    (tmp_path / "policy.yaml").write_text(FILES["policy.yaml"], encoding="utf-8")

    with pytest.raises(FileError) as caught:
        load_cases(path, load(tmp_path / "policy.yaml").full)

    assert [each.path for each in caught.value.findings] == [
        "cases[0].request.messages[0].content",
        "cases[0].request.messages[0].contnt",
    ]


def test_a_base_that_is_not_there_is_told_where_it_is_named(tmp_path: Path) -> None:
    found = findings(tmp_path, "top.yaml", "extends: base.yaml", "extends: bse.yaml")

    assert str(found[0]).startswith("top.yaml:1: extends: there is no file 'bse.yaml'")


def test_a_key_set_that_is_not_there_is_told_where_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "issuers.yaml"
    path.write_text(FILES["issuers.yaml"], encoding="utf-8")

    with pytest.raises(FileError, match=r"issuers\.yaml:\d+: issuers\[1\]\.jwks: .*does not exist"):
        load_issuers(path, channel="prod", version=1, issued_at=NOW)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("time_zone: Europe/Berlin", "time_zone: Europe/Berln", "budgets.time_zone: should be a time zone"),
        ("email: pii", "emial: pii", "detectors.emial: nothing detects 'emial'; did you mean 'email'?"),
    ],
)  # fmt: skip
def test_what_validator_yaml_names_must_be_there(
    before: str, after: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "validator.yaml"
    path.write_text(FILES["validator.yaml"].replace(before, after), encoding="utf-8")

    with pytest.raises(ConfigError, match=rf"validator\.yaml:\d+: {re.escape(said)}"):
        load_config(path)


def test_tags_do_not_turn_text_into_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: !!bool maybe\nb: !!null x\nc: !!bool no\n", encoding="utf-8")

    file = read_yaml(path)

    assert [each.path for each in file.findings] == ["a", "b"]
    assert file.value["c"] is False
