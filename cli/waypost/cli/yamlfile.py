"""Reads the YAML files that people write, and says of each mistake where it is and what to do.

All mistakes of a file are found in one go. The file is only ever data: no tags, no aliases (so
no bombs and no cycles), numbers as they are written (so no float ever holds a price), and at
most a megabyte.
"""

import re
from collections.abc import Iterable
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeGuard, TypeVar, Union, cast, get_args, get_origin

import yaml
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from waypost.shared.errors import WaypostError

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # a PyYAML built without libyaml; it reads the same, slower
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

__all__ = ["FileError", "FileModel", "Finding", "YAMLFile", "did_you_mean", "read_yaml"]

MAX_FILE_BYTES = 1_048_576
MAX_DEPTH = 32  # the deepest of our own files has 6

Path_ = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_TAG = "tag:yaml.org,2002:"
# What YAML 1.1 reads as these when nobody puts a tag there.
_NULLS = {"", "~", "null"}
_BOOLS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]{0,23})")
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]{0,23}\.[0-9_]{0,24}|[-+]?\.[0-9][0-9_]{0,23}")


class FileModel(BaseModel):
    """Base of what people write: exact types, and no field that nobody reads."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Finding(Struct, frozen=True, kw_only=True):
    """One mistake: ``policy.yaml:14: routes[0].models[1]: there is no model 'smal'; …``.

    ``line`` counts from 1; 0 is the file as a whole.
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class FileError(WaypostError):
    """A file cannot be used as it is written. ``findings`` are in the order of its lines."""

    code = "file_invalid"

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(sorted(findings, key=lambda finding: finding.line))
        super().__init__("\n".join(map(str, self.findings)))


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return the mend for a name that does not exist, to put at the end of a sentence."""
    names = sorted(known)
    close = get_close_matches(wrong, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    if not names:
        return ""
    return f"; there is: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"


class _Place(NamedTuple):
    file: str
    path: Path_
    line: int


class YAMLFile:
    """What a file says, as plain data, with the line of each value.

    Attributes:
        value: dicts, lists, text, bools, ints, and ``Decimal`` where a point is written. Dates
            stay text.
        findings: mistakes so far, for the caller to raise.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: dict[str, Any] = {}
        self.findings: list[Finding] = []
        self._places: dict[Path_, _Place] = {}

    def find(self, path: Path_, message: str, *, line: int | None = None) -> None:
        """Note a mistake at ``path``, in the line where that, or what it is missing from, is."""
        self.findings.append(self.finding(path, message, line=line))

    def finding(self, path: Path_, message: str, *, line: int | None = None) -> Finding:
        """Return what ``find`` would note."""
        known = path
        while known and known not in self._places:
            known = known[:-1]
        place = self._places.get(known, _Place(self.name, (), 1))
        whole = (*place.path, *path[len(known) :])
        shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in whole)
        return Finding(
            file=place.file,
            line=place.line if line is None else line,
            path=shown.removeprefix("."),
            message=message,
        )

    def mark(self, path: Path_, other: "YAMLFile", theirs: Path_) -> None:
        """Have what is found at ``path`` said of the line in ``other`` where ``theirs`` is."""
        if theirs in other._places:
            self._places[path] = other._places[theirs]

    def take(self, path: Path_, other: "YAMLFile", theirs: Path_) -> object:
        """Return what ``other`` says at ``theirs``, to stand at ``path`` here; marks all of it."""
        value: Any = other.value
        for part in theirs:
            value = value[part]
        self._mark_all(path, other, theirs, value)
        return value

    def _mark_all(self, path: Path_, other: "YAMLFile", theirs: Path_, value: object) -> None:
        self.mark(path, other, theirs)
        if isinstance(value, dict):
            for name, inner in cast("dict[str, object]", value).items():
                self._mark_all((*path, name), other, (*theirs, name), inner)
        elif isinstance(value, list):
            for at, inner in enumerate(cast("list[object]", value)):
                self._mark_all((*path, at), other, (*theirs, at), inner)

    def read(self, model: type[M], *, context: object = None) -> M | None:
        """Return the file as ``model``; ``None`` with findings noted if it is not one."""
        try:
            return model.model_validate(self.value, context=context)
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                path = _written(self.value, error)
                self.find(path, _mend(model, path, error))
            return None

    def names(self, section: str) -> set[str]:
        """Return the names in a top-level section, be it a list or a mapping, right or wrong.

        So that a mistake in one definition does not make every mention of it a mistake too.
        """
        found: object = self.value.get(section)
        if isinstance(found, dict | list):
            return {name for name in cast("Iterable[object]", found) if isinstance(name, str)}
        return set()

    def rows(self, section: str) -> list[tuple[int, dict[str, object]]]:
        """Return the entries of a top-level list that are mappings, each with its place."""
        found: object = self.value.get(section)
        rows = cast("list[object]", found) if isinstance(found, list) else []
        return [
            (place, cast("dict[str, object]", row))
            for place, row in enumerate(rows)
            if isinstance(row, dict)
        ]

    def load(self, node: yaml.Node | None) -> None:
        """Take the file's content from its composed form."""
        if node is None:
            self.find((), "the file is empty", line=0)
        elif not isinstance(node, yaml.MappingNode):
            self.find((), "should hold 'name: value' lines")
        else:
            plain = self._plain(node, ())  # nothing, where a tag made it unreadable
            self.value = cast("dict[str, Any]", plain) if isinstance(plain, dict) else {}

    def _plain(self, node: yaml.Node, path: Path_) -> object:
        # A value may begin below its name; the name's line is what people look for.
        self._places.setdefault(path, _Place(self.name, path, node.start_mark.line + 1))
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self._plain(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and tag == "map":
            mapping: dict[str, object] = {}
            for key, value in node.value:
                self._entry(mapping, key, value, path)
            return mapping
        if isinstance(node, yaml.ScalarNode):
            text = cast("str", node.value)
            match tag:
                case "str" | "timestamp" | "value" if not text.isprintable():
                    # Line breaks, control codes for terminals, half a character.
                    self.find(path, "holds characters that cannot be seen; delete them")
                    return None
                case "str" | "timestamp" | "value":
                    return text
                case "null" if text.lower() in _NULLS:
                    return None
                case "bool" if text.lower() in _BOOLS:
                    return _BOOLS[text.lower()]
                case "int" if _INTEGER.fullmatch(text):
                    return int(text.replace("_", ""))
                case "float" if _DECIMAL.fullmatch(text):
                    return Decimal(text.replace("_", ""))
                case "int" | "float":
                    self.find(path, f"write '{text}' as a plain decimal number, or in quotes")
                    return None
                case _:
                    pass
        self.find(path, f"the tag '{tag}' has no meaning here; leave it out")
        return None

    def _entry(
        self, mapping: dict[str, object], key: yaml.Node, value: yaml.Node, path: Path_
    ) -> None:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
            return self.find(path, "a name should be plain text", line=line)
        # As written: a tier may be called 'on', and a model '4'.
        place = (*path, cast("str", key.value))
        if key.tag == f"{_TAG}merge":
            return self.find(place, "merging with '<<' is not supported; write it out", line=line)
        if key.value in mapping:
            first = self._places[place].line
            return self.find(place, f"is here twice, first in line {first}; delete one", line=line)
        self._places[place] = _Place(self.name, place, line)
        mapping[key.value] = self._plain(value, place)
        return None


def read_yaml(path: Path) -> YAMLFile:
    """Return the file at ``path``; a name that is there twice and the like are its findings.

    Raises:
        FileError: it cannot be read, is too large, or is not YAML at all.
    """
    file = YAMLFile(path.name)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        file.find((), f"cannot be read: {exc.strerror or 'unknown reason'}", line=0)
        raise FileError(file.findings) from None
    if len(data) > MAX_FILE_BYTES:
        file.find((), f"is larger than {MAX_FILE_BYTES // 1024} KiB", line=0)
        raise FileError(file.findings)
    try:
        text = data.decode("utf-8-sig")
        _check_shape(file, text)
        file.load(yaml.compose(text, Loader=Loader))
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        file.find((), "is not UTF-8 from here on; save the file as UTF-8", line=line)
    except yaml.MarkedYAMLError as exc:
        # PyYAML spreads some sentences over both: "expected …", "but found …".
        said = [exc.context] if (exc.problem or "but").startswith("but") else []
        problem = ", ".join(filter(None, [*said, exc.problem]))
        message = f"is not YAML: {problem}{_hint(exc)}"
        file.find((), message, line=exc.problem_mark.line + 1 if exc.problem_mark else 0)
    except yaml.YAMLError:
        file.find((), "is not YAML: it holds control characters", line=0)
    else:
        return file
    raise FileError(file.findings)


def _check_shape(file: YAMLFile, text: str) -> None:
    """Refuse what would make composing expensive, on the event stream, which is flat."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.AliasEvent):
            message = f"the alias '*{event.anchor}' is not supported; write it out"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            message = f"is nested deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else ""
        else:
            depth -= isinstance(event, yaml.CollectionEndEvent)
            message = ""
        if message:
            file.find((), message, line=event.start_mark.line + 1 if event.start_mark else 0)
            raise FileError(file.findings)


def _hint(exc: yaml.MarkedYAMLError) -> str:
    if "cannot start any token" in (exc.problem or ""):
        return "; indent with spaces, and put text that begins with @, % or ` in quotes"
    if "mapping values are not allowed" in (exc.problem or ""):
        return "; put text with a colon in quotes, and check the indentation above"
    return ""


_KINDS: dict[type[object], str] = {
    str: "text",
    bool: "yes or no",
    int: "a number",
    Decimal: "a number",
    list: "a list",
    NoneType: "nothing",
}


def _mend(model: type[BaseModel], path: Path_, error: ErrorDetails) -> str:
    """Return what is wrong and what to write instead, for pydantic's standard errors."""
    kind = cast("type[object]", type(error["input"]))
    found = _KINDS.get(kind, "fields")
    match error["type"]:
        case "missing":
            return f"'{path[-1]}' is missing; add it"
        case "extra_forbidden":
            return f"there is no such field{did_you_mean(str(path[-1]), _fields(model, path[:-1]))}"
        case "literal_error" if error.get("ctx", {}).get("expected") == "True":
            return "should be yes; leave the field out where it is not meant"
        case "literal_error":
            expected = error.get("ctx", {}).get("expected", "")
            mend = did_you_mean(str(error["input"]), re.findall(r"'([^']*)'", expected))
            return f"should be {expected}{mend if 'did you mean' in mend else ''}"
        case "string_type" if found in {"a number", "yes or no"}:
            return f"should be text, not {found}; put it in quotes"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"should hold 'name: value' pairs, not {found}"
        case "string_pattern_mismatch":
            return f"should be of the form {error.get('ctx', {}).get('pattern', '')}"
        case "too_short":
            return "should not be empty"
        case name:
            message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            return f"{message}, not {found}" if name.endswith("_type") else message


# The key of a mapping, and the tags of unions, which our models spell so.
_NOT_WRITTEN = ("[key]", "(count)", "(each)")


def _written(value: object, error: ErrorDetails) -> Path_:
    """Return the place of a mistake in terms of the file.

    pydantic also names what nobody wrote: the key of a mapping as such, and which of several
    kinds a value was taken for.
    """
    path: list[str | int] = []
    for part in error["loc"]:
        if isinstance(value, dict) and part in value:
            value = cast("dict[str | int, object]", value)[part]
        elif isinstance(value, list) and isinstance(part, int):
            items = cast("list[object]", value)
            value = items[part] if part < len(items) else None
        elif part in _NOT_WRITTEN:
            continue
        else:
            value = None
        path.append(part)
    return tuple(path)


def _fields(model: type[BaseModel], path: Path_) -> set[str]:
    """Return the fields, as they are written, that there can be at ``path`` below ``model``."""
    kinds: list[object] = [model]
    for part in path:
        kinds = [below for kind in kinds for below in _below(kind, part)]
    return {name for kind in kinds if _is_model(kind) for name in _by_name(kind)}


def _below(kind: object, part: str | int) -> list[object]:
    """Return what ``part`` of a ``kind`` may be."""
    if _is_model(kind):
        field = _by_name(kind).get(str(part))
        return [] if field is None else _kinds(field.annotation)
    # Of list[X] and dict[str, X] it is X that comes next.
    return _kinds(get_args(kind)[-1]) if get_args(kind) else []


def _kinds(annotation: object) -> list[object]:
    """Return the kinds that an annotation stands for: of X | None and Annotated[X, …] it is X."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) for kind in _kinds(each)]
    return [annotation]


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and not get_args(kind) and issubclass(kind, BaseModel)


def _by_name(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields by the names that people write."""
    return {field.alias or name: field for name, field in model.model_fields.items()}
