"""Which model, why, and at what cost? Asked by an operator; nothing is sent, held or recorded.

The same functions as ``POST /v1/decide``: the text is measured and searched as a request would
be, and the engine decides. What a token would say is typed in. Budgets are left out of it, since
no account is asked for.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from anyio import to_thread
from msgspec import Struct, structs
from starlette.requests import Request
from starlette.responses import Response

from waypost.shared.contracts import AUTO, Declared, Facts, Measured, Proposal, Signed
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.costs import cost_bound_nusd, cost_estimate_nusd
from waypost.shared.decision.engine import Decision, Exclusion, decide, exclusion
from waypost.shared.decision.explain import Explanation, explain
from waypost.shared.errors import InvalidRequestError, RefusalError
from waypost.shared.requests.measure import decode_chat, measure_chat
from waypost.validator.console.pages import form_of, page, services_of
from waypost.validator.detectors import json_text
from waypost.validator.http.problems import describe
from waypost.validator.manifest.active import ActiveManifest
from waypost.validator.services import Services

__all__ = ["ask", "form"]

MAX_TEXT_CHARS = 100_000
_NEEDS = ("json", "tools", "vision", "audio")
_SPLIT = re.compile(r"[\s,]+")


class Wish(Struct, frozen=True, kw_only=True):
    """The form, as it was filled in.

    Attributes:
        facts: JSON of ``Facts``; instead of all above it, if it is not empty.
    """

    text: str = ""
    tier: str = ""
    tenant: str = ""
    region: str = ""
    data: tuple[str, ...] = ()
    task: str = ""
    tags: str = ""
    needs: tuple[str, ...] = ()
    max_tokens: str = ""
    proposal: str = ""
    background: bool = False
    facts: str = ""


class Candidate(NamedTuple):
    """One model of the manifest, with what it would cost, or why it is out."""

    name: str
    provider: str
    quality: int
    ttft_ms: int
    cost_nusd: int
    why_out: Exclusion | None
    place: int | None


class Outcome(NamedTuple):
    """What would happen. Money in nano-dollars; ``best_nusd`` is the best-rated model's."""

    decision: Decision
    explanation: Explanation
    facts_json: str
    candidates: list[Candidate]
    cost_nusd: int | None
    bound_nusd: int | None
    best_nusd: int | None


async def form(request: Request) -> Response:
    """The empty form; filled with a decision's facts if the query names one."""
    services = services_of(request)
    wish = Wish()
    wanted = request.query_params.get("decision", "")
    record = await services.records.get(wanted) if wanted else None
    if record is not None and record.facts is not None:
        text = msgspec.json.format(msgspec.json.encode(record.facts), indent=2).decode()
        named = record.proposal.model if record.proposal is not None else ""
        wish = Wish(facts=text, proposal=named)
    return await _answer(request, wish)


async def ask(request: Request) -> Response:
    """What would happen to what the form describes."""
    services = services_of(request)
    filled = await form_of(request)
    single = {name: values[0].strip() for name, values in filled.items()}
    lists = {name: tuple(filled.get(name, ())) for name in ("data", "needs")}
    wish = msgspec.convert(
        {**single, **lists, "background": "background" in filled}, Wish, strict=True
    )
    try:
        active = services.manifests.active(services.clock())
        facts = await to_thread.run_sync(_facts, services, active, wish, int(services.clock()))
        outcome = await to_thread.run_sync(_outcome, active, facts, wish.proposal)
    except RefusalError as refusal:
        return await _answer(request, wish, refusal=refusal, status=describe(refusal).status)
    return await _answer(request, wish, outcome=outcome)


async def _answer(
    request: Request,
    wish: Wish,
    *,
    outcome: Outcome | None = None,
    refusal: RefusalError | None = None,
    **status: int,
) -> Response:
    trusted = services_of(request).manifests.trusted
    return await page(
        request,
        "playground.html",
        wish=wish,
        outcome=outcome,
        refusal=refusal,
        policy=None if trusted is None else trusted.policy,
        needs=_NEEDS,
        **status,
    )


# ── in threads: a long text takes its time ─────────────────────────────────────────────────────


def _facts(services: Services, active: ActiveManifest, wish: Wish, now: int) -> Facts:
    out = active.out_of_service(services.monotonic())
    if wish.facts:
        try:
            facts = msgspec.json.decode(wish.facts, type=Facts)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise InvalidRequestError(
                f"These are not facts: {exc}.", code="invalid_facts"
            ) from None
        return structs.replace(facts, measured=structs.replace(facts.measured, out_of_service=out))
    body = _body(wish)
    measured = measure_chat(decode_chat(body), body=body, reader=active.compiled.reader)
    classes = services.detectors.classes((json_text(body),)) if services.config.detectors else ()
    return Facts(
        now=now,
        signed=Signed(
            tier=wish.tier,
            tenant=wish.tenant or None,
            region=wish.region or None,
            data_classes=wish.data,
        ),
        measured=structs.replace(
            measured, out_of_service=out, data_classes=classes, **_needs(wish, measured)
        ),
        declared=Declared(
            interactive=not wish.background,
            task=wish.task or None,
            tags=tuple(filter(None, _SPLIT.split(wish.tags))),
        ),
    )


def _body(wish: Wish) -> bytes:
    """Return the chat completion that a caller would send."""
    if len(wish.text) > MAX_TEXT_CHARS:
        raise InvalidRequestError(
            f"The text has more than {MAX_TEXT_CHARS:,} characters.", code="invalid_body"
        )
    body: dict[str, object] = {
        "model": AUTO,
        "messages": [{"role": "user", "content": wish.text}],
    }
    if wish.max_tokens:
        if not (wish.max_tokens.isascii() and wish.max_tokens.isdigit()):
            raise InvalidRequestError(
                "The answer's length is a number of tokens, or nothing.", code="invalid_body"
            )
        body["max_tokens"] = int(wish.max_tokens[:9])
    return msgspec.json.encode(body)


def _needs(wish: Wish, measured: Measured) -> Mapping[str, tuple[str, ...]]:
    return {"needs": tuple(sorted({*measured.needs, *(n for n in wish.needs if n in _NEEDS)}))}


def _outcome(active: ActiveManifest, facts: Facts, proposed: str) -> Outcome:
    compiled = active.compiled
    decision = decide(compiled, facts, Proposal(model=proposed) if proposed else None)
    chosen = compiled.models.get(decision.model) if decision.model is not None else None
    candidates = _candidates(compiled, facts, decision)
    open_to_it = [one for one in candidates if one.why_out is None]
    best = max(open_to_it, key=lambda one: (one.quality, one.cost_nusd), default=None)
    return Outcome(
        decision=decision,
        explanation=explain(compiled, facts, decision),
        facts_json=msgspec.json.format(msgspec.json.encode(facts), indent=2).decode(),
        candidates=candidates,
        cost_nusd=None if chosen is None else cost_estimate_nusd(compiled.policy, chosen, facts),
        bound_nusd=None if chosen is None else cost_bound_nusd(chosen, facts),
        best_nusd=None if best is None else best.cost_nusd,
    )


def _candidates(compiled: CompiledPolicy, facts: Facts, decision: Decision) -> list[Candidate]:
    """Return every model: those to try, in their order, then the rest, then those left out."""
    chain = {name: place for place, name in enumerate(decision.chain, 1)}
    found = [
        Candidate(
            model.id,
            model.provider,
            model.quality,
            compiled.ttft_ms[model.id],
            cost_estimate_nusd(compiled.policy, model, facts),
            exclusion(compiled, model.id, facts),
            chain.get(model.id),
        )
        for model in compiled.policy.models
    ]
    return sorted(found, key=lambda one: (one.place or 99, one.why_out is not None))
