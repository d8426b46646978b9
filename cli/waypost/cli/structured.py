"""The ``Waypost-*`` headers of a request, read by a whole RFC 9651 parser.

A client of a later version may say more than this one knows: members, parameters, decimals, bytes,
dates. Such are read past; what is known must have its type, as a dropped duty would be a breach.
"""

from datetime import datetime
from functools import lru_cache
from typing import Any, cast

import http_sf
from http_sf import DisplayString, Token

from waypost.shared.contracts import Declared, Proposal
from waypost.shared.wire.headers import FACTS, MAX_HEADER_CHARS, PROPOSAL, Item, Value, malformed
from waypost.shared.wire.headers import facts_of as facts_of_members
from waypost.shared.wire.headers import proposal_of as proposal_of_members

__all__ = ["read_facts", "read_proposal"]


# The same few headers come with every request of a client: a look here takes 0.1 µs, the parser 12.
@lru_cache(maxsize=4_096)
def read_facts(value: bytes) -> Declared:
    """Return the declared facts; raises InvalidRequestError (``header_malformed``)."""
    return facts_of_members(_members(FACTS, value))


@lru_cache(maxsize=4_096)
def read_proposal(value: bytes) -> Proposal:
    """Return the proposal; raises InvalidRequestError (``header_malformed``)."""
    return proposal_of_members(_members(PROPOSAL, value))


def _members(name: str, value: bytes) -> dict[str, Value]:
    if len(value) > MAX_HEADER_CHARS:
        raise malformed(name, f"longer than {MAX_HEADER_CHARS} characters")
    try:
        found = http_sf.parse(value, tltype="dictionary")
    except (ValueError, ArithmeticError):
        # The parser's own words may quote what was sent.
        raise malformed(name, "not an RFC 9651 dictionary") from None
    assert isinstance(found, dict)  # noqa: S101 - as asked for
    return {key: _value(member) for key, member in found.items()}


def _value(member: Any) -> Value:  # noqa: ANN401 - the parser's, which has a type per shape
    """Return a member without its parameters: it comes with them, and so do items of a list."""
    if not isinstance(member[0], list):
        return _item(member[0])
    inner: list[tuple[object, object]] = member[0]
    return tuple(_item(item) for item, _ in inner)


def _item(bare: object) -> Item:
    if isinstance(bare, Token | DisplayString):
        return str(bare)
    if isinstance(bare, datetime):
        return bare.isoformat().encode()  # of no type that a member known here has
    return cast(Item, bare)
