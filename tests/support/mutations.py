"""Mistakes that people and tools make in a file, by the thousand.

A file's composed YAML is changed at one place (a name misspelt, a value of another kind, a line
twice, a branch put elsewhere), its lines kept; or its text is, before it is YAML at all.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import yaml

try:
    from yaml import CSafeLoader as Loader
except ImportError:
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

Entry: TypeAlias = Any  # a node of a list; of a mapping, its name and its value

__all__ = ["mutated_nodes", "mutated_texts"]

# What stands where something else is meant. As YAML, each.
ODDITIES = (
    """
''|x|auto|free|small|"*"|"[key]"|../x|/etc/passwd|a b|-|é|"\\u202e"|"\\0"|"a\\nb"|"\\e[2J"
0|-1|1|7|1_0|0x1F|0o17|1e9|1.0e+3|.5|-.5|1.|.inf|-.inf|.nan|NaN|sNaN|Infinity|1e999999|1e-999999
2147483648|2147483649|4294967296|9007199254740992|9223372036854775808|18446744073709551616
999999999999999999999999|9999999999999999999999999|0.0000000001|0.1234567890123456789|"1_0"|"٣"
null|~|true|off|2027-01-31|2027-01-31T12:00:00|2027-01-31T12:00:00Z|0001-01-01|9999-12-31
9999-12-31T23:59:59-23:59|0001-01-01T00:00:00+23:59|12:30:45|=|<<|10%|100%|101%|0%|9-17|22-6|mon-fri|fri
Europe/Berlin|Europe|Nowhere/City|../../etc/passwd|https://x.example|http://[|http://x:99999|ftp://x
http://u:p@x.example/?q#f|[]|{}|[[]]|[{}]|[null]|{a: 1}|{a: {}}|{'': x}|[x, x]|[1]|{any: [x]}|{for: 1}
{type: x}|!!python/object:os.system x|!!binary aGk=|!!set {a}|!!omap [a: 1]|!!int abc|!!bool maybe
!!float x|!!null x|!!str 1|!!timestamp x|!!map {}|!!seq []|!x y
""".strip()
    .replace("\n", "|")
    .split("|")
)
NAMES = ["", "x", "fro", "default", "*", "[key]", "<<", "null", "true", "4", "é", "a" * 300, "\0", "a b", "for", "for_", "if", "-1", "0"]  # fmt: skip
PIECES = ["\t", "*a", "&a ", "<<: *a\n", "!!python/object:os.system ", "\0", "\x1b", "%YAML 9.9\n", "---\n", "...\n", "? ", "- ", ": ", "{", "}", "[", "]", '"', "'", "|\n", ">", "@", "`", "#", " ", "  ", "\n", "\r", "\u2028", "\ufeff", "\u0085", "null", ",", "\\", "é", "\U0001f600"]  # fmt: skip


def mutated_nodes(text: str, count: int, *, seed: int) -> Iterator[yaml.Node]:
    """Give the composed file ``count`` times, each time with one mistake in it, or two."""
    rng = random.Random(seed)
    whole = yaml.compose(text, Loader=Loader)
    assert isinstance(whole, yaml.MappingNode)
    odd = [yaml.compose(each, Loader=Loader) for each in ODDITIES]
    places = list(_places(whole))
    for at in range(count):
        # Each place is met as often as any other.
        path = places[at % len(places)]
        made = _changed(whole, path, rng, odd)
        if rng.random() < 0.1 and made.value:
            made = _changed(made, rng.choice(list(_places(made))), rng, odd)
        yield made


def _places(node: Entry, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Give where each value is: the number of its entry, on each level."""
    if isinstance(node, yaml.CollectionNode):
        for at, entry in enumerate(node.value):
            yield (*path, at)
            yield from _places(_value(entry), (*path, at))


def _value(entry: Entry) -> yaml.Node:
    value: yaml.Node = entry[1] if isinstance(entry, tuple) else entry
    return value


def _changed(node: Entry, path: tuple[int, ...], rng: random.Random, odd: list[Entry]) -> Entry:
    """Return ``node`` with a mistake at ``path``; what is not on the way there is shared."""
    entries = list(node.value)
    at, *rest = path
    if rest:
        value = _changed(_value(entries[at]), tuple(rest), rng, odd)
        entries[at] = (entries[at][0], value) if isinstance(entries[at], tuple) else value
    else:
        act = rng.choice(ACTS)
        entries[at : at + 1] = act(entries[at], entries, rng, odd)
    return type(node)(node.tag, entries, node.start_mark, node.end_mark)


def _with_value(entry: Entry, value: Entry) -> Entry:
    return (entry[0], value) if isinstance(entry, tuple) else value


def _moved(node: Entry, to: yaml.Node) -> Entry:
    """Return ``node``, of another file, as if it stood where ``to`` does."""
    value = node.value
    if isinstance(node, yaml.MappingNode):
        value = [(_moved(name, to), _moved(inner, to)) for name, inner in value]
    elif isinstance(node, yaml.SequenceNode):
        value = [_moved(inner, to) for inner in value]
    return type(node)(node.tag, value, to.start_mark, to.end_mark)


def _renamed(entry: Entry, entries: list[Entry], rng: random.Random, _: list[Entry]) -> list[Entry]:
    if not isinstance(entry, tuple):
        return []
    name, value = entry
    text = str(name.value)
    at = rng.randrange(len(text) + 1)
    other = rng.choice([text[:at] + text[at + 1 :], text[:at] + "x" + text[at:], rng.choice(NAMES)])
    tag = "tag:yaml.org,2002:merge" if other == "<<" else name.tag
    return [(yaml.ScalarNode(tag, other, name.start_mark, name.end_mark), value)]


def _dropped(*_: object) -> list[Entry]:
    return []


def _doubled(entry: Entry, *_: object) -> list[Entry]:
    return [entry, entry]


def _odd(entry: Entry, entries: list[Entry], rng: random.Random, odd: list[Entry]) -> list[Entry]:
    return [_with_value(entry, _moved(rng.choice(odd), _value(entry)))]


def _nested(entry: Entry, entries: list[Entry], rng: random.Random, _: list[Entry]) -> list[Entry]:
    value = _value(entry)
    made: Entry = value
    for _level in range(rng.choice([1, 1, 1, 2, 28])):
        if rng.random() < 0.5:
            made = yaml.SequenceNode(
                "tag:yaml.org,2002:seq", [made], value.start_mark, value.end_mark
            )
        else:
            name = yaml.ScalarNode(
                "tag:yaml.org,2002:str", rng.choice(NAMES), value.start_mark, value.end_mark
            )
            made = yaml.MappingNode(
                "tag:yaml.org,2002:map", [(name, made)], value.start_mark, value.end_mark
            )
    return [_with_value(entry, made)]


def _unwrapped(
    entry: Entry, entries: list[Entry], rng: random.Random, _: list[Entry]
) -> list[Entry]:
    value = _value(entry)
    if not isinstance(value, yaml.CollectionNode) or not value.value:
        return []
    return [_with_value(entry, _value(rng.choice(value.value)))]


def _swapped(entry: Entry, entries: list[Entry], rng: random.Random, _: list[Entry]) -> list[Entry]:
    return [_with_value(entry, _value(rng.choice(entries)))]


def _joined(
    entry: Entry, entries: list[Entry], rng: random.Random, odd: list[Entry]
) -> list[Entry]:
    """What belongs one level down, written beside it."""
    value = _value(entry)
    alike = isinstance(value, yaml.CollectionNode) and [
        each for each in value.value if isinstance(each, tuple) == isinstance(entry, tuple)
    ]
    return [entry, rng.choice(alike)] if alike else _odd(entry, entries, rng, odd)


Act = Callable[[Any, list[Entry], random.Random, list[Entry]], list[Entry]]
ACTS: tuple[Act, ...] = (
    _renamed, _renamed, _dropped, _doubled, _odd, _odd, _odd, _odd, _nested, _unwrapped, _swapped, _joined,
)  # fmt: skip


def mutated_texts(text: str, count: int, *, seed: int) -> Iterator[bytes]:
    """Give the text ``count`` times, each time with a slip of the hand in it."""
    rng = random.Random(seed)
    lines = text.splitlines(keepends=True)
    for _ in range(count):
        at, line = rng.randrange(len(text)), rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            yield (text[:at] + rng.choice(PIECES) + text[at:]).encode()
        elif kind == 1:
            yield (text[:at] + rng.choice(PIECES) + text[at + rng.randrange(9) :]).encode()
        elif kind == 2:
            yield text[:at].encode()
        elif kind == 3:
            other = rng.randrange(len(lines))
            made = list(lines)
            made[line], made[other] = made[other], made[line]
            yield "".join(made).encode()
        elif kind == 4:
            indented = rng.choice(
                [" " + lines[line], lines[line][1:], "\t" + lines[line], lines[line] * 2]
            )
            yield "".join([*lines[:line], indented, *lines[line + 1 :]]).encode()
        else:
            yield (
                text[:at].encode()
                + rng.choice([b"\xff", b"\xed\xa0\x80", b"\xc3"])
                + text[at:].encode()
            )
