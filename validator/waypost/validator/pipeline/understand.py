"""What is asked for: the facts of the request, and what the client proposes.

Reads what a decision needs and nothing else, and changes nothing.
"""

import re
from functools import partial

from anyio import to_thread
from msgspec import structs

from waypost.cli import http_body
from waypost.cli.structured import read_facts, read_proposal
from waypost.shared.contracts import AUTO, Declared, Facts, Measured, Proposal
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.apis import Request, decode, measure
from waypost.validator.detectors import json_text
from waypost.validator.dialects.adapter import Asked, UntranslatableError
from waypost.validator.lane import is_large
from waypost.validator.manifest.active import Caller, Serving
from waypost.validator.pipeline.exchange import Call, Headers, Receive
from waypost.validator.pipeline.reserve import ask_first, body_digest
from waypost.validator.services import Desk

__all__ = ["bound_time", "read_body", "understand"]

NOTHING_DECLARED = Declared()
JSON = b"application/json"
MAX_DEADLINE_MS = 86_400_000
_VERSION = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}")


async def understand(
    desk: Desk, call: Call, caller: Caller, serving: Serving
) -> tuple[Asked, Facts, Proposal | None]:
    """Return what is asked, the facts of it, and the client's proposal.

    Raises:
        InvalidRequestError: the body or a header is not what it must be.
    """
    _check_json(call.headers)
    limits = desk.config.limits
    call.body = await read_body(
        call.receive,
        call.headers,
        limit=limits.body_bytes,
        timeout_s=limits.body_timeout_s,
        is_here=call.has_whole_body,
    )
    if is_large(call.body):
        # Or whoever may have nothing could keep us busy with it.
        await ask_first(desk, call, caller)
        read = await desk.lane.run(partial(_read, desk, call, serving))
    elif serving.compiled.reader.is_slow:
        read = await to_thread.run_sync(partial(_read, desk, call, serving))
    else:
        read = _read(desk, call, serving)
    asked, measured, untranslatable, classes = read
    request, out = asked.request, desk.out_of_service(serving, asked, account=caller.account)
    if out or untranslatable or classes:
        measured = structs.replace(
            measured, out_of_service=out, untranslatable=untranslatable, data_classes=classes
        )
    declared = call.headers.get(b"waypost-facts")
    facts = Facts(
        now=call.now,
        signed=caller.signed,
        measured=measured,
        declared=NOTHING_DECLARED if declared is None else read_facts(declared),
    )
    proposal = _proposal(request, call.headers, serving)
    if proposal is not None and call.is_canary:
        # It names a manifest of the channel in force; a candidate's versions are counted apart.
        proposal = structs.replace(proposal, manifest=None)
    return asked, facts, proposal


def _version(headers: Headers) -> str | None:
    version = headers.get(b"anthropic-version")
    if version is None:
        return None
    if not _VERSION.fullmatch(version):
        raise InvalidRequestError(
            "anthropic-version must be a date, as in 2023-06-01.",
            code="header_malformed",
            param="anthropic-version",
        )
    return version.decode()


def _betas(headers: Headers) -> tuple[str, ...]:
    text = headers.get(b"anthropic-beta")
    if text is None:
        return ()
    return tuple(dict.fromkeys(beta.strip() for beta in text.decode("latin-1").split(",")))


def _untranslatable(call: Call, asked: Asked, serving: Serving) -> tuple[str, ...]:
    """Return the models whose provider has no words for the request."""
    speaks = serving.speaking(asked.endpoint)
    names = speaks.mute
    for speech, models in speaks.translated:
        try:
            speech.check(asked)
        except UntranslatableError as error:
            call.untranslatable = call.untranslatable or error
            names += models
    return names


def bound_time(call: Call) -> None:
    """Have the call end when its caller wants it to.

    Raises:
        InvalidRequestError: ``header_malformed``: it is not a whole number of milliseconds.
    """
    text = call.headers.get(b"waypost-deadline-ms")
    if text is None:
        return
    deadline_ms = int(text) if text.isdigit() and len(text) <= 8 else 0
    if not 0 < deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidRequestError(
            f"Waypost-Deadline-Ms must be whole milliseconds from 1 to {MAX_DEADLINE_MS}.",
            code="header_malformed",
            param="waypost-deadline-ms",
        )
    call.end_after(deadline_ms, says_caller=True)


def _read(
    desk: Desk, call: Call, serving: Serving
) -> tuple[Asked, Measured, tuple[str, ...], tuple[str, ...]]:
    """Return what the body asks, what is measured of it, who has no words for it, and its classes.

    This is the work that grows with a body. Nothing here waits.
    """
    endpoint, body = call.endpoint, call.body
    request = decode(endpoint, body)
    measured = measure(endpoint, request, body_bytes=len(body), reader=serving.compiled.reader)
    asked = Asked(
        endpoint,
        request,
        body,
        id=call.id,
        now=call.now,
        version=_version(call.headers),
        betas=_betas(call.headers),
    )
    if is_large(body) and b"idempotency-key" in call.headers:
        call.body_digest = body_digest(call)
    # Of all that the body holds, not only of what is understood.
    classes = desk.detectors.classes((json_text(body),)) if desk.config.detectors else ()
    return asked, measured, _untranslatable(call, asked, serving), classes


def _proposal(request: Request, headers: Headers, serving: Serving) -> Proposal | None:
    named = serving.proposals.get(request.model)
    if named is None and request.model != AUTO:
        raise InvalidRequestError(
            f'The manifest has no such model. Send "{AUTO}" to leave the choice to the policy,'
            " or a model that GET /v1/models lists.",
            code="unknown_model",
            param="model",
        )
    header = headers.get(b"waypost-proposal")
    return named if header is None else read_proposal(header)


def _check_json(headers: Headers) -> None:
    kind = headers.get(b"content-type", JSON)
    if kind != JSON and kind.partition(b";")[0].strip().lower() != JSON:
        raise InvalidRequestError(
            "The body must be JSON; send Content-Type: application/json.",
            code="content_type_unsupported",
            param="content-type",
        )
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.strip().lower() != b"identity":
        raise InvalidRequestError(
            "The body must not be compressed; send no Content-Encoding.",
            code="content_encoding_unsupported",
            param="content-encoding",
        )


async def read_body(
    receive: Receive, headers: Headers, *, limit: int, timeout_s: float, is_here: bool = False
) -> bytes:
    """Return the request's body; raises as ``http_body.read_body`` does."""
    length = headers.get(b"content-length")
    return await http_body.read_body(
        receive, length=length, limit=limit, timeout_s=timeout_s, is_here=is_here
    )
