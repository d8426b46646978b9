"""The commands around signing keys: ``waypost keys``.

Thin shells: they read the clock and the terminal, and say what happened.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from waypost.cli.output import console, fail, print_json, table
from waypost.edge.commands.common import (
    JSON,
    Directory,
    Draft,
    Out,
    new_passphrase,
    say,
    secret,
    signers_at_hand,
    write_draft,
)
from waypost.edge.project.project import Project
from waypost.shared.errors import StoreError

if TYPE_CHECKING:
    from waypost.edge.publishing.publish import RoleKeys
    from waypost.edge.publishing.repository import KeyChange
    from waypost.edge.publishing.signing_keys import KeyEntry, Keyring

__all__ = ["commands"]

commands = typer.Typer(help="Signing keys.", no_args_is_help=True)

Role = Annotated[str, typer.Option(help="root, targets, hints, snapshot or timestamp.")]
GivenKey = Annotated[
    str | None,
    typer.Option("--key", help="A holder's public half (PEM), or a URI such as hsm:2."),
]
Public = Annotated[
    Path | None, typer.Option(help="The public half (PEM) of a key given by its URI.")
]
Threshold = Annotated[int | None, typer.Option(min=1, help="How many must sign from now on.")]
NoPassphrase = Annotated[
    bool, typer.Option("--no-passphrase", help="Leave the keys readable on disk.")
]

OUT = Path("draft.json")

# Broken means: clients leave the choice to the validator, which serves on within its grace.
BREAKS = {
    "root": "all trust",
    "targets": "the manifest",
    "hints": "nothing",
    "snapshot": "the manifest",
    "timestamp": "the manifest",
}


@commands.command("new")
def _new(
    directory: Directory = Path(),
    no_passphrase: NoPassphrase = False,
    key: Annotated[
        list[str] | None,
        typer.Option(help="ROLE=FILE.pub or ROLE=URI: a key that exists; may repeat."),
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="ROLE=N: how many must sign; may repeat.")
    ] = None,
    out: Out = OUT,
    as_json: JSON = False,
) -> None:
    """Make the signing keys and the trust root that clients ship with.

    The keys are encrypted with a passphrase, asked for or taken from WAYPOST_KEY_PASSPHRASE.
    Where holders bring keys of their own for the root, they sign it: it is written as a draft.
    """
    from waypost.edge.publishing.draft import encode_draft
    from waypost.edge.publishing.publish import draft_root
    from waypost.edge.publishing.signing_keys import create_keys, given_key

    project, now = Project(directory), int(time.time())
    held = [
        given_key(given, role=role, public=None, now=now, secrets=secret)
        for role, given in map(_assigned, key or ())
    ]
    thresholds = {role: _number(count) for role, count in map(_assigned, threshold or ())}
    passphrase = None if no_passphrase else new_passphrase(mend=", or say --no-passphrase")
    keyring = create_keys(project, passphrase=passphrase, now=now, held=held, thresholds=thresholds)
    made = len(keyring.keys) - len(held)
    if not project.root.exists():
        draft = draft_root(project, keyring, thresholds=thresholds, now=now)
        say(f"Made {made} keys in {project.keys} and listed {len(held)} of others.")
        write_draft(out, encode_draft(draft))
        return
    if as_json:
        print_json({"root": str(project.root), "keys": _rows(project, keyring)})
        return
    say(f"Made {made} keys in {project.keys}.")
    say(f"Ship {project.root} with clients and validators: their trust starts there.")
    if no_passphrase:
        say("The keys are not encrypted. Guard them, or make new ones for production.")


@commands.command("make")
def _make(
    name: Annotated[str, typer.Argument(help="Of the key; files are named by it.")],
    no_passphrase: NoPassphrase = False,
) -> None:
    """Make one key that never leaves its holder: NAME.p12 to keep, NAME.pub to hand out."""
    from waypost.edge.project.atomic_write import write_file
    from waypost.edge.publishing.signing_keys import make_key, public_pem

    path = Path(name)
    passphrase = None if no_passphrase else new_passphrase(mend=", or say --no-passphrase")
    entry = make_key(path.parent, path.name, role="", passphrase=passphrase, now=int(time.time()))
    write_file(path.with_name(f"{path.name}.pub"), public_pem(entry))
    say(f"Keep {path.parent / entry.uri.removeprefix('file:')}; hand out {path}.pub.")


@commands.command("list")
def _list(directory: Directory = Path(), as_json: JSON = False) -> None:
    """Show each key: its role, its age, when what it signed lapses, and what then breaks."""
    from waypost.edge.publishing.signing_keys import load_keyring

    project = Project(directory)
    rows = _rows(project, load_keyring(project.keys))
    if as_json:
        lapses = {str(row["role"]): row["expires_at"] for row in rows if row["in_use"]}
        print_json({"keys": rows, "expires_at": lapses})
        return
    now = time.time()
    console.print(
        table(
            ("key", "signs", "age", "held", "lapses in", "then breaks", "id"),
            [
                (
                    row["name"],
                    f"{row['role']}, {row['threshold']} of {row['keys']}"
                    if row["in_use"]
                    else f"{row['role']}, not in use",
                    _span(now - row["created_at"]) if row["created_at"] else "?",
                    row["held"],
                    _span(row["expires_at"] - now) if row["expires_at"] else "never signed",
                    row["then_breaks"],
                    row["keyid"][:8],
                )
                for row in rows
            ],
        )
    )


def _span(seconds: float) -> str:
    """``2 d`` or ``6 h``; ``lapsed`` for what is over."""
    if seconds < 0:
        return "lapsed"
    return f"{seconds / 86_400:.0f} d" if seconds >= 2 * 86_400 else f"{seconds / 3_600:.0f} h"


@commands.command("add")
def _add(
    role: Role,
    directory: Directory = Path(),
    key: GivenKey = None,
    public: Public = None,
    threshold: Threshold = None,
    draft: Draft = False,
    out: Out = OUT,
) -> None:
    """Let one more key sign for a role; without --key, one that is made here."""
    from waypost.edge.publishing.repository import KeyChange

    project, keyring = _opened(directory, role)
    entry = _new_key(project, keyring, role, key, public)
    change = KeyChange(role=role, add=(entry.key,), threshold=threshold)
    _carry_out(project, [entry], [change], out if draft else None)


@commands.command("rotate")
def _rotate(
    role: Role,
    directory: Directory = Path(),
    key: GivenKey = None,
    public: Public = None,
    old: Annotated[str | None, typer.Option(help="Name or id of the key to replace.")] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Take out the keys that were replaced.")
    ] = False,
    emergency: Annotated[
        bool, typer.Option("--emergency", help="The old key is stolen: take it out at once.")
    ] = False,
    draft: Draft = False,
    out: Out = OUT,
) -> None:
    """Replace a key: old and new sign side by side until you say --finish.

    Give caches an hour in between. A key of the root is replaced in one step, since each root
    is signed by the holders of the one before it.
    """
    from waypost.edge.publishing.repository import KeyChange

    project, keyring = _opened(directory, role)
    if finish:
        gone = _replaced(project, keyring, role)
        change = KeyChange(role=role, remove=gone)
        _carry_out(project, [], [change], out if draft else None)
        return
    going = _one_of(project, keyring, role, old)
    entry = _new_key(project, keyring, role, key, public, replaces=going)
    remove = (going,) if emergency or role == "root" else ()
    changes = [KeyChange(role=role, add=(entry.key,), remove=remove)]
    made = [entry]
    if emergency and role != "root":
        made += _replace_online(project, keyring, changes)
    _carry_out(project, made, changes, out if draft else None)
    if not remove and not draft:
        say(f"In an hour, when caches have turned over: waypost keys rotate --role {role} --finish")


@commands.command("revoke")
def _revoke(
    keys: Annotated[list[str], typer.Argument(help="Names or ids of stolen keys.")],
    directory: Directory = Path(),
    draft: Draft = False,
    out: Out = OUT,
) -> None:
    """Take stolen keys out at once; a new one is made here where too few would be left.

    The keys of snapshot and timestamp are replaced with them: that lets clients forget versions
    that a thief drove up.
    """
    from waypost.edge.publishing.publish import role_keys
    from waypost.edge.publishing.repository import KeyChange

    project, keyring = _opened(directory, None)
    stolen = {_keyid(project, keyring, name) for name in keys}
    changes: list[KeyChange] = []
    made: list[KeyEntry] = []
    for signs in role_keys(project):
        gone = tuple(keyid for keyid in signs.keyids if keyid in stolen)
        if not gone:
            continue
        add: tuple[KeyEntry, ...] = ()
        if len(signs.keyids) - len(gone) < signs.threshold and signs.role != "root":
            add = (_new_key(project, keyring, signs.role, None, None),)
        made += add
        changes.append(
            KeyChange(role=signs.role, add=tuple(entry.key for entry in add), remove=gone)
        )
    if {change.role for change in changes} - {"root"}:
        made += _replace_online(project, keyring, changes)
    _carry_out(project, made, changes, out if draft else None)


# ── parts ──────────────────────────────────────────────────────────────────────────────────────


def _carry_out(
    project: Project,
    made: "Sequence[KeyEntry]",
    changes: "Sequence[KeyChange]",
    draft: Path | None,
) -> None:
    """Make other keys count, or write the draft of it; if that fails, no key was made."""
    from waypost.edge.publishing.draft import encode_draft
    from waypost.edge.publishing.publish import change_keys, draft_key_changes
    from waypost.edge.publishing.repository import ROLES
    from waypost.edge.publishing.signing_keys import forget_keys, list_key

    now = int(time.time())
    listed: list[KeyEntry] = []
    try:
        for entry in made:
            list_key(project.keys, entry)
            listed.append(entry)
        if draft is not None:
            write_draft(draft, encode_draft(draft_key_changes(project, changes, now=now)))
            return
        change_keys(project, changes, signers=signers_at_hand(project, ROLES), now=now)
    except BaseException:
        forget_keys(project.keys, [entry.keyid for entry in listed])
        for entry in made:
            if entry.uri.startswith("file:"):
                (project.keys / entry.uri.removeprefix("file:")).unlink(missing_ok=True)
        raise
    for change in changes:
        for key in change.add:
            say(f"{change.role}: key {key.keyid[:8]} signs from now on.")
        for keyid in change.remove:
            say(f"{change.role}: key {keyid[:8]} no longer counts; destroy its private half.")
    if any(change.role != "hints" for change in changes):
        say(f"Ship the new {project.root} with new clients; those out there follow by themselves.")


def _new_key(
    project: Project,
    keyring: "Keyring",
    role: str,
    key: str | None,
    public: Path | None,
    *,
    replaces: str = "",
) -> "KeyEntry":
    from msgspec.structs import replace

    from waypost.edge.publishing.signing_keys import given_key, make_key

    now = int(time.time())
    if key is not None:
        pem = public.read_bytes() if public is not None else None
        entry = given_key(key, role=role, public=pem, now=now, secrets=secret)
    else:
        files = [entry.uri for entry in keyring.keys if entry.uri.startswith("file:")]
        readable = files and not any(uri.endswith(".p12") for uri in files)
        place = 1
        while keyring.named(f"{role}-{place}") or any(project.keys.glob(f"{role}-{place}.*")):
            place += 1
        entry = make_key(
            project.keys,
            f"{role}-{place}",
            role=role,
            passphrase=None if readable else new_passphrase(),
            now=now,
        )
    return replace(entry, replaces=replaces)


def _replace_online(
    project: Project, keyring: "Keyring", changes: "list[KeyChange]"
) -> "list[KeyEntry]":
    """Add to ``changes`` what replaces the keys of snapshot and timestamp; return the new ones.

    TUF specification 5.3.11: only other keys there make a client forget the versions it has seen.
    """
    from waypost.edge.publishing.publish import role_keys
    from waypost.edge.publishing.repository import KeyChange

    made: list[KeyEntry] = []
    done = {change.role for change in changes if change.add}
    for signs in role_keys(project):
        if signs.role in ("snapshot", "timestamp") and signs.role not in done:
            entry = _new_key(project, keyring, signs.role, None, None)
            made.append(entry)
            changes[:] = [change for change in changes if change.role != signs.role]
            changes.append(KeyChange(role=signs.role, add=(entry.key,), remove=signs.keyids))
    return made


def _opened(directory: Path, role: str | None) -> "tuple[Project, Keyring]":
    from waypost.edge.publishing.signing_keys import load_keyring

    if role is not None and role not in BREAKS:
        fail(f"there is no role '{role}'; there is: {', '.join(BREAKS)}", exit_code=2)
    project = Project(directory)
    return project, load_keyring(project.keys)


def _one_of(project: Project, keyring: "Keyring", role: str, name: str | None) -> str:
    """Return the id of the key to replace: the one named, or the role's only one."""
    from waypost.edge.publishing.publish import role_keys

    signing = {signs.role: signs.keyids for signs in role_keys(project)}.get(role, ())
    if name is not None:
        keyid = _keyid(project, keyring, name)
        if keyid in signing:
            return keyid
        raise StoreError(f"{name} does not sign for {role}", code="key_unknown")
    if len(signing) == 1:
        return signing[0]
    if not signing:
        raise StoreError(f"nobody signs for {role} yet; publish first", code="nothing_published")
    fail(f"{role} has {len(signing)} keys; say which to replace: --old NAME", exit_code=2)


def _replaced(project: Project, keyring: "Keyring", role: str) -> tuple[str, ...]:
    from waypost.edge.publishing.publish import role_keys

    signing = {
        keyid for signs in role_keys(project) if signs.role == role for keyid in signs.keyids
    }
    gone = {entry.replaces for entry in keyring.keys if entry.keyid in signing} & signing
    if not gone:
        raise StoreError(f"no key of {role} has been replaced", code="key_unknown")
    return tuple(sorted(gone))


def _keyid(project: Project, keyring: "Keyring", name: str) -> str:
    from waypost.edge.publishing.publish import role_keys

    entry = keyring.named(name)
    if entry is not None:
        return entry.keyid
    for signs in role_keys(project):
        for keyid in signs.keyids:
            if len(name) >= 8 and keyid.startswith(name):
                return keyid
    raise StoreError(f"there is no key '{name}'; see: waypost keys list", code="key_unknown")


def _assigned(text: str) -> tuple[str, str]:
    role, equals, value = text.partition("=")
    if not equals or role not in BREAKS:
        fail(f"'{text}' is not ROLE=…; roles are: {', '.join(BREAKS)}", exit_code=2)
    return role, value


def _number(text: str) -> int:
    if not text.isdecimal():
        fail(f"'{text}' is not a number", exit_code=2)
    return int(text)


def _rows(project: Project, keyring: "Keyring") -> list[dict[str, Any]]:
    """Return all keys that count, whoever holds them, and those listed that do not."""
    from waypost.edge.publishing.publish import role_keys

    known = {entry.keyid: entry for entry in keyring.keys}
    roles = role_keys(project)
    rows = [
        _row(project, signs.role, keyid, known.get(keyid), signs)
        for signs in roles
        for keyid in signs.keyids
    ]
    counting = {keyid for signs in roles for keyid in signs.keyids}
    for entry in keyring.keys:
        if entry.keyid not in counting:
            rows.append(_row(project, entry.role, entry.keyid, entry, None))
    return rows


def _row(
    project: Project, role: str, keyid: str, entry: "KeyEntry | None", signs: "RoleKeys | None"
) -> dict[str, Any]:
    return {
        "name": entry.name if entry is not None else keyid[:8],
        "role": role,
        "keyid": keyid,
        "created_at": entry.created_at if entry is not None else None,
        "held": _held(project, entry.uri if entry is not None else ""),
        "in_use": signs is not None,
        "threshold": signs.threshold if signs is not None else None,
        "keys": len(signs.keyids) if signs is not None else None,
        "expires_at": signs.expires_at if signs is not None else None,
        "replaces": entry.replaces if entry is not None else "",
        "then_breaks": BREAKS[role] if signs is not None else "nothing",
    }


def _held(project: Project, uri: str) -> str:
    scheme, _, name = uri.partition(":")
    if scheme == "file":
        return "here" if (project.keys / name).exists() else "elsewhere"
    return scheme or "elsewhere"
