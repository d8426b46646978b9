"""A value of each variant that the official SDKs' types of requests have, made by their hints."""

import types
from collections.abc import Iterable, Iterator
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
)

from typing_extensions import TypeAliasType, get_type_hints, is_typeddict

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TEXTS = {
    "data": PNG,
    "file_data": f"data:application/pdf;base64,{PNG}",
    "image_url": f"data:image/png;base64,{PNG}",
    "result": "done",
    "url": "https://a.example/1",
}


def variants(union: Any) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401 - a type
    """Give the type and a whole value of each TypedDict that ``union`` may be, at any depth."""
    for one in _members(union):
        for made in _objects(one):
            yield str(made.get("type", one.__name__)), made


def _members(hint: Any) -> Iterator[Any]:  # noqa: ANN401 - a type
    origin = get_origin(hint)
    if isinstance(hint, TypeAliasType):
        yield from _members(hint.__value__)
    elif origin in (Union, types.UnionType):
        for each in get_args(hint):
            yield from _members(each)
    elif origin in (Annotated, Required, NotRequired):
        yield from _members(get_args(hint)[0])
    elif is_typeddict(hint):
        yield hint


def _objects(kind: Any, depth: int = 0) -> list[dict[str, Any]]:  # noqa: ANN401 - a type
    """Return a value for each alternative of a field, the others as they first come."""
    fields = {name: _values(hint, name, depth + 1) for name, hint in get_type_hints(kind).items()}
    first = {name: values[0] for name, values in fields.items() if values}
    made = [first]
    for name, values in fields.items():
        made += [{**first, name: value} for value in values[1:]]
    return made


def _values(hint: Any, name: str, depth: int) -> list[Any]:  # noqa: ANN401 - a type
    """Return some values of ``hint``; none where it is too deep."""
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeAliasType):
        return _values(hint.__value__, name, depth)
    if origin in (Annotated, Required, NotRequired):
        return _values(args[0], name, depth)
    if origin in (Union, types.UnionType):
        return [value for each in args for value in _values(each, name, depth)]
    if origin is Literal:
        return list(args[:1])
    if is_typeddict(hint):
        return _objects(hint, depth) if depth < 5 else []
    if (
        origin in (list, Iterable)
        or origin is Iterable
        or getattr(origin, "__name__", "")
        in (
            "list",
            "Iterable",
            "Sequence",
        )
    ):
        return [[value] for value in _values(args[0], name, depth)] if args else [[]]
    if origin is dict or hint in (dict, object):
        return [{}]
    plain: dict[Any, list[Any]] = {
        str: [TEXTS.get(name, "x")],
        int: [1],
        float: [1.0],
        bool: [True],
    }
    return plain.get(hint, [])
