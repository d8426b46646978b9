"""The commands around publishing: ``publish``, ``sign``, ``hints publish``.

Thin shells: they read the clock and the terminal, and say what happened.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from waypost.cli.output import fail, print_json
from waypost.edge.commands.common import (
    JSON,
    Directory,
    Draft,
    Out,
    date,
    say,
    secret,
    signers_at_hand,
    write_draft,
)
from waypost.edge.project.project import Project
from waypost.shared.errors import StoreError

if TYPE_CHECKING:
    from waypost.edge.publishing.publish import Published

__all__ = ["To", "deliver_to", "register"]

Channel = Annotated[str, typer.Option(help="Which manifest this becomes.")]
To = Annotated[
    str | None, typer.Option("--to", help="Bring the tree to a folder or s3://bucket/prefix, too.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("publish")(_publish)
    app.command("sign")(_sign)
    hints = typer.Typer(help="What the fleet sees of the models.", no_args_is_help=True)
    hints.command("publish")(_hints_publish)
    hints.callback()(lambda: None)  # one command only, and still by its name
    app.add_typer(hints, name="hints")


def _publish(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Signed copies of one draft, if there is one.")
    ] = None,
    directory: Directory = Path(),
    channel: Channel = "prod",
    draft: Draft = False,
    out: Out = Path("draft.json"),
    to: To = None,
    as_json: JSON = False,
) -> None:
    """Sign policy.yaml and issuers.yaml and publish them to the public folder.

    Where several people sign: --draft writes a file for them, and that file, signed, is
    published by whoever has the online keys.
    """
    from waypost.edge.publishing.draft import decode_draft, encode_draft
    from waypost.edge.publishing.publish import apply_drafts, draft_publication, publish
    from waypost.edge.publishing.signing_keys import ONLINE_ROLES, load_keyring

    project, now = Project(directory), int(time.time())
    if files:
        drafts = [decode_draft(_read(path)) for path in files]
        signers = signers_at_hand(project, ONLINE_ROLES)
        published = list(apply_drafts(project, drafts, signers=signers, now=now).values())
    else:
        hints_keys = load_keyring(project.keys).of("hints")
        if draft:
            made = draft_publication(project, channel=channel, hints_keys=hints_keys, now=now)
            write_draft(out, encode_draft(made))
            return
        signers = signers_at_hand(project, ("targets", *ONLINE_ROLES))
        published = [
            publish(project, channel=channel, signers=signers, hints_keys=hints_keys, now=now)
        ]
    if as_json:
        print_json(published if files else published[0])
    else:
        _tell(published)
    if to is not None:
        deliver_to(project, to, quiet=as_json)


def _tell(published: "list[Published]") -> None:
    if not published:
        say("Published; no channel has a policy that is signed and current yet.")
    for said in published:
        hidden = f", {said.private_models} of them private" if said.private_models else ""
        say(
            f"Published {said.channel} v{said.version}: {said.models} models{hidden}; "
            f"valid until {date(said.expires_at)}, and longer while an edge serves it."
        )


def deliver_to(project: Project, target: str, *, quiet: bool = False) -> None:
    """Bring the public tree to ``target``."""
    from waypost.edge.publishing.deliver import deliver, place_at

    count = deliver(project, place_at(target))
    if not quiet:
        say(f"Brought {count} files to {target}.")


def _sign(
    file: Annotated[Path, typer.Argument(help="The draft; the signature is added to it.")],
    key: Annotated[str, typer.Option(help="A private key file, or a URI that the keyring lists.")],
    directory: Directory = Path(),
    root: Annotated[
        Path | None, typer.Option(help="The root you trust; default: root.json of the project.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the signed copy here instead.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show what a draft says, and sign it with your own key.

    What changes is told against what your root vouches for, never by the draft's own word.
    """
    from waypost.edge.project.atomic_write import write_file
    from waypost.edge.publishing.draft import decode_draft, encode_draft, read_draft, sign_draft
    from waypost.edge.publishing.signing_keys import holder_signer, load_keyring

    project = Project(directory)
    draft = decode_draft(_read(file))
    trusted = root or project.root
    keyring = load_keyring(project.keys) if (project.keys / "keyring.json").exists() else None
    reading = read_draft(
        draft,
        root=_read(trusted) if root or trusted.exists() else None,
        names={entry.keyid: entry.name for entry in keyring.keys} if keyring is not None else {},
    )
    for line in reading.words:
        say(line)
    signer = holder_signer(key, keyring, secrets=secret)
    roles = reading.counts(signer.public_key.keyid)
    if not roles:
        raise StoreError("this draft asks for no signature of that key", code="key_not_asked")
    if not yes and not sys.stdin.isatty():
        fail("nobody is there to agree; read it, then say --yes", exit_code=2)
    if not yes and not typer.confirm(f"Sign {' and '.join(roles)} with {key}?"):
        fail("not signed")
    signed = sign_draft(draft, reading.asked, [signer])
    write_file(out or file, encode_draft(signed), mode=0o600)
    say(f"Signed {' and '.join(roles)} in {out or file}.")


def _hints_publish(
    file: Annotated[
        Path,
        typer.Argument(help='JSON: [{"model": "small", "ttft_ms": 180}, …]; - reads the input.'),
    ],
    directory: Directory = Path(),
    channel: Channel = "prod",
    to: To = None,
    known_only: Annotated[
        bool, typer.Option("--known-only", help="Leave out models that clients do not see.")
    ] = False,
) -> None:
    """Publish what the fleet sees of its models, with the online keys alone.

    Fields: model, ttft_ms, tokens_per_s, health (0 to 100), drain. All but drain is forgotten after
    half a day, so publish anew every few minutes: `waypost decisions hints` writes such a file.
    """
    import msgspec

    from waypost.edge.publishing.publish import publish_hints
    from waypost.edge.publishing.signing_keys import ONLINE_ROLES
    from waypost.shared.contracts import Hint

    project = Project(directory)
    try:
        models = msgspec.json.decode(_read(file), type=tuple[Hint, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise StoreError(f"{file}: {exc}", code="hints_invalid") from None
    signers = signers_at_hand(project, ONLINE_ROLES)
    now = int(time.time())
    hints = publish_hints(
        project, models, channel=channel, signers=signers, now=now, known_only=known_only
    )
    say(f"Published hints v{hints.version} of {channel} on {len(hints.models)} models.")
    if to is not None:
        deliver_to(project, to)


def _read(path: Path) -> bytes:
    if path == Path("-"):
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read {path}: {exc.strerror}") from None
