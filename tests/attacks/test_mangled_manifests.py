"""Whatever is done to a bundle's bytes, it is refused or it still says what was signed."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.publisher import Publisher
from waypost.shared.errors import TrustError
from waypost.shared.trust import open_bundle
from waypost.shared.trust.bundle import pack_bundle, unpack_bundle

PUBLISHER = Publisher()
FIRST = PUBLISHER.publish()
BUNDLE = PUBLISHER.publish()
FILES = unpack_bundle(BUNDLE)
TRUE = open_bundle(BUNDLE, root=PUBLISHER.root, channel="prod")

names = st.sampled_from(sorted(FILES))
oddities: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 2**63, 1.5, "", "\x00", "é", [], {}, [[]], "2100-01-01T00:00:00Z", "root"]
)


def check(bundle: bytes) -> None:
    try:
        opened = open_bundle(bundle, root=PUBLISHER.root, channel="prod", previous=FIRST)
    except TrustError:
        return
    assert opened.policy_bytes == TRUE.policy_bytes
    assert opened.issuers == TRUE.issuers
    assert opened.expires_at == TRUE.expires_at
    assert opened.versions.items() <= TRUE.versions.items()


@given(names, st.integers(0, 10_000), st.integers(0, 5), st.text(max_size=5))
def test_text_replaced_anywhere(name: str, at: int, length: int, text: str) -> None:
    before = FILES[name]
    at %= len(before)
    check(pack_bundle({**FILES, name: before[:at] + text + before[at + length :]}))


@given(names, st.data())
def test_a_value_replaced_anywhere(name: str, data: st.DataObject) -> None:
    document = json.loads(FILES[name])
    node: Any = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(oddities)
    check(pack_bundle({**FILES, name: json.dumps(document)}))


@given(st.dictionaries(names, names, min_size=1, max_size=4), st.sets(names, max_size=3))
def test_files_exchanged_and_dropped(exchanged: dict[str, str], dropped: set[str]) -> None:
    files = {**FILES, **{name: FILES[other] for name, other in exchanged.items()}}
    check(pack_bundle({name: text for name, text in files.items() if name not in dropped}))


@given(st.integers(0, len(BUNDLE) - 1), st.integers(0, 255))
def test_one_byte_of_the_bundle_changed(at: int, byte: int) -> None:
    check(BUNDLE[:at] + bytes([byte]) + BUNDLE[at + 1 :])
