"""Policies that stand on others: ``extends: base.yaml``, joined before anything is checked.

The file on top is laid over its base entry by entry, by name. What it may not do is take back
what the base demands: duties of a class of data add up, and so do invariants. Each finding
still names the file and line that somebody wrote.
"""

from pathlib import Path
from typing import Any, cast

from waypost.cli.yamlfile import FileError, YAMLFile, read_yaml

__all__ = ["beside", "read_layers"]

MAX_LAYERS = 8

# Entries of these take over from the base field by field; of others as a whole.
BY_FIELD = ("endpoints", "models", "providers")
BY_ROW = ("invariants", "routes")

Where = tuple[str | int, ...]
Source = tuple[YAMLFile, Where]


def read_layers(path: Path) -> YAMLFile:
    """Return the policy file at ``path``, laid over those that it extends.

    Raises:
        FileError: one of the files cannot be read, or they extend each other in a circle.
    """
    return _read(path, above=())


def beside(folder: Path, name: object) -> Path:
    """Return the file ``name`` in ``folder``; raises ValueError if it is somewhere else."""
    if not isinstance(name, str) or not name or "/" in name or "\\" in name or name in {".", ".."}:
        raise ValueError("should be the name of a file in the same folder")
    path = folder / name
    # A policy from elsewhere must not read, and quote in a message, what is not part of it.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("is a link out of this folder; put the file itself here")
    return path


def _read(path: Path, above: tuple[Path, ...]) -> YAMLFile:
    top = read_yaml(path)
    if "extends" not in top.value:
        return top
    above = (*above, path)
    try:
        below = beside(path.parent, top.value["extends"])
        if below in above:
            names = " → ".join(each.name for each in (*above, below))
            raise ValueError(f"goes round in a circle ({names}); take one of them out")
        if not below.is_file():
            raise ValueError(f"there is no file '{below.name}' in this folder; correct the name")
        if len(above) == MAX_LAYERS:
            raise ValueError(f"is more than {MAX_LAYERS} files deep")
    except ValueError as exc:
        top.find(("extends",), str(exc))
        raise FileError(top.findings) from None
    return _laid_over(top, _read(below, above))


def _laid_over(top: YAMLFile, base: YAMLFile) -> YAMLFile:
    made = YAMLFile(top.name)
    made.findings = [*base.findings, *top.findings]
    for section in dict.fromkeys((*base.value, *top.value)):
        mine, theirs = top.value.get(section), base.value.get(section)
        path = (section,)
        made.mark(path, top if section in top.value else base, path)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            made.value[section] = _by_name(made, section, top, base)
        elif section in BY_ROW and isinstance(mine, list) and isinstance(theirs, list):
            made.value[section] = _rows(made, section, top, base)
        else:
            made.value[section] = made.take(path, top if section in top.value else base, path)
    return made


def _by_name(made: YAMLFile, section: str, top: YAMLFile, base: YAMLFile) -> dict[str, object]:
    mine = cast("dict[str, object]", top.value[section])
    theirs = cast("dict[str, object]", base.value[section])
    entries: dict[str, object] = {}
    for name in dict.fromkeys((*theirs, *mine)):
        path = (section, name)
        over, under = mine.get(name), theirs.get(name)
        if section in BY_FIELD and isinstance(over, dict) and isinstance(under, dict):
            entries[name] = _fields(made, path, (top, path), (base, path))
        elif section == "data_classes" and isinstance(over, list) and isinstance(under, list):
            entries[name] = _duties(made, name, top, base)
        else:
            entries[name] = made.take(path, top if name in mine else base, path)
    return entries


def _duties(made: YAMLFile, data_class: str, top: YAMLFile, base: YAMLFile) -> list[object]:
    """Return the duties of both, the base's first."""
    path = ("data_classes", data_class)
    over: list[object] = top.value["data_classes"][data_class]
    under: list[object] = base.value["data_classes"][data_class]
    made.mark(path, top, path)
    duties = [(base, place) for place in range(len(under))]
    duties += [(top, place) for place, duty in enumerate(over) if duty not in under]
    return [made.take((*path, at), file, (*path, place)) for at, (file, place) in enumerate(duties)]


def _rows(made: YAMLFile, section: str, top: YAMLFile, base: YAMLFile) -> list[object]:
    """Return the rows of both: new ones first, the others where the base has them."""
    theirs = {_name(row): place for place, row in base.rows(section)}
    mine = {_name(row): place for place, row in top.rows(section)}
    mine.pop(None, None)
    replaced = {place for name, place in mine.items() if name in theirs}
    order = [(top, at) for at in range(_count(top, section)) if at not in replaced]
    order += [(base, at) for at in range(_count(base, section))]
    rows: list[object] = []
    for at, (file, place) in enumerate(order):
        on_top = mine.get(_name(file.value[section][place])) if file is base else None
        if on_top is None:
            rows.append(made.take((section, at), file, (section, place)))
            continue
        over, under = (section, on_top), (section, place)
        if section == "invariants":
            taken_back = (
                f"{base.name} has an invariant of this name, which nothing on top of it can take"
                " back; give this one another"
            )
            made.findings.append(top.finding((*over, "name"), taken_back))
        rows.append(_fields(made, (section, at), (top, over), (base, under)))
    return rows


def _fields(made: YAMLFile, path: Where, over: Source, under: Source) -> dict[str, object]:
    """Return an entry of which each field is the upper one's, if it has that, else the lower's."""
    made.mark(path, *over)
    fields: dict[str, object] = {}
    for file, place in (over, under):
        entry: Any = file.value
        for part in place:
            entry = entry[part]
        for field in entry:
            if field not in fields:
                fields[field] = made.take((*path, field), file, (*place, field))
    return fields


def _name(row: object) -> str | None:
    name = cast("dict[str, object]", row).get("name") if isinstance(row, dict) else None
    return name if isinstance(name, str) else None


def _count(file: YAMLFile, section: str) -> int:
    return len(cast("list[object]", file.value[section]))
