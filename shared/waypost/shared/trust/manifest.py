"""What a verified bundle says: policy, issuers and hints, decoded and ready for use.

``open_bundle`` is the only way to a ``Trusted``. TUF vouches for the bytes; here they are also
checked for being the documents that were asked for. Pure, but for the verifier's private
temporary directory and its clock.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from waypost.shared.contracts import (
    SUPPORTED_FEATURES,
    Hints,
    Issuers,
    Policy,
    decode_hints,
    decode_issuers,
    decode_policy,
)
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.errors import PolicyError, TrustError
from waypost.shared.trust.bundle import Projection, target_path, unpack_bundle

__all__ = ["Opened", "Trusted", "open_bundle", "open_files", "with_policy_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """A manifest that may be acted upon until ``expires_at``.

    Attributes:
        policy_bytes: the policy as it was signed.
        policy_digest: SHA-256 of ``policy_bytes``, in hex.
        compiled: the policy, with its hints, ready for ``decide``.
        hints: ``None`` when the bundle has none that are fresh; they can only reorder.
        versions: of each TUF role.
        authors: ids of the keys that may sign policies.
        expires_at: Unix seconds at which the first of the signatures behind the policy lapses.
        expires: the same of each TUF role behind it, and of the hints' if they are fresh.
        files: what proves it, by repository path; the roots apart.
        bundle: what was handed in, as it came.
    """

    policy: Policy
    policy_bytes: bytes
    policy_digest: str
    compiled: CompiledPolicy
    issuers: Issuers
    hints: Hints | None
    versions: dict[str, int]
    authors: frozenset[str]
    expires_at: int
    expires: dict[str, int]
    files: dict[str, str]
    bundle: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """The outcome of one verification: a manifest or a refusal, and what was learned.

    Attributes:
        floor: the metadata that was verified on the way, by file name without ``.json``.
            A later bundle must not fall behind it, even if this one was refused.
    """

    result: Trusted | TrustError
    floor: dict[str, str]


def with_policy_of(newer: Trusted, kept: Trusted) -> Trusted:
    """Return ``newer`` with the policy of ``kept``, where its own cannot be acted upon.

    Both were verified. Issuers, revocations and expiry are the newer one's.
    """
    return replace(
        newer,
        policy=kept.policy,
        policy_bytes=kept.policy_bytes,
        policy_digest=kept.policy_digest,
        compiled=kept.compiled,
        hints=kept.hints,
    )


def open_bundle(
    bundle: bytes,
    *,
    root: bytes,
    channel: str,
    previous: bytes | None = None,
    projection: Projection = "client",
) -> Trusted:
    """Return the manifest in ``bundle`` if it is signed, whole, current and what was asked for.

    Args:
        bundle: as downloaded.
        root: TUF root metadata that is trusted from the start; ships with the program.
        previous: the bundle accepted last, whose versions must not be undercut.

    Raises:
        TrustError: with one of ``TrustCode``; nothing of the bundle may be used.

    Source: TUF specification, section 5, by ``tuf.ngclient.Updater``.
    """
    floor: dict[str, str] = {}
    accepted: Trusted | None = None
    if previous is not None:
        # Refused or not, what verified in it is the floor: an expired manifest blocks rollback.
        earlier = open_files(
            unpack_bundle(previous),
            previous,
            root=root,
            channel=channel,
            projection=projection,
            floor={},
            accepted=None,
        )
        floor = earlier.floor
        accepted = earlier.result if isinstance(earlier.result, Trusted) else None
    opened = open_files(
        unpack_bundle(bundle),
        bundle,
        root=root,
        channel=channel,
        projection=projection,
        floor=floor,
        accepted=accepted,
    )
    if isinstance(opened.result, TrustError):
        raise opened.result
    return opened.result


def open_files(
    files: Mapping[str, str],
    bundle: bytes,
    *,
    root: bytes,
    channel: str,
    projection: Projection,
    floor: Mapping[str, str],
    accepted: Trusted | None,
) -> Opened:
    """Return what comes of verifying ``files`` above ``floor``; see ``open_bundle``."""
    # tuf brings 80 ms of imports, which a process that only decides should not pay.
    from waypost.shared.trust import verifier

    policy_path = target_path(channel, projection)
    issuers_path, hints_path = f"issuers/{channel}.json", f"hints/{channel}.json"
    known = {} if accepted is None else accepted_files(accepted)
    verified = verifier.verify(
        {**known, **files},
        root=root,
        floor=floor,
        required=(policy_path, issuers_path),
        optional=(hints_path,),
    )
    if verified.error is not None:
        return Opened(verified.error, verified.floor)
    try:
        trusted = _trusted(
            verified.targets[policy_path],
            verified.targets[issuers_path],
            verified.targets.get(hints_path),
            channel=channel,
            projection=projection,
            versions=verified.versions,
            authors=verified.authors,
            expires_at=verified.expires_at,
            expires=verified.expires,
            files=verified.files,
            bundle=bundle,
        )
        _check_not_older(trusted, accepted)
    except TrustError as refusal:
        return Opened(refusal, verified.floor)
    return Opened(trusted, verified.floor)


def accepted_files(accepted: Trusted) -> dict[str, str]:
    """Return the files behind a manifest.

    A repository file never changes under its name, so a bundle that repeats an old snapshot
    needs not carry its targets again.
    """
    return {
        path: text for path, text in accepted.files.items() if path != "metadata/timestamp.json"
    }


def _trusted(
    policy_bytes: bytes,
    issuers_bytes: bytes,
    hints_bytes: bytes | None,
    *,
    channel: str,
    projection: Projection,
    versions: dict[str, int],
    authors: frozenset[str],
    expires_at: int,
    expires: dict[str, int],
    files: dict[str, str],
    bundle: bytes,
) -> Trusted:
    try:
        policy, issuers = decode_policy(policy_bytes), decode_issuers(issuers_bytes)
        hints = decode_hints(hints_bytes) if hints_bytes is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise TrustError(f"signed, but not a manifest: {exc}", code="semantic") from exc
    for document in (policy, issuers, hints):
        if document is not None:
            _check_asked_for(document, channel)
    if policy.projection != projection:
        raise TrustError(
            f"the policy is the {policy.projection} projection, not the {projection} one",
            code="semantic",
            role=target_path(channel, projection),
        )
    if hints is not None:
        hints = _only_known(hints, policy)
    try:
        compiled = compile_policy(policy, hints)
    except PolicyError as exc:
        raise TrustError(
            f"signed, but makes no sense: {exc}",
            code="semantic",
            role=target_path(channel, projection),
        ) from exc
    return Trusted(
        policy=policy,
        policy_bytes=policy_bytes,
        policy_digest=hashlib.sha256(policy_bytes).hexdigest(),
        compiled=compiled,
        issuers=issuers,
        hints=hints,
        versions=versions,
        authors=authors,
        expires_at=expires_at,
        expires=expires,
        files=files,
        bundle=bundle,
    )


def _check_asked_for(document: Policy | Issuers | Hints, channel: str) -> None:
    if document.channel != channel:
        raise TrustError(
            f"the {document.kind} are for channel '{document.channel}', not '{channel}'",
            code="semantic",
            role=document.kind,
        )
    unknown = set(document.must_understand) - SUPPORTED_FEATURES
    if unknown:
        raise TrustError(
            f"the {document.kind} need a newer version, for: {', '.join(sorted(unknown))}",
            code="semantic",
            role=document.kind,
        )


def _only_known(hints: Hints, policy: Policy) -> Hints:
    """Return the hints about models of ``policy``: an online key must not name others."""
    known = {model.id for model in policy.models}
    return msgspec.structs.replace(
        hints, models=tuple(hint for hint in hints.models if hint.model in known)
    )


def _check_not_older(new: Trusted, accepted: Trusted | None) -> None:
    # TUF forgets versions when online keys are replaced, to recover from ones that a thief drove
    # up. A thief of the new keys could then bring an old policy back; but only its authors' keys
    # can drive *its* version up, so only their replacement, of every one, lets it fall.
    if accepted is None or new.authors.isdisjoint(accepted.authors):
        return
    for ours, theirs in ((new.policy, accepted.policy), (new.issuers, accepted.issuers)):
        if ours.version < theirs.version:
            raise TrustError(
                f"{ours.kind} v{ours.version} is older than v{theirs.version}, already accepted",
                code="rollback",
                role=ours.kind,
            )
