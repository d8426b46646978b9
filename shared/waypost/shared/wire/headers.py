"""The ``Waypost-*`` headers, as RFC 9651 dictionaries.

``Waypost-Proposal: model="small", otherwise="large", route="short-chat", manifest=42``
``Waypost-Facts: interactive, data="phi", task="classify", tags=("beta" "mobile")``
``Waypost-Decision: id="…", verdict=overridden, model="…", reason="tier_not_allowed"``

Strict: a dropped duty would be a breach, so a header that does not parse is an error, never
ignored. Unknown keys and all parameters are ignored, as the RFC's extension rule wants.

Clients format requests and read answers, which this does without a library; whoever is asked reads
with one (``waypost.cli.structured``), and both agree on what members mean.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from math import ceil

from waypost.shared.contracts import Declared, Proposal, Session
from waypost.shared.errors import InvalidRequestError

__all__ = [
    "DECISION",
    "FACTS",
    "MANIFEST",
    "MAX_HEADER_CHARS",
    "PROPOSAL",
    "Item",
    "Value",
    "facts_of",
    "format_decision",
    "format_facts",
    "format_proposal",
    "malformed",
    "parse_decision",
    "parse_facts",
    "parse_proposal",
    "proposal_of",
]

PROPOSAL = "Waypost-Proposal"
FACTS = "Waypost-Facts"
DECISION = "Waypost-Decision"
MANIFEST = "Waypost-Manifest"

MAX_HEADER_CHARS = 4_096

Item = str | int | bool | Decimal | bytes  # a date is bytes: no member known here is either
Value = Item | tuple[Item, ...]

_KEY = r"[a-z*][a-z0-9_.*-]*"
_STRING = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'
_TOKEN = r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*"  # noqa: S105 - the RFC's word for a symbol
_DISPLAY = r'%"(?:[\x20\x21\x23\x24\x26-\x5b\x5d-\x7e]|\\|%[0-9a-f]{2})*"'
_DECIMAL = r"-?[0-9]{1,12}\.[0-9]{1,3}"
_ITEM = (
    rf"{_STRING}|{_DISPLAY}|{_DECIMAL}|-?[0-9]{{1,15}}|\?[01]|:[A-Za-z0-9+/=]*:"
    rf"|@-?[0-9]{{1,15}}|{_TOKEN}"
)
_PARAMS = rf"(?:;[ ]*{_KEY}(?:=(?:{_ITEM}))?)*"
_MEMBER = re.compile(
    rf"({_KEY})(?:=(?:({_ITEM})|\(([ ]*(?:(?:{_ITEM}){_PARAMS}(?:[ ]+|(?=\))))*)\)))?{_PARAMS}"
)
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_INNER = re.compile(rf"({_ITEM}){_PARAMS}")
_HEX = re.compile(r"%([0-9a-f]{2})")


def _item(text: str) -> Item:
    if text[0] == '"':
        return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if text[0] == "?":
        return text == "?1"
    if text[0] == "%":
        octets = _HEX.sub(lambda match: chr(int(match[1], 16)), text[2:-1])
        return octets.encode("latin-1").decode()
    if text[0] in ":@":
        return text.encode()
    if text[0] == "-" or text[0].isdigit():
        return Decimal(text) if "." in text else int(text)
    return text


def _parse(name: str, text: str) -> dict[str, Value]:
    if len(text) > MAX_HEADER_CHARS:
        raise malformed(name, f"longer than {MAX_HEADER_CHARS} characters")
    text = text.strip(" ")
    members: dict[str, Value] = {}
    position = 0
    while position < len(text):
        match = _MEMBER.match(text, position)
        if match is None:
            raise malformed(name, f"not an RFC 9651 dictionary at character {position}")
        key, item, inner = match.groups()
        try:
            if inner is not None:
                members[key] = tuple(_item(found) for found in _INNER.findall(inner))
            else:
                members[key] = True if item is None else _item(item)
        except UnicodeDecodeError:
            raise malformed(name, f"not an RFC 9651 dictionary at character {position}") from None
        position = match.end()
        if position == len(text):
            break
        comma = _COMMA.match(text, position)
        if comma is None or comma.end() == len(text):
            raise malformed(name, f"not an RFC 9651 dictionary at character {position}")
        position = comma.end()
    return members


def malformed(name: str, why: str) -> InvalidRequestError:
    """Return the error that says what is wrong with the header ``name``."""
    return InvalidRequestError(f"{name}: {why}.", code="header_malformed", param=name)


def _text(name: str, members: Mapping[str, Value], key: str) -> str | None:
    value = members.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise malformed(name, f"{key} must be a string")
    return value


def _texts(name: str, members: Mapping[str, Value], key: str) -> tuple[str, ...]:
    value = members.get(key, ())
    values = value if isinstance(value, tuple) else (value,)
    texts = tuple(item for item in values if isinstance(item, str) and item)
    if len(texts) != len(values):
        raise malformed(name, f"{key} must be a string or a list of strings")
    return texts


def _number(name: str, members: Mapping[str, Value], key: str) -> int | None:
    value = members.get(key)
    if value is None:
        return None
    if not isinstance(value, int | Decimal) or isinstance(value, bool) or value < 0:
        raise malformed(name, f"{key} must be a number, 0 or more")
    return ceil(value)


# The same few headers come with every request of a client, hence the caches.
@lru_cache(maxsize=4_096)
def parse_proposal(text: str) -> Proposal:
    """Return the proposal; raises InvalidRequestError (``header_malformed``)."""
    return proposal_of(_parse(PROPOSAL, text))


def proposal_of(members: Mapping[str, Value]) -> Proposal:
    """Return what the members of a proposal's header say; raises InvalidRequestError."""
    model = _text(PROPOSAL, members, "model")
    if model is None:
        raise malformed(PROPOSAL, "model is missing")
    return Proposal(
        model=model,
        otherwise=_text(PROPOSAL, members, "otherwise"),
        route=_text(PROPOSAL, members, "route"),
        manifest=_number(PROPOSAL, members, "manifest"),
    )


@lru_cache(maxsize=4_096)
def parse_facts(text: str) -> Declared:
    """Return the declared facts; raises InvalidRequestError (``header_malformed``)."""
    return facts_of(_parse(FACTS, text))


def facts_of(members: Mapping[str, Value]) -> Declared:
    """Return what the members of a facts header say; raises InvalidRequestError."""
    interactive = members.get("interactive", True)
    if not isinstance(interactive, bool):
        raise malformed(FACTS, "interactive must be a boolean, as in interactive=?0")
    return Declared(
        interactive=interactive,
        task=_text(FACTS, members, "task"),
        tags=_texts(FACTS, members, "tags"),
        data_classes=_texts(FACTS, members, "data"),
        expected_output_tokens=_number(FACTS, members, "output"),
        session=_session(members),
    )


def _session(members: Mapping[str, Value]) -> Session | None:
    model, cached = _text(FACTS, members, "session"), _number(FACTS, members, "cached")
    return None if model is None or not cached else Session(model, cached)


def parse_decision(text: str) -> dict[str, Value]:
    """Return the members of a ``Waypost-Decision`` header."""
    return _parse(DECISION, text)


def _quote(text: str) -> str:
    # RFC 9651 strings are printable ASCII; anything else could end the header early.
    if not text.isascii() or not text.isprintable():
        raise InvalidRequestError(
            "A header value must be printable ASCII.", code="header_malformed"
        )
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quotes(texts: tuple[str, ...]) -> str:
    return _quote(texts[0]) if len(texts) == 1 else "(" + " ".join(map(_quote, texts)) + ")"


def format_proposal(proposal: Proposal) -> str:
    """Return the header's value."""
    parts = [f"model={_quote(proposal.model)}"]
    if proposal.otherwise is not None:
        parts.append(f"otherwise={_quote(proposal.otherwise)}")
    if proposal.route is not None:
        parts.append(f"route={_quote(proposal.route)}")
    if proposal.manifest is not None:
        parts.append(f"manifest={proposal.manifest}")
    return ", ".join(parts)


def format_facts(declared: Declared) -> str:
    """Return the header's value; empty when nothing is declared beyond the defaults."""
    parts: list[str] = []
    if not declared.interactive:
        parts.append("interactive=?0")
    if declared.data_classes:
        parts.append(f"data={_quotes(declared.data_classes)}")
    if declared.task is not None:
        parts.append(f"task={_quote(declared.task)}")
    if declared.tags:
        parts.append(f"tags={_quotes(declared.tags)}")
    if declared.expected_output_tokens is not None:
        parts.append(f"output={declared.expected_output_tokens}")
    if declared.session is not None:
        parts.append(f"session={_quote(declared.session.model)}")
        parts.append(f"cached={declared.session.cached_tokens}")
    return ", ".join(parts)


def format_decision(*, decision_id: str, verdict: str, model: str | None, reason: str) -> str:
    """Return the header's value. All parts are our own codes and ids, so nothing needs quoting."""
    chosen = f', model="{model}"' if model is not None else ""
    return f'id="{decision_id}", verdict={verdict}{chosen}, reason="{reason}"'
