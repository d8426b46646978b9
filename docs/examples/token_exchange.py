"""A recipe: your users' OpenID Connect ID tokens for Waypost access tokens (RFC 8693).

    export IDP_ISSUER=https://idp.example IDP_CLIENT_ID=my-app
    export WAYPOST_ISSUER=https://app.example WAYPOST_KID=app-1 WAYPOST_KEY=issuer.key.pem
    uvicorn --factory token_exchange:from_environment

    curl http://127.0.0.1:8000/token \
      -d grant_type=urn:ietf:params:oauth:grant-type:token-exchange \
      -d subject_token_type=urn:ietf:params:oauth:token-type:id_token -d subject_token=$ID_TOKEN

Needs ``waypost[edge]``. What to make yours is ``grant``: who gets which tier, and who pays.
"""

import asyncio
import hmac
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import httpx
import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from waypost.edge.tokens.issue import SigningKey, load_signing_key, mint, new_claims
from waypost.edge.tokens.jwks import JWKSError, import_keys
from waypost.shared.contracts import IssuerKey
from waypost.shared.errors import PolicyError
from waypost.shared.tokens.issuer_keys import public_key

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

LIFETIME_S = 600
MAX_FORM_BYTES = 20_000
KEYS_LAST_S = 600.0
KEYS_AT_MOST_EVERY_S = 60.0  # however many unknown key ids come


def grant(user: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a verified user may have: arguments of ``new_claims``. Make this yours."""
    return {
        "tier": "pro" if "waypost-pro" in user.get("groups", []) else "free",
        "account": str(user.get("org", "personal")),
        "data_classes": ("phi",) if user.get("org") == "clinic" else (),
    }


class Refused(Exception):
    """An exchange is refused; RFC 6749 §5.2 has the codes."""


@dataclass
class IdentityProvider:
    """An OpenID Connect provider: its keys, fetched when they are old or one is unknown."""

    issuer: str
    client_id: str
    client: httpx.AsyncClient
    clock: Callable[[], float] = time.time
    _keys: Mapping[str, IssuerKey] = field(default_factory=dict[str, IssuerKey])
    _fetched_at: float = -KEYS_LAST_S
    _fetching: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def user(self, id_token: str, *, nonce: str | None) -> dict[str, Any]:
        """Return the claims of an ID token that is for us and holds now; raises Refused.

        Args:
            nonce: what the login was begun with; ``None`` if whoever began it has compared them.
        """
        try:
            kid = str(jwt.get_unverified_header(id_token).get("kid"))
            key = await self._key(kid)
            # One algorithm, the key's own: what the token asks for does not count.
            claims: dict[str, Any] = jwt.decode(
                id_token,
                public_key(key),
                algorithms=[key.alg],
                audience=self.client_id,
                issuer=self.issuer,
                leeway=30,
                options={"require": ["iss", "aud", "sub", "exp", "iat"], "strict_aud": True},
            )
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refused("invalid_grant") from None
        # OpenID Connect Core §3.1.3.7, 5 and 11: it was made for us, and in answer to this login.
        if claims.get("azp", self.client_id) != self.client_id or not (
            nonce is None
            or hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode())
        ):
            raise Refused("invalid_grant")
        return claims

    async def _key(self, kid: str) -> IssuerKey:
        async with self._fetching:
            age_s = self.clock() - self._fetched_at
            if age_s > (KEYS_LAST_S if kid in self._keys else KEYS_AT_MOST_EVERY_S):
                self._fetched_at = self.clock()
                # If that fails, the keys we have are still good, and unknown ones stay unknown.
                with suppress(httpx.HTTPError, JWKSError, KeyError, ValueError):
                    self._keys = await self._fetch()
            if kid not in self._keys:
                raise Refused("invalid_grant")
            return self._keys[kid]

    async def _fetch(self) -> Mapping[str, IssuerKey]:
        where = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = (await self.client.get(where)).raise_for_status().json()
        if found["issuer"] != self.issuer:  # OpenID Connect Discovery §4.3
            raise ValueError("the document of another issuer")
        document = (await self.client.get(found["jwks_uri"])).raise_for_status().content
        return import_keys(document, algorithms=("EdDSA", "ES256", "RS256")).keys


@dataclass
class Exchange:
    """The ``/token`` endpoint."""

    provider: IdentityProvider
    iss: str
    kid: str
    key: SigningKey
    audience: str = "waypost"

    async def token(self, request: Request) -> JSONResponse:
        try:
            answer, status = await self._exchanged(await _form(request)), 200
        except Refused as refused:
            answer, status = {"error": str(refused)}, 400
        return JSONResponse(answer, status, headers={"Cache-Control": "no-store"})

    async def _exchanged(self, form: Mapping[str, str]) -> dict[str, Any]:
        self._check(form)
        user = await self.provider.user(form.get("subject_token", ""), nonce=form.get("nonce"))
        # Of the client's key. No proof of it is asked for: a token bound to a key that the asker
        # does not have is of no use to them.
        jkt = form.get("dpop_jkt")
        now = int(self.provider.clock())
        try:
            claims = new_claims(
                iss=self.iss,
                aud=self.audience,
                sub=user["sub"],
                client_id=self.provider.client_id,
                now=now,
                # No longer than the session it stands for.
                lifetime_s=min(LIFETIME_S, max(1, int(user["exp"]) - now)),
                jti=uuid4().hex,
                jkt=jkt,
                **grant(user),
            )
        except PolicyError:
            raise Refused("invalid_request") from None
        return {
            "access_token": mint(claims, key=self.key, kid=self.kid),
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer" if jkt is None else "DPoP",
            "expires_in": claims.exp - now,
        }

    def _check(self, form: Mapping[str, str]) -> None:
        """Return if the form asks for what there is here (RFC 8693 §2.1); raises Refused."""
        if form.get("grant_type") != EXCHANGE:
            raise Refused("unsupported_grant_type")
        if (
            form.get("subject_token_type") != ID_TOKEN
            or form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN
            or "actor_token" in form
        ):
            raise Refused("invalid_request")
        if form.get("audience", self.audience) != self.audience or "resource" in form:
            raise Refused("invalid_target")
        if "scope" in form:
            raise Refused("invalid_scope")


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise Refused("invalid_request")
    try:
        # Blank values too: an empty nonce is to be compared, not overlooked.
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise Refused("invalid_request") from None
    if any(len(values) > 1 for values in fields.values()):  # RFC 6749 §3.2
        raise Refused("invalid_request")
    return {name: values[0] for name, values in fields.items()}


def create_app(exchange: Exchange) -> Starlette:
    """Return the app; it closes the provider's connections at its end."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with exchange.provider.client:
            yield

    return Starlette(routes=[Route("/token", exchange.token, methods=["POST"])], lifespan=lifespan)


def from_environment() -> Starlette:
    """Return the app as the environment sets it up."""
    environment = os.environ
    provider = IdentityProvider(
        environment["IDP_ISSUER"], environment["IDP_CLIENT_ID"], httpx.AsyncClient(timeout=5)
    )
    return create_app(
        Exchange(
            provider,
            iss=environment["WAYPOST_ISSUER"],
            kid=environment["WAYPOST_KID"],
            key=load_signing_key(Path(environment["WAYPOST_KEY"]).read_bytes()),
            audience=environment.get("WAYPOST_AUDIENCE", "waypost"),
        )
    )
