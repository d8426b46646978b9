"""What is asked for: the facts of the request, and what the client proposes.

Reads what a decision needs and nothing else, and changes nothing.
"""

import re
from functools import partial

from anyio import to_thread
from msgspec import UNSET, structs

from waypost.cli import http_body
from waypost.cli.structured import read_facts, read_proposal
from waypost.shared.contracts import AUTO, Declared, Facts, Measured, Proposal
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.apis import Request, decode, measure
from waypost.validator.detectors import json_text
from waypost.validator.dialects.adapter import InboundRequest, UntranslatableError
from waypost.validator.lane import is_large
from waypost.validator.manifest.active import ActiveManifest, Principal
from waypost.validator.pipeline.exchange import Exchange, Headers, Receive
from waypost.validator.pipeline.hold import body_digest
from waypost.validator.pipeline.picture_size import size_of
from waypost.validator.pipeline.priced import require_priced
from waypost.validator.pipeline.reserve import ask_first
from waypost.validator.services import Services

__all__ = ["bound_time", "read_body", "understand"]

NOTHING_DECLARED = Declared()
JSON = b"application/json"
MAX_DEADLINE_MS = 86_400_000
_VERSION = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}")


async def understand(
    services: Services, exchange: Exchange, principal: Principal, active: ActiveManifest
) -> tuple[InboundRequest, Facts, Proposal | None]:
    """Return what is asked, the facts of it, and the client's proposal.

    Raises:
        InvalidRequestError: the body or a header is not what it must be.
    """
    _check_json(exchange.headers)
    limits = services.config.limits
    exchange.body = await read_body(
        exchange.receive,
        exchange.headers,
        limit=limits.body_bytes,
        timeout_s=limits.body_timeout_s,
        is_here=exchange.has_whole_body,
    )
    if is_large(exchange.body):
        # Or whoever may have nothing could keep us busy with it.
        await ask_first(services, exchange, principal)
        read = await services.lane.run(partial(_read, services, exchange, active))
    elif active.compiled.reader.is_slow:
        read = await to_thread.run_sync(partial(_read, services, exchange, active))
    else:
        read = _read(services, exchange, active)
    inbound, measured, untranslatable, classes = read
    if measured.extras is not UNSET:
        require_priced(measured.extras, active.compiled.policy.models)
    request = inbound.request
    out = active.out_of_service(services.monotonic(), inbound, account=principal.account)
    if out or untranslatable or classes:
        measured = structs.replace(
            measured, out_of_service=out, untranslatable=untranslatable, data_classes=classes
        )
    declared = exchange.headers.get(b"waypost-facts")
    facts = Facts(
        now=exchange.now,
        signed=principal.signed,
        measured=measured,
        declared=NOTHING_DECLARED if declared is None else read_facts(declared),
    )
    proposal = _proposal(request, exchange.headers, active)
    if proposal is not None and exchange.is_canary:
        # It names a manifest of the channel in force; a candidate's versions are counted apart.
        proposal = structs.replace(proposal, manifest=None)
    return inbound, facts, proposal


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


def _untranslatable(
    exchange: Exchange, inbound: InboundRequest, active: ActiveManifest
) -> tuple[str, ...]:
    """Return the models whose provider has no words for the request."""
    speaks = active.speaking(inbound.endpoint)
    names = speaks.unsupported
    for adapter, models in speaks.translated:
        try:
            adapter.check(inbound)
        except UntranslatableError as error:
            exchange.untranslatable = exchange.untranslatable or error
            names += models
    return names


def bound_time(exchange: Exchange) -> None:
    """Have the exchange end when its caller wants it to.

    Raises:
        InvalidRequestError: ``header_malformed``: it is not a whole number of milliseconds.
    """
    text = exchange.headers.get(b"waypost-deadline-ms")
    if text is None:
        return
    deadline_ms = int(text) if text.isdigit() and len(text) <= 8 else 0
    if not 0 < deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidRequestError(
            f"Waypost-Deadline-Ms must be whole milliseconds from 1 to {MAX_DEADLINE_MS}.",
            code="header_malformed",
            param="waypost-deadline-ms",
        )
    exchange.end_after(deadline_ms, says_caller=True)


def _read(
    services: Services, exchange: Exchange, active: ActiveManifest
) -> tuple[InboundRequest, Measured, tuple[str, ...], tuple[str, ...]]:
    """Return what the body asks, what is measured of it, who has no words for it, and its classes.

    This is the work that grows with a body. Nothing here waits.
    """
    endpoint, body = exchange.endpoint, exchange.body
    request = decode(endpoint, body)
    reader = active.compiled.reader
    measured = measure(endpoint, request, body=body, reader=reader, size_of=size_of)
    inbound = InboundRequest(
        endpoint,
        request,
        body,
        id=exchange.id,
        now=exchange.now,
        version=_version(exchange.headers),
        betas=_betas(exchange.headers),
    )
    if is_large(body) and b"idempotency-key" in exchange.headers:
        exchange.body_digest = body_digest(exchange)
    # Of all that the body holds, not only of what is understood.
    classes = services.detectors.classes((json_text(body),)) if services.config.detectors else ()
    return inbound, measured, _untranslatable(exchange, inbound, active), classes


def _proposal(request: Request, headers: Headers, active: ActiveManifest) -> Proposal | None:
    named = active.proposals.get(request.model)
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
