"""Routes told apart by meaning, with the network that comes with a package."""

import base64
from pathlib import Path

import msgspec
import pytest

from support.make_vectors import EXAMPLES
from support.worlds import a_policy, some_facts
from waypost.cli.yamlfile import FileError
from waypost.edge.authoring.load_policy import load_policy
from waypost.shared.contracts import OneOf, Policy, Route, decode_policy
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.errors import PolicyError
from waypost.shared.scoring import embedding
from waypost.shared.scoring.embedding import DIMENSIONS, EmbeddingModel, EmbeddingScorer, embed

pytestmark = pytest.mark.skipif(
    not embedding.is_installed(), reason="the extra 'semantic' is not installed"
)


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    from waypost.edge.training.embeddings import compile_embeddings

    return compile_embeddings(EXAMPLES, seed=0)


def by_meaning(model: EmbeddingModel) -> Policy:
    routes = tuple(
        Route(name=name, when=(OneOf("semantic", (name,)),), models=("large",)) for name in EXAMPLES
    )
    return a_policy(routes=(*routes, Route(name="default", models=("small",))), embedding=model)


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("give me my money back", "billing"),
        ("my package is still not here", "shipping"),
        ("Visa took the money two times", "billing"),
        ("which courier has it at the moment?", "shipping"),
    ],
)
def test_words_that_no_example_has_are_understood(
    model: EmbeddingModel, text: str, route: str
) -> None:
    assert EmbeddingScorer(model).best(text)[0] == route


def test_what_is_like_no_example_is_of_no_route(model: EmbeddingModel) -> None:
    assert EmbeddingScorer(model).best("derive the eigenvalues of a Hermitian matrix")[0] is None


def test_a_policy_routes_by_meaning_after_its_journey(model: EmbeddingModel) -> None:
    policy = compile_policy(decode_policy(msgspec.json.encode(by_meaning(model))))
    found = policy.reader.read("give me my money back")

    assert policy.reader.is_slow
    assert decide(policy, some_facts(**found)).route == "billing"


def test_who_cannot_measure_meaning_refuses_rather_than_guesses(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "LIBRARIES", ("a_library_that_is_not_there",))
    policy = compile_policy(by_meaning(model))

    assert policy.reader.read("give me my money back") == {}
    assert decide(policy, some_facts()).reason == "facts_incomplete"


def test_a_network_that_was_exchanged_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding._encoder.cache_clear()
    monkeypatch.setattr(embedding, "NETWORK", (*embedding.NETWORK[:2], "0" * 64))

    with pytest.raises(PolicyError, match=r"model\.onnx is not the one that routes are fitted"):
        embed("hello")


def test_the_longest_prompt_costs_no_more_than_its_window() -> None:
    assert (
        embed("word " * 200_000).tolist() == embed("word " * 60 + "x" * 9 + "word " * 60).tolist()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "?"}, "not base64"),
        ({"weights": base64.b64encode(bytes(DIMENSIONS)).decode()}, "has 384 weights, not 768"),
        ({"routes": ("a", "a")}, "names a route twice"),
        ({"knots": (2, 1)}, "knots do not increase"),
    ],
)
def test_a_model_that_cannot_be_read_does_not_compile(
    model: EmbeddingModel, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        compile_policy(by_meaning(msgspec.structs.replace(model, **changes)))


AUTHORED = """\
tiers: [free]
providers: {acme: {}}
models:
  small: {provider: acme, price: {input: 1, output: 2}, tiers: free, tokens: {context: 8_000, output: 4_000}}
semantic_model: minilm
routes:
"""


def test_a_policy_file_says_by_which_means(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    rows = "".join(
        f"  - {{name: {name}, models: small, utterances: [{', '.join(texts)}]}}\n"
        for name, texts in EXAMPLES.items()
    )
    path.write_text(AUTHORED + rows + "  - {name: default, models: small}\n")

    policy = load_policy(path, channel="prod", version=1, issued_at=0).full

    assert (policy.semantic, policy.embedding is not None) == (None, True)
    path.write_text(path.read_text().replace("minilm", "gpt"))
    with pytest.raises(FileError, match="should be 'words' or 'minilm'"):
        load_policy(path, channel="prod", version=1, issued_at=0)
