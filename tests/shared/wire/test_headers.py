"""The Waypost-* headers: what is written is read, and what is malformed is never ignored."""

import contextlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.cli.structured import read_facts, read_proposal
from waypost.shared.contracts import Declared, Proposal
from waypost.shared.errors import InvalidRequestError
from waypost.shared.wire.headers import (
    format_decision,
    format_facts,
    format_proposal,
    parse_decision,
    parse_facts,
    parse_proposal,
)

printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
names = st.lists(printable, max_size=4, unique=True).map(tuple)


def read_by_validator(text: str) -> Declared:
    return read_facts(text.encode("latin-1"))


@given(printable, st.none() | printable, st.none() | printable, st.none() | st.integers(0, 2**31))
def test_a_proposal_survives_the_header(
    model: str, otherwise: str | None, route: str | None, manifest: int | None
) -> None:
    proposal = Proposal(model=model, otherwise=otherwise, route=route, manifest=manifest)

    written = format_proposal(proposal)
    assert parse_proposal(written) == read_proposal(written.encode()) == proposal


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

    written = format_facts(declared)
    assert parse_facts(written) == read_facts(written.encode()) == declared


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_our_own_words(text: str) -> None:
    for parse in (parse_facts, parse_proposal):
        with contextlib.suppress(InvalidRequestError):
            parse(text)
    for read in (read_facts, read_proposal):
        with contextlib.suppress(InvalidRequestError):
            read(text.encode("latin-1", "replace"))


# ── what a client of a later version may say ───────────────────────────────────────────────────

keys = st.from_regex(r"[a-z*][a-z0-9_.*-]{0,5}", fullmatch=True)
tokens = st.from_regex(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]{0,5}", fullmatch=True)
items = st.one_of(
    printable.map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    tokens,
    st.integers(-(10**15) + 1, 10**15 - 1).map(str),
    st.decimals(-999, 999, places=3).map(lambda number: f"{number:f}"),
    st.sampled_from(["?0", "?1"]),
    st.binary(max_size=9).map(lambda octets: f":{b64encode(octets).decode()}:"),
    st.integers(-(10**9), 10**9).map(lambda second: f"@{second}"),
    st.text(max_size=5).map(
        lambda text: (
            '%"' + "".join(f"%{octet:02x}" for octet in text.encode(errors="replace")) + '"'
        )
    ),
)
parameters = st.lists(st.tuples(keys, items), max_size=2).map(
    lambda pairs: "".join(f"; {key}={item}" for key, item in pairs)
)
valued = st.builds(str.__add__, items, parameters)
lists = st.lists(valued, max_size=3).map(lambda inner: f"({' '.join(inner)})")
members = st.lists(
    st.builds(lambda key, value: f"later-{key}={value}", keys, valued | lists)
    | st.builds(lambda key, more: f"later-{key}{more}", keys, parameters),
    max_size=4,
)


@given(members, members, parameters)
def test_what_is_said_besides_is_read_past_and_takes_no_duty_away(
    before: list[str], after: list[str], more: str
) -> None:
    text = ", ".join([*before, f'data=("phi"{more} pii){more}', *after, f"output=20{more}"])
    expected = Declared(data_classes=("phi", "pii"), expected_output_tokens=20)

    assert read_facts(text.encode()) == expected
    assert parse_facts(text) == expected


@given(
    st.lists(
        st.builds(
            lambda key, value: f"{key}={value}",
            st.sampled_from(["data", "task", "output", "interactive"]) | keys,
            valued | lists,
        ),
        max_size=4,
    )
)
def test_client_and_validator_read_the_same(parts: list[str]) -> None:
    text = ", ".join(parts)
    outcomes: list[Declared | str] = []
    for read in (parse_facts, read_by_validator):
        try:
            outcomes.append(read(text))
        except InvalidRequestError as error:
            outcomes.append(error.code)

    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "text",
    ["w=1.5", 'data="phi";w=1.5', "x=:aGk=:", "x=@1659578233", 'x=%"f%c3%bc"', "output=20.0"],
)
def test_numbers_bytes_and_dates_of_later_clients_are_no_error(text: str) -> None:
    assert read_facts(text.encode()) == parse_facts(text)


def test_a_thousand_members_are_read_as_the_rfc_wants() -> None:
    text = ", ".join(f"a{number}" for number in range(600)) + ', data="phi"'
    assert read_facts(text.encode()).data_classes == parse_facts(text).data_classes == ("phi",)


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
    for read in (parse_facts, read_by_validator):
        with pytest.raises(InvalidRequestError) as caught:
            read(text)

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
    assert read_facts(text.encode()).data_classes == classes


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
