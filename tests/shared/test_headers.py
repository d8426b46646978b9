"""The Waypost-* headers: what is written is read, and what is malformed is never ignored."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.shared.contracts import Declared, Proposal
from waypost.shared.errors import InvalidRequestError
from waypost.shared.headers import (
    format_decision,
    format_facts,
    format_proposal,
    parse_decision,
    parse_facts,
    parse_proposal,
)

printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
names = st.lists(printable, max_size=4, unique=True).map(tuple)


@given(printable, st.none() | printable, st.none() | printable, st.none() | st.integers(0, 2**31))
def test_a_proposal_survives_the_header(
    model: str, otherwise: str | None, route: str | None, manifest: int | None
) -> None:
    proposal = Proposal(model=model, otherwise=otherwise, route=route, manifest=manifest)

    assert parse_proposal(format_proposal(proposal)) == proposal


@given(st.booleans(), st.none() | printable, names, names, st.none() | st.integers(0, 10**9))
def test_declared_facts_survive_the_header(
    interactive: bool,
    task: str | None,
    tags: tuple[str, ...],
    classes: tuple[str, ...],
    output: int | None,
) -> None:
    declared = Declared(
        interactive=interactive,
        task=task,
        tags=tags,
        data_classes=classes,
        expected_output_tokens=output,
    )

    assert parse_facts(format_facts(declared)) == declared


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_our_own_words(text: str) -> None:
    for parse in (parse_facts, parse_proposal):
        with contextlib.suppress(InvalidRequestError):
            parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "data",
        "data=1",
        'data=("phi" 1)',
        'data="phi"x',
        'data="phi',
        'data="phi",',
        'data="p\\hi"',
        "interactive=maybe",
        "output=-1",
        'task=""',
        "data=(phi",
        "data=phi\x00",
        'data=%"p%ffi"',
        'data="' + "x" * 5_000 + '"',
    ],
)
def test_a_declared_duty_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_facts(text)

    assert caught.value.code == "header_malformed"


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ('data="phi"', ("phi",)),
        ("data=phi", ("phi",)),
        ('data=("phi" pii)', ("phi", "pii")),
        ('data=( "phi"  "pii" )', ("phi", "pii")),
        ('data=("phi";source=form pii;x)', ("phi", "pii")),  # parameters are not items
        ('x=1;y=?0, data="phi";source="form" ,z', ("phi",)),
        ('data="pii", data="phi"', ("phi",)),  # RFC 9651 §3.2: the last of a key counts
        ("", ()),
    ],
)
def test_rfc_9651_spellings_are_understood(text: str, classes: tuple[str, ...]) -> None:
    assert parse_facts(text).data_classes == classes


def test_a_proposal_needs_a_model() -> None:
    with pytest.raises(InvalidRequestError, match="model is missing"):
        parse_proposal('route="short-chat"')


def test_a_decision_header_is_read_back() -> None:
    text = format_decision(
        decision_id="01-x", verdict="overridden", model="small", reason="duty_unmet"
    )

    assert parse_decision(text) == {
        "id": "01-x",
        "verdict": "overridden",
        "model": "small",
        "reason": "duty_unmet",
    }


def test_a_line_break_cannot_end_a_header_early() -> None:
    with pytest.raises(InvalidRequestError):
        format_proposal(Proposal(model="small\r\nEvil: 1"))
