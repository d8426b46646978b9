"""What is asked for: the facts of the request, and what the client proposes.

Reads what a decision needs and nothing else, and changes nothing.
"""

import re

from anyio import to_thread
from msgspec import structs

from waypost.cli import http_body
from waypost.cli.structured import read_facts, read_proposal
from waypost.shared.apis import Request, decode, measure
from waypost.shared.contracts import AUTO, Declared, Facts, Measured, Proposal
from waypost.shared.errors import InvalidRequestError
from waypost.validator.desk import Desk
from waypost.validator.detectors import json_text
from waypost.validator.pipeline.call import Call, Headers, Receive
from waypost.validator.serving import Caller, Serving
from waypost.validator.speech import Asked, UntranslatableError

__all__ = ["bound_time", "read_body", "understand"]

NOTHING_DECLARED = Declared()
JSON = b"application/json"
MAX_DEADLINE_MS = 86_400_000
_VERSION = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}")
DETECT_INLINE_BYTES = 64_000  # 25 ms at worst; a longer text would hold up other requests


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
    endpoint = call.endpoint
    request = decode(endpoint, call.body)
    measured = await _measured(call, request, serving)
    asked = Asked(
        endpoint,
        request,
        call.body,
        id=call.id,
        now=call.now,
        version=_version(call.headers),
        betas=_betas(call.headers),
    )
    out = desk.out_of_service(serving, asked, account=caller.account)
    untranslatable = _untranslatable(call, asked, serving)
    classes = await _detect(desk, call.body)
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


async def _measured(call: Call, request: Request, serving: Serving) -> Measured:
    size, reader = len(call.body), serving.compiled.reader
    if not reader.is_slow:
        return measure(call.endpoint, request, body_bytes=size, reader=reader)
    return await to_thread.run_sync(
        lambda: measure(call.endpoint, request, body_bytes=size, reader=reader)
    )


async def _detect(desk: Desk, body: bytes) -> tuple[str, ...]:
    """Return the data classes of what the body holds: all of it, not only what is understood."""
    if not desk.config.detectors:
        return ()
    if len(body) <= DETECT_INLINE_BYTES:
        return desk.detectors.classes((json_text(body),))
    return await to_thread.run_sync(lambda: desk.detectors.classes((json_text(body),)))


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
