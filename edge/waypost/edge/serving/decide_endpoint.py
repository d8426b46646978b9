"""``POST /v1/decide``: the SDK's decision, for programs that cannot embed the SDK.

The same engine on the same facts as a client has: the published manifest, the token's claims as
they stand, the request, what it declares. Not the latency that a client sees. Like a client's
choice it is a proposal: the validator checks the token and decides.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from waypost.cli.http_body import read_body
from waypost.cli.structured import read_facts, read_proposal
from waypost.edge.project.names import CHANNEL
from waypost.edge.serving.request_spans import TOLD
from waypost.shared.contracts import AUTO, Declared, Facts, Proposal
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.costs import cost_estimate_nusd
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.decision.explain import explain
from waypost.shared.errors import ForbiddenError, InvalidRequestError, TokenError, TrustError
from waypost.shared.requests.measure import decode_chat, measure_chat
from waypost.shared.tokens.unverified import unverified_claims
from waypost.shared.trust import ManifestKeeper
from waypost.shared.wire.headers import FACTS, PROPOSAL, format_proposal

__all__ = ["Decider"]

MAX_BODY_BYTES = 4_000_000
BODY_TIMEOUT_S = 30.0
CHANNEL_NAME = re.compile(CHANNEL)


class Decider:
    """Decides by the manifests in the published tree, as they are now."""

    def __init__(self, public: Path, *, now: Callable[[], float] = time.time) -> None:
        self._public = public
        self._now = now
        self._held: dict[str, tuple[tuple[int, int], ManifestKeeper]] = {}

    async def answer(self, request: Request) -> Response:
        """Answer with what is decided; raises a WaypostError where nothing can be."""
        length = request.headers.get("content-length")
        body = await read_body(
            request.receive,
            length=None if length is None else length.encode("latin-1"),
            limit=MAX_BODY_BYTES,
            timeout_s=BODY_TIMEOUT_S,
        )
        channel = request.query_params.get("channel", "prod")
        compiled = await to_thread.run_sync(self._policy, channel)
        headers = request.headers
        facts, proposal = _facts(compiled, body, headers.get, now=int(self._now()))
        decision = decide(compiled, facts, proposal)
        request.scope.get(TOLD, {}).update(_told(compiled, decision))
        if decision.model is None:
            why = explain(compiled, facts, decision)
            raise ForbiddenError(why.sentence, code=decision.reason)
        decided = _answer(compiled, facts, decision)
        return Response(
            msgspec.json.encode(decided),
            headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
            media_type="application/json",
        )

    def _policy(self, channel: str) -> CompiledPolicy:
        path = self._public / "v1" / channel / "bundle.json"
        try:
            if CHANNEL_NAME.fullmatch(channel) is None:
                raise FileNotFoundError
            found = path.stat()
            # Files are replaced, never written into.
            stamp = (found.st_ino, found.st_mtime_ns)
            held = self._held.get(channel)
            if held is None or held[0] != stamp:
                keeper = ManifestKeeper(
                    url=None,
                    channel=channel,
                    root=(self._public / "metadata" / "1.root.json").read_bytes(),
                    cache=None,
                )
                keeper.accept(path.read_bytes(), etag=None)
                held = self._held[channel] = (stamp, keeper)
        except OSError:
            raise InvalidRequestError(
                "No such channel is published here.", code="not_found", param="channel"
            ) from None
        keeper = held[1]
        if keeper.current is None or not keeper.is_fresh(self._now()):
            raise TrustError("the manifest has expired, so nothing is decided", code="expired")
        return keeper.current.compiled


def _facts(
    compiled: CompiledPolicy, body: bytes, header: Callable[[str], str | None], *, now: int
) -> tuple[Facts, Proposal | None]:
    scheme, _, token = (header("authorization") or "").partition(" ")
    if scheme.lower() not in ("bearer", "dpop") or not token:
        raise TokenError("Send the user's access token as bearer.", code="token_missing")
    claims = unverified_claims(token.strip())
    if claims is None:
        raise TokenError("The access token cannot be read.", code="token_malformed")
    request = decode_chat(body)
    said, proposed = header(FACTS), header(PROPOSAL)
    facts = Facts(
        now=now,
        signed=claims.signed,
        measured=measure_chat(request, body=body, reader=compiled.reader),
        declared=Declared() if said is None else read_facts(said.encode("latin-1")),
    )
    if proposed is not None:
        return facts, read_proposal(proposed.encode("latin-1"))
    return facts, None if request.model == AUTO else Proposal(model=request.model)


def _told(compiled: CompiledPolicy, decision: Decision) -> dict[str, str | int]:
    told: dict[str, str | int | None] = {
        "waypost.verdict": decision.verdict,
        "waypost.reason": decision.reason,
        "waypost.route": decision.route,
        "waypost.model": decision.model,
        "waypost.manifest.version": compiled.policy.version,
    }
    return {name: value for name, value in told.items() if value is not None}


def _answer(compiled: CompiledPolicy, facts: Facts, decision: Decision) -> dict[str, object]:
    model = compiled.models[decision.chain[0]]
    version = compiled.policy.version
    return {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "model": model.id,
        "provider": model.provider,
        "route": decision.route,
        "candidates": decision.candidates,
        "chain": decision.chain,
        "manifest": version,
        "cost_estimate_nusd": cost_estimate_nusd(compiled.policy, model, facts),
        "explanation": explain(compiled, facts, decision),
        # To send along with the request to a validator.
        "proposal": format_proposal(
            Proposal(model=model.id, route=decision.route, manifest=version)
        ),
    }
