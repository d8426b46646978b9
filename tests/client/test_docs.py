"""The examples of the SDK's page, run as a reader would run them."""

import re
from pathlib import Path

import pytest

from support import origin
from support.loopback import asgi, serving
from support.publisher import Publisher
from support.worlds import a_policy
from waypost.client.testing import FakeValidator, unsigned_token

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "sdk.md"


def run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeValidator:
    """Run a page's examples, one after the other, against an edge and a validator."""
    publisher = Publisher(policy=a_policy(projection="client"))
    bundle = publisher.publish()
    validator = FakeValidator(a_policy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("trust").mkdir()
    Path("trust/root.json").write_bytes(publisher.root)
    Path("token.txt").write_text(unsigned_token(tier="free") + "\n")

    with origin.serving(lambda _: origin.Reply(bundle)) as edge, serving(asgi(validator)) as here:
        source = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
        source = source.replace("https://edge.example/v1/prod/bundle.json", edge.url)
        source = source.replace("https://gateway.example", here)
        exec(compile(source, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102

    return validator


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_the_page_s_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validator = run(PAGE, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "small This is small." in printed
    assert "policy_order - The client left the choice open; rule 'short-chat'" in printed
    assert {seen.decision.model for seen in validator.requests if seen.decision} == {
        "small",
        "clinical",
    }


@pytest.mark.parametrize("page", ["migrating", "shipping"])
def test_the_examples_of_the_other_pages_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(DOCS / f"{page}.md", tmp_path, monkeypatch)
