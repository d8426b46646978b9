"""What rules look for in a text, and what happens where nobody looked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.worlds import a_policy, some_facts
from waypost.shared.contracts import Condition, NumberBetween, OneOf, Route, TextHas
from waypost.shared.decision.compiled import compile_policy
from waypost.shared.decision.engine import decide
from waypost.shared.decision.reading import TextReader
from waypost.shared.scoring.language import LANGUAGES, language_of


def reader(*conditions: Condition) -> TextReader:
    return TextReader([Route(name="r", models=(), when=conditions)])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Please tell me how this is done.", "en"),
        ("Wie ist das Wetter in Berlin und was ist mit dem Zug?", "de"),
        ("Comment est-ce que je peux changer mon mot de passe ?", "fr"),
        ("¿Cómo puedo cambiar mi contraseña? Es para una cuenta.", "es"),
        ("Come posso cambiare la password? Non è della mia banca.", "it"),
        ("Hoe kan ik mijn wachtwoord wijzigen? Het is niet goed.", "nl"),
        ("Jak mogę zmienić hasło? To nie jest dla mnie.", "pl"),
        ("Как изменить пароль?", "ru"),
        ("Як змінити її пароль?", "uk"),
        ("パスワードを変更するには", "ja"),
        ("如何更改密码", "zh"),
        ("비밀번호를 어떻게 바꾸나요", "ko"),
        ("", ""),
        ("1234 5678", ""),
        ("Zürich Łódź", ""),
    ],
)
def test_a_language_shows_or_nothing_is_said(text: str, language: str) -> None:
    assert language_of(text) == language


@given(st.text(max_size=500))
def test_any_text_is_read(text: str) -> None:
    found = reader(
        OneOf("language", ("de",)),
        NumberBetween("complexity", below=500),
        TextHas("patterns", any_of=(r"\bref-[0-9]+\b",)),
        TextHas("keywords", any_of=("refund",)),
    ).read(text)

    assert found["language"] in {"", *LANGUAGES}
    assert 0 <= found["complexity"] <= 1_000
    assert set(found["patterns"]) <= {r"\bref-[0-9]+\b"}


def test_patterns_are_found_wherever_they_stand() -> None:
    looking = reader(TextHas("patterns", any_of=(r"(?i)\bref-[0-9]{3,}\b", "^Dear")))

    assert looking.read("about REF-1234, please")["patterns"] == (r"(?i)\bref-[0-9]{3,}\b",)
    assert looking.read("Dear all")["patterns"] == ("^Dear",)


def test_a_pattern_that_would_explode_elsewhere_is_linear_here() -> None:
    assert reader(TextHas("patterns", any_of=("(a*)*b",))).read("a" * 20_000)["patterns"] == ()


def test_only_what_some_rule_asks_for_is_looked_for() -> None:
    assert reader().is_idle
    assert reader(OneOf("language", ("de",))).read("Guten Tag") == {"language": ""}


def test_a_rule_on_what_nobody_measured_is_a_refusal_not_a_silent_miss() -> None:
    routes = (
        Route(name="german", when=(OneOf("language", ("de",)),), models=("small",)),
        Route(name="default", models=("large",)),
    )
    policy = compile_policy(a_policy(routes=routes))

    assert decide(policy, some_facts()).reason == "facts_incomplete"
    assert decide(policy, some_facts(language="")).route == "default"
    assert decide(policy, some_facts(language="de")).route == "german"
