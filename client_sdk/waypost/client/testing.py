"""For the tests of apps that use the SDK: a manifest without keys, a validator without network.

    policy = decode_policy(Path("policy.json").read_bytes())
    wp = static_waypost(policy, tier="free")
    validator = FakeValidator(policy)
    client = openai.OpenAI(
        base_url=wp.base_url,
        api_key="unused",
        http_client=wp.http_client(transport=validator.transport()),
    )

Choices are made by the engine itself; nothing here decides otherwise than in production.
"""

import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

import msgspec
from msgspec import Struct

from waypost.client._client import AsyncWaypost, Waypost
from waypost.client._fake_answers import error_of, events_of, whole_of
from waypost.client._named import check_names, named
from waypost.client._options import Options
from waypost.shared.contracts import AUTO, Declared, Facts, Hints, Policy, Proposal
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.errors import InvalidRequestError, TrustError
from waypost.shared.requests.apis import ENDPOINT_BY_PATH, decode, measure
from waypost.shared.tokens.unverified import unverified_claims
from waypost.shared.wire.headers import (
    DECISION,
    FACTS,
    MANIFEST,
    PROPOSAL,
    format_decision,
    parse_facts,
    parse_proposal,
)

if TYPE_CHECKING:
    import httpx
    import httpx2

__all__ = [
    "FakeValidator",
    "SeenRequest",
    "StaticManifest",
    "TokenFacts",
    "static_async_waypost",
    "static_waypost",
    "unsigned_token",
]

BASE_URL = "https://validator.test/v1"
NEVER = 2**40
JSON = "application/json"


class StaticManifest:
    """A manifest that is given, not fetched. ``publish`` replaces it.

    Attributes:
        last_error: set it to have refreshes fail with it.
    """

    @named
    def __init__(
        self, policy: Policy, *, hints: Hints | None = None, expires_at: int = NEVER
    ) -> None:
        """Raises PolicyError: the policy makes no sense."""
        self.last_error: TrustError | None = None
        self.current: StaticManifest.Held | None = None
        self._next = self.publish(policy, hints=hints, expires_at=expires_at)

    class Held(Struct, frozen=True, kw_only=True, eq=False):
        """One manifest, as ``waypost.client.Manifest``."""

        policy: Policy
        compiled: CompiledPolicy
        expires_at: int

    @named
    def publish(
        self, policy: Policy, *, hints: Hints | None = None, expires_at: int = NEVER
    ) -> "StaticManifest.Held":
        """Make this the manifest, from the client's next refresh on."""
        self._next = StaticManifest.Held(
            policy=policy, compiled=compile_policy(policy, hints), expires_at=expires_at
        )
        return self._next

    def load(self) -> "StaticManifest.Held | None":
        """Return the manifest, as if it had been on disk."""
        self.current = self._next
        return self.current

    def refresh(self, _client: "httpx.Client", /) -> bool:
        """Take what was published; raises ``last_error`` if there is one."""
        if self.last_error is not None:
            raise self.last_error
        changed = self.current is not self._next
        self.current = self._next
        return changed


class TokenFacts(TypedDict):
    """What a token says, as ``waypost.shared.contracts.Claims``."""

    tier: NotRequired[str]
    tenant: NotRequired[str]
    region: NotRequired[str]
    data_classes: NotRequired[tuple[str, ...]]
    models: NotRequired[tuple[str, ...]]


def unsigned_token(*, lifetime_s: int = 600, **facts: Unpack[TokenFacts]) -> str:
    """Return a token that says ``facts`` and that no real validator accepts."""
    check_names("unsigned_token()", facts, TokenFacts.__annotations__)
    now = int(time.time())
    claims = {"tier": "free", "iat": now, "exp": now + lifetime_s, **facts}
    parts = (b'{"alg":"none"}', msgspec.json.encode(claims))
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."


def static_waypost(
    policy: Policy | StaticManifest, *, tier: str = "free", **options: Unpack[Options]
) -> Waypost:
    """Return a ``Waypost`` with this policy and a token of ``tier``; it uses no network."""
    return Waypost(token=unsigned_token(tier=tier), **_static(policy, options))


def static_async_waypost(
    policy: Policy | StaticManifest, *, tier: str = "free", **options: Unpack[Options]
) -> AsyncWaypost:
    """Return an ``AsyncWaypost`` with this policy and a token of ``tier``; it uses no network."""
    return AsyncWaypost(token=unsigned_token(tier=tier), **_static(policy, options))


def _static(policy: Policy | StaticManifest, options: Options) -> Options:
    if "manifest" in options:
        raise TypeError("give the manifest first, instead of a policy")
    manifest = policy if isinstance(policy, StaticManifest) else StaticManifest(policy)
    defaults: Options = {"base_url": BASE_URL, "refresh_interval_s": None}
    return {**defaults, **options, "manifest": manifest}


class SeenRequest(Struct, frozen=True, kw_only=True):
    """A request as it reached the fake validator, and what that decided."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    decision: Decision | None = None
    proposal: Proposal | None = None
    declared: Declared = Declared()


class FakeValidator:
    """Answers each API in its own words and decides as the real one does; believes every token.

    Attributes:
        requests: what it has seen, oldest first.
        status: set it to answer everything with this HTTP status, as in an outage.
    """

    @named
    def __init__(self, policy: Policy, *, reply: str = "This is {model}.") -> None:
        """Args:
        reply: text of every answer; ``{model}`` stands for the model that was decided on.
        """
        self.requests: list[SeenRequest] = []
        self.status = 200
        self._policy = compile_policy(policy)
        self._reply = reply

    def transport(self) -> "httpx.MockTransport":
        """Return the validator as a transport for ``http_client``, sync or async."""
        import httpx

        def handle(request: httpx.Request) -> httpx.Response:
            url, headers = request.url, dict(request.headers)
            status, answer, body = self.answer(url.path, headers, request.content)
            return httpx.Response(status, headers=answer, content=body)

        return httpx.MockTransport(handle)

    def httpx2_transport(self) -> "httpx2.MockTransport":
        """Return the validator as a transport for ``httpx2_client``, sync or async."""
        import httpx2

        def handle(request: httpx2.Request) -> httpx2.Response:
            url, headers = request.url, dict(request.headers)
            status, answer, body = self.answer(url.path, headers, request.content)
            return httpx2.Response(status, headers=answer, content=body)

        return httpx2.MockTransport(handle)

    def answer(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer to one request.

        Args:
            headers: by lower-case name.
        """
        seen = SeenRequest(path=path, headers=headers, body=body)
        if path == "/v1/feedback":
            self.requests.append(seen)
            return 200, {"Content-Type": JSON}, body
        endpoint = ENDPOINT_BY_PATH.get(path)

        def refuse(status: int, code: str, why: str) -> tuple[int, dict[str, str], bytes]:
            self.requests.append(seen)
            return status, {"Content-Type": JSON}, error_of(endpoint, code, why)

        if self.status != 200:
            return refuse(self.status, "upstream_unavailable", "This validator is down.")
        if endpoint is None:
            return refuse(404, "not_found", "There is nothing at this path.")
        claims = unverified_claims(headers.get("authorization", "").partition(" ")[2])
        if claims is None:
            return refuse(401, "token_invalid", "There is no access token.")
        try:
            request = decode(endpoint, body)
            proposed, said = headers.get(PROPOSAL.lower()), headers.get(FACTS.lower())
            proposal = None if proposed is None else parse_proposal(proposed)
            declared = Declared() if said is None else parse_facts(said)
            measured = measure(endpoint, request, body=body, reader=self._policy.reader)
        except InvalidRequestError as exc:
            return refuse(400, exc.code, exc.message)
        if proposal is None and request.model != AUTO:
            proposal = Proposal(model=request.model)
        facts = Facts(
            now=int(time.time()),
            signed=claims.signed,
            measured=measured,
            declared=declared,
        )
        decision = decide(self._policy, facts, proposal)
        seen = msgspec.structs.replace(
            seen, decision=decision, proposal=proposal, declared=declared
        )
        answer = {
            DECISION: format_decision(
                decision_id=f"fake-{len(self.requests) + 1}",
                verdict=decision.verdict,
                model=decision.model,
                reason=decision.reason,
            ),
            MANIFEST: str(self._policy.policy.version),
        }
        if decision.model is None:
            status, kind, refusal = refuse(403, decision.reason, "No model may serve this.")
            return status, {**answer, **kind}, refusal
        self.requests.append(seen)
        text = self._reply.format(model=decision.model)
        if request.stream:
            events = events_of(endpoint, decision.model, text)
            return 200, {**answer, "Content-Type": "text/event-stream"}, events
        whole = whole_of(endpoint, decision.model, text, texts=measured.messages)
        return 200, {**answer, "Content-Type": JSON}, whole
