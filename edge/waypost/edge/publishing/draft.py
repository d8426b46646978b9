"""Drafts: what has to be signed by people, as one file that travels between them.

A draft holds unsigned metadata (a root, targets) and the documents it names, and beside it what
is published now, so that a holder sees the difference. It carries no trust: a holder judges it
from a root of their own, and the publisher from the tree. Pure; keys arrive as arguments.
"""

# tuf spells __all__ as Class.__name__, which no type checker reads.
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (
    Metadata,
    Root,
    RootVerificationResult,
    Targets,
    VerificationResult,
)
from tuf.api.serialization import DeserializationError

from waypost.edge.publishing.repository import OFFLINE, ManifestRepository, metadata_path
from waypost.shared.errors import StoreError, TrustError
from waypost.shared.trust.bundle import check_files

__all__ = [
    "Draft",
    "Reading",
    "Result",
    "decode_draft",
    "encode_draft",
    "make_draft",
    "merge_drafts",
    "read_draft",
    "sign_draft",
    "signatures",
]

MAX_DRAFT_BYTES = 16 * 2**20  # four bundles of the largest size
METADATA = "metadata/"

Result = VerificationResult | RootVerificationResult


class Draft(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be published once enough people have signed.

    Attributes:
        files: repository path → text; metadata with the signatures it has so far.
        base: what is published now, likewise; the newest roots, oldest first.
    """

    format: Literal["waypost-draft/1"]
    files: dict[str, str]
    base: dict[str, str]


_decode = msgspec.json.Decoder(Draft).decode


def encode_draft(draft: Draft) -> bytes:
    """Return the file's bytes."""
    return msgspec.json.format(msgspec.json.encode(draft), indent=1)


def decode_draft(data: bytes) -> Draft:
    """Return the draft in a file, nothing of it judged but its form.

    Raises:
        StoreError: ``draft_invalid``.
    """
    if len(data) > MAX_DRAFT_BYTES:
        raise _invalid(f"has {len(data)} bytes, at most {MAX_DRAFT_BYTES} are read")
    try:
        draft = _decode(data)
        for path, text in (*draft.files.items(), *draft.base.items()):
            check_files({path: text})
            # Or a file that nothing names would be published over one that something does.
            if path.startswith("targets/") and sha256(text.encode()).hexdigest() not in path:
                raise _invalid(f"holds another {path} than its name says")
        unsigned = set(_metadata(draft.files))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TrustError) as exc:
        raise _invalid(f"is no draft: {exc}") from exc
    if not unsigned or unsigned - set(OFFLINE):
        raise _invalid(f"wants signatures for {sorted(unsigned)}, which people do not give")
    return draft


def make_draft(repository: ManifestRepository) -> Draft:
    """Return what ``repository`` made, unsigned, beside what it was read from."""
    published = ManifestRepository(repository.published, {}, now=0)
    paths = published.root_paths()
    for role, at_hand in (("targets", published.has("targets")), ("full", published.has_full())):
        if at_hand:
            paths.append(metadata_path(role, published.version(role)))
            for path in published.targets(role).targets:
                paths.append(published.target_place(role, path) or "")
    base = {path: published.published(path) for path in paths}
    return Draft(
        format="waypost-draft/1",
        files={path: data.decode() for path, data in repository.written.items()},
        base={path: data.decode() for path, data in base.items() if data is not None},
    )


def merge_drafts(drafts: Sequence[Draft]) -> Draft:
    """Return one draft with the signatures of all copies.

    Raises:
        StoreError: ``draft_mismatch``: they are not copies of one draft.
    """
    first, *others = drafts
    merged = _metadata(first.files)
    for other in others:
        theirs = _metadata(other.files)
        if {**other.files, **_texts(merged)} != {**first.files, **_texts(merged)}:
            raise _mismatch()
        for role, md in merged.items():
            if role not in theirs or theirs[role].signed_bytes != md.signed_bytes:
                raise _mismatch()
            md.signatures.update(theirs[role].signatures)
    return msgspec.structs.replace(first, files={**first.files, **_texts(merged)})


def signatures(
    files: Mapping[str, str], *, root: Root | None, targets: Targets | None
) -> dict[str, Result]:
    """Return, for each role in ``files``, whose signatures count and which of them are there.

    Args:
        root: the one in force; ``None`` before the first.
        targets: likewise.

    Raises:
        StoreError: ``draft_stale``: a version does not follow the one in force.
    """
    found = _metadata(files)
    new_root = found["root"].signed if "root" in found else root
    new_targets = found["targets"].signed if "targets" in found else targets
    results: dict[str, Result] = {}
    for role, md in found.items():
        payload, given = md.signed_bytes, md.signatures
        try:
            if role == "root":
                results[role] = md.signed.get_root_verification_result(root, payload, given)
                continue
            judge = new_root if role == "targets" else new_targets
            if judge is None:
                raise ValueError("nothing delegates to it")
            results[role] = judge.get_verification_result(role, payload, given)
        except ValueError as exc:
            raise StoreError(f"the draft's {role} does not fit: {exc}", code="draft_stale") from exc
    return results


def sign_draft(draft: Draft, asked: Mapping[str, Result], signers: Iterable[Signer]) -> Draft:
    """Return the draft with the signatures of ``signers``, each where it counts.

    Raises:
        StoreError: ``key_unusable``: a key could not sign.
    """
    held = list(signers)
    found = _metadata(draft.files)
    for role, md in found.items():
        counts = {**asked[role].signed, **asked[role].unsigned}
        for signer in held:
            keyid = signer.public_key.keyid
            if keyid not in counts:
                continue
            try:
                md.sign(signer, append=True)
                counts[keyid].verify_signature(md.signatures[keyid], md.signed_bytes)
            except Exception as exc:  # each kind of store has errors of its own
                cause = exc.__cause__ or exc if isinstance(exc, UnsignedMetadataError) else exc
                raise StoreError(
                    f"key {keyid[:8]} did not sign: {cause or type(cause).__name__}",
                    code="key_unusable",
                ) from None
    return msgspec.structs.replace(draft, files={**draft.files, **_texts(found)})


# ── what a holder is told ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A draft whose base was verified from a root of one's own.

    Attributes:
        words: what signing it says, line by line; text from the draft, so print it as such.
        asked: by role, whose signatures count and which are there.
    """

    words: tuple[str, ...]
    asked: dict[str, Result]

    def counts(self, keyid: str) -> list[str]:
        """Return the roles for which a signature of this key is asked."""
        return [
            role
            for role, result in self.asked.items()
            if keyid in result.signed or keyid in result.unsigned
        ]


def read_draft(
    draft: Draft, *, root: bytes | None, names: Mapping[str, str] | None = None
) -> Reading:
    """Return what signing ``draft`` means, if all of it can be said.

    Expiry plays no part: the base shows what changed, and is not acted upon.

    Args:
        root: TUF root metadata that the holder trusts; ``None`` for the very first root.
        names: key id → what the holder calls that key.

    Raises:
        StoreError: ``draft_invalid``, ``draft_stale``.
        TrustError: ``signature``, ``integrity``: the base is not what was published.
    """
    base = _verified_base(draft, root)
    found = _metadata(draft.files)
    old_root = base["root"].signed if "root" in base else None
    old_targets = base["targets"].signed if "targets" in base else None
    asked = signatures(draft.files, root=old_root, targets=old_targets)
    words: list[str] = []
    for role in OFFLINE:
        if role not in found:
            continue
        new = found[role].signed
        old = base[role].signed if role in base else None
        if role != "root" and new.version != (1 if old is None else old.version + 1):
            raise StoreError(
                f"the draft's {role} v{new.version} does not follow what is published",
                code="draft_stale",
            )
        words.append(f"{role} v{new.version}, valid until {new.expires:%Y-%m-%d %H:%M} UTC")
        if role == "root":
            words += _root_words(old_root, cast("Root", new))
        else:
            words += _targets_words(cast("Targets | None", old), cast("Targets", new), draft)
    known = names or {}
    return Reading(words=tuple(_with_names(line, known) for line in words), asked=asked)


def _with_names(line: str, names: Mapping[str, str]) -> str:
    for keyid, name in names.items():
        line = line.replace(f"key {keyid}", f"key {name} ({keyid})")
    return line


def _verified_base(draft: Draft, root: bytes | None) -> dict[str, Metadata[Any]]:
    """Return what is published now by role, each signed as the one before it says."""
    if root is None:
        if draft.base or metadata_path("root", 1) not in draft.files:
            raise StoreError("say which root you trust: --root FILE", code="draft_invalid")
        return {}
    try:
        trusted = Metadata[Root].from_bytes(root)
        while (path := metadata_path("root", trusted.signed.version + 1)) in draft.base:
            newer = Metadata[Root].from_bytes(draft.base[path].encode())
            for judge in (trusted.signed, newer.signed):
                judge.verify_delegate("root", newer.signed_bytes, newer.signatures)
            trusted = newer
        base: dict[str, Metadata[Any]] = {"root": trusted}
        found = _metadata({p: t for p, t in draft.base.items() if not p.endswith(".root.json")})
        for role, delegator in (("targets", "root"), ("full", "targets")):
            if role in found:
                md = found[role]
                base[delegator].signed.verify_delegate(role, md.signed_bytes, md.signatures)
                base[role] = md
    except (RepositoryError, DeserializationError, KeyError, ValueError) as exc:
        raise TrustError(
            f"what the draft calls published is not, by your root: {exc}", code="signature"
        ) from exc
    return base


def _root_words(old: Root | None, new: Root) -> Iterator[str]:
    if old is None:
        yield "  the first root: who ships it trusts these keys"
    if not new.consistent_snapshot:
        yield "  files are no longer named by their version"
    for role, now in sorted(new.roles.items()):
        before = old.roles[role] if old is not None else None
        yield from _key_words(
            role,
            [old.keys[keyid] for keyid in before.keyids] if old and before else [],
            [new.keys[keyid] for keyid in now.keyids],
        )
        if before is None or before.threshold != now.threshold:
            was = "" if before is None else f", not {before.threshold} as so far"
            yield f"  {now.threshold} of {len(now.keyids)} must sign {role}{was}"


def _key_words(role: str, old: Sequence[Key], new: Sequence[Key]) -> Iterator[str]:
    before, after = {key.keyid: key for key in old}, {key.keyid: key for key in new}
    for keyid in sorted(after.keys() - before.keys()):
        yield f"  + {after[keyid].scheme} key {keyid} signs {role}"
    for keyid in sorted(before.keys() - after.keys()):
        yield f"  - {before[keyid].scheme} key {keyid} no longer signs {role}"


def _targets_words(old: Targets | None, new: Targets, draft: Draft) -> Iterator[str]:
    if new.delegations is not None and new.delegations.roles is None:
        raise _invalid("delegates in a way that cannot be shown")
    for name in sorted(_delegated(old).keys() - _delegated(new).keys()):
        yield f"  - {name} signs nothing any more"
    for name, delegated in sorted(_delegated(new).items()):
        before = _delegated(old).get(name)
        yield from _key_words(name, before.keys if before else [], delegated.keys)
        if before is None or before.rest != delegated.rest:
            yield f"  {name} signs {delegated.rest}"
    known = old.targets if old is not None else {}
    for path in sorted(known.keys() - new.targets.keys()):
        yield f"  - {path} is withdrawn"
    for path, info in sorted(new.targets.items()):
        if path in known and known[path] == info:
            continue
        place = f"targets/{info.get_prefixed_paths()[0]}"
        after = _document(draft.files, place, info)
        if path not in known:
            yield f"  + {path} v{after.get('version')}, SHA-256 {info.hashes['sha256']}"
            yield from _summary(after)
            continue
        was = _document(draft.base, f"targets/{known[path].get_prefixed_paths()[0]}", known[path])
        yield f"  {path} v{was.get('version')} → v{after.get('version')}"
        changes = list(_changes(was, after, ""))
        yield from (f"    {change}" for change in changes or ["says the same"])


@dataclass(frozen=True, slots=True)
class _Delegated:
    keys: list[Key]
    rest: str


def _delegated(targets: Targets | None) -> dict[str, _Delegated]:
    if targets is None or targets.delegations is None or targets.delegations.roles is None:
        return {}
    known = targets.delegations.keys
    return {
        name: _Delegated(
            [known[keyid] for keyid in role.keyids],
            f"{', '.join(role.paths or [])} with {role.threshold} of {len(role.keyids)} keys"
            + ("" if role.terminating else ", not terminating"),
        )
        for name, role in targets.delegations.roles.items()
    }


def _document(files: Mapping[str, str], place: str, info: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the document at ``place``, if it is the one that was signed or will be."""
    data = files.get(place, "").encode()
    try:
        info.verify_length_and_hashes(data)
        return msgspec.json.decode(data, type=dict[str, Any])
    except (RepositoryError, msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise TrustError(f"the draft does not show {place}: {exc}", code="integrity") from exc


# Said by the line above the changes, or of no meaning to people.
_PLAIN = ("version", "issued_at")


def _summary(document: Mapping[str, Any]) -> Iterator[str]:
    for field, value in document.items():
        if isinstance(value, list) and value:
            names = [str(_name(item) or item) for item in cast("list[object]", value)]
            yield f"    {field}: {', '.join(names)}"


def _changes(old: Any, new: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield each difference between two documents, by the names that people gave."""
    if isinstance(old, list) and isinstance(new, list):
        before = _by_name(cast("list[object]", old))
        after = _by_name(cast("list[object]", new))
        if before is not None and after is not None:
            yield from _changes(before, after, path)
            kept = [name for name in after if name in before]
            if kept != [name for name in before if name in after]:
                yield f"{path}: now in the order {', '.join(after)}"
            return
    if isinstance(old, dict) and isinstance(new, dict):
        was, now = cast("dict[str, object]", old), cast("dict[str, object]", new)
        for key in [*was, *(key for key in now if key not in was)]:
            place = f"{path}.{key}" if path else key
            if place in _PLAIN or (key in was and key in now and was[key] == now[key]):
                continue
            if key not in now:
                yield f"- {place}: {_shown(was[key])}"
            elif key not in was:
                yield f"+ {place}: {_shown(now[key])}"
            else:
                yield from _changes(was[key], now[key], place)
        return
    yield f"{path}: {_shown(old)} → {_shown(new)}"


def _by_name(items: list[object]) -> dict[str, object] | None:
    named = {str(name): item for item in items if (name := _name(item)) is not None}
    return named if len(named) == len(items) else None


def _name(item: object) -> str | None:
    if isinstance(item, dict):
        row = cast("dict[str, Any]", item)
        return next(
            (str(row[key]) for key in ("id", "name", "iss", "kid", "model") if key in row), None
        )
    return None


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever JSON can hold
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# ── parts ──────────────────────────────────────────────────────────────────────────────────────


def _metadata(files: Mapping[str, str]) -> dict[str, Metadata[Any]]:
    """Return the metadata in ``files`` by role.

    Raises:
        StoreError: ``draft_invalid``.
    """
    found: dict[str, Metadata[Any]] = {}
    for path, text in files.items():
        if not path.startswith(METADATA):
            continue
        try:
            md = Metadata[Any].from_bytes(text.encode())
        except DeserializationError as exc:
            raise _invalid(f"holds a damaged {path}") from exc
        role = path.removeprefix(METADATA).removesuffix(".json").rpartition(".")[2]
        kind = "targets" if role == "full" else role
        if (
            role in found
            or md.signed.type != kind
            or metadata_path(role, md.signed.version) != path
        ):
            raise _invalid(f"holds a {path} that is something else")
        found[role] = md
    return found


def _texts(found: Mapping[str, Metadata[Any]]) -> dict[str, str]:
    return {
        metadata_path(role, md.signed.version): md.to_bytes().decode() for role, md in found.items()
    }


def _invalid(reason: str) -> StoreError:
    return StoreError(f"the file {reason}", code="draft_invalid")


def _mismatch() -> StoreError:
    return StoreError("these files are not copies of one draft", code="draft_mismatch")
