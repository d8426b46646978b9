"""The SDK keeps conversations where their beginning is cached, and tells nobody which they are."""

from support.worlds import a_model, a_policy
from waypost.client import Waypost
from waypost.client._sessions import KEPT_S, MOST, Sessions
from waypost.client.testing import StaticManifest, unsigned_token
from waypost.shared.contracts import Declared, Policy, Route, Session
from waypost.shared.money import Price
from waypost.shared.wire.headers import format_facts, parse_facts

LONG = "word " * 20_000


def a_client(policy: Policy) -> Waypost:
    return Waypost(
        token=unsigned_token(tier="free"), manifest=StaticManifest(policy), refresh_interval_s=None
    )


def two_models() -> Policy:
    """The cheaper one for whoever comes anew; the other once it has the prompt cached."""
    cached = Price(
        input_nusd_per_mtok=250_000_000,
        output_nusd_per_mtok=600_000_000,
        cached_input_nusd_per_mtok=25_000_000,
    )
    return a_policy(
        models=(
            a_model("cheap", context_tokens=100_000),
            a_model("cached", price=cached, context_tokens=100_000, capabilities=("json",)),
        ),
        routes=(Route(name="default", models=("cheap", "cached")),),
        last_resort=(),
    )


def test_a_conversation_stays_with_who_has_it_cached() -> None:
    wp = a_client(two_models())
    assert wp.choose(LONG).model == "cheap"

    first = wp.choose(LONG, session="talk", response_format={"type": "json_object"})
    again = wp.choose(LONG, session="talk")

    assert (first.model, again.model) == ("cached", "cached")
    assert wp.choose(LONG, session="another").model == "cheap"
    with wp.facts(session="talk"):
        assert wp.choose(LONG).model == "cached"


def test_what_providers_have_forgotten_by_now_keeps_nobody() -> None:
    sessions = Sessions()
    sessions.note("talk", "large", 9_000, now_s=100.0)

    assert sessions.get("talk", now_s=100.0 + KEPT_S - 1) == Session("large", 9_000)
    assert sessions.get("talk", now_s=100.0 + KEPT_S) is None


def test_many_conversations_take_no_more_memory_than_some() -> None:
    sessions = Sessions()
    for number in range(MOST + 10):
        sessions.note(f"talk {number}", "large", 1, now_s=0.0)
        sessions.note("kept in use", "small", 1, now_s=0.0)

    assert len(sessions._known) == MOST
    assert sessions.get("talk 0", now_s=0.0) is None
    assert sessions.get("kept in use", now_s=0.0) == Session("small", 1)


def test_a_conversations_model_and_length_travel_and_its_name_does_not() -> None:
    wp = a_client(two_models())
    wp.choose("hello", session="patient 4711", response_format={"type": "json_object"})

    with wp.facts(session="patient 4711"):
        header = format_facts(wp._core.declared())

    assert header == 'session="cached", cached=6'
    assert parse_facts(header) == Declared(session=Session("cached", 6))
