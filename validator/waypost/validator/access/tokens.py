"""Says who is asking: the claims of an access token, or a refusal.

The checks run in one order: those that cost nothing first, the signature before any claim is
believed, and nothing is ever fetched. docs/tokens.md lists them.

Sources: RFC 9068 (profile), RFC 8725 (best current practice), RFC 9449 (bound tokens).
"""

import re
from collections import OrderedDict
from hashlib import sha256
from hmac import compare_digest

import msgspec
from msgspec import UNSET, Struct, structs

from waypost.shared.contracts import (
    SUPPORTED_FEATURES,
    Claims,
    Issuer,
    IssuerKey,
    Issuers,
    Limits,
)
from waypost.shared.errors import ForbiddenError, PolicyError
from waypost.shared.tokens.issuer_keys import TokenKey, public_key
from waypost.shared.tokens.narrowing import (
    MAX_NARROWINGS,
    NARROWED,
    Narrowing,
    decode_narrowing,
    restricted,
)
from waypost.validator.access.jose import (
    MAX_TOKEN_CHARS,
    header_of,
    holder_of,
    is_compact,
    payload_of,
    refused,
    signed_payload,
    strict_json,
)

__all__ = ["LEEWAY_S", "TokenVerifier"]

LEEWAY_S = 30  # how far an issuer's clock may be off

MAX_HEADER_CHARS = MAX_TOKEN_CHARS + len("Bearer ")

_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Exactly these: jwk, jku and x5c would bring their own key, crit and b64 their own rules.
HEADER_FIELDS = {"alg", "kid", "typ"}

SCHEMES = frozenset({"bearer", "dpop"})

# RFC 9068 §2.1 allows the full media type as well.
TYPES = frozenset({"at+jwt", "application/at+jwt"})

_decode_claims = msgspec.json.Decoder(Claims).decode


class _Key(Struct, frozen=True):
    issuer: Issuer
    meta: IssuerKey
    public: TokenKey


class TokenVerifier:
    """Verifies tokens against one set of issuers. A new set takes a new verifier.

    So the memory of verified tokens never outlives the keys and revocations it was checked
    against. For one event loop; not thread-safe.
    """

    def __init__(
        self,
        issuers: Issuers,
        *,
        audience: str,
        leeway_s: int = LEEWAY_S,
        cache_size: int = 10_000,
    ) -> None:
        """Load the keys.

        Args:
            audience: this validator's own name; a token must name it and nothing else.
            leeway_s: how far the issuer's clock may be off.
            cache_size: how many verified tokens to remember.

        Raises:
            PolicyError: ``issuers_invalid``: a key that cannot be what it says, or two with
                one id. The whole set is refused; keep the verifier in force.
        """
        self._keys = _load(issuers)
        self._audience = audience
        self._leeway_s = leeway_s
        self._cache_size = cache_size
        self._revoked = frozenset(issuers.revoked_jtis)
        self._issuers = issuers
        self._is_one_issuer = len({issuer.iss for issuer in issuers.issuers}) == 1
        self._verified: OrderedDict[bytes, tuple[Claims, int]] = OrderedDict()

    def verify(self, authorization: str | None, *, now: int) -> Claims:
        """Return the claims of the token in an ``Authorization`` header.

        A token with ``cnf`` still wants its proof, one with ``one_time`` its only use.

        Args:
            authorization: the header's value; several headers joined with commas, as HTTP
                joins them, are refused. ``None`` if there was none.
            now: Unix seconds.

        Raises:
            TokenError: its code is one of ``TokenCode``. ``token_unknown_kid`` may mean that
                newer issuers exist; look once, at a limited rate, and never per request.
            ForbiddenError: ``scope_missing``: the token holds, and is not for this.
        """
        if authorization is None:
            raise refused("token_missing")
        if len(authorization) > MAX_HEADER_CHARS:
            _credential(authorization)
            raise refused("token_size")
        try:
            # A digest, so that a dump of this process holds no live tokens.
            digest = sha256(authorization.encode("ascii")).digest()
        except UnicodeEncodeError:
            raise refused("token_auth_header") from None
        known = self._verified.get(digest)
        if known is not None and now < known[1]:
            self._verified.move_to_end(digest)
            return known[0]
        claims, until = self._check(authorization, now)
        # By exact bytes: one token may have several spellings (an ECDSA signature has a twin,
        # "bearer" may be in capitals), each of which was checked for itself. Revocation goes by
        # issuer and id, which all spellings share, so that no spelling escapes it.
        self._verified[digest] = (claims, until)
        if len(self._verified) > self._cache_size:
            self._verified.popitem(last=False)
        return claims

    def _check(self, authorization: str, now: int) -> tuple[Claims, int]:
        """Return claims that hold, and the instant until which they do."""
        scheme, token = _credential(authorization)
        if not is_compact(token):
            raise refused("token_format")
        claims, key = self._open(token, now)
        _check_bond(claims, key.issuer, scheme)
        if key.issuer.one_time and not claims.one_time:
            claims = structs.replace(claims, one_time=True)
        until = claims.exp + self._leeway_s
        expires_at = key.meta.expires_at
        return claims, until if expires_at is None else min(until, expires_at)

    def _open(self, token: str, now: int, *, narrowings: int = 0) -> tuple[Claims, _Key]:
        """Return what ``token`` says, checked, and the issuer's key that it comes down to."""
        header = header_of(token, code="token_json")
        if header.get("typ") == NARROWED:
            return self._open_narrowed(token, now, narrowings=narrowings + 1)
        key = self._key(*_alg_and_kid(header), now)
        claims = _claims(signed_payload(token, key.public, key.meta.alg, code="token_signature"))
        self._check_claims(claims, key, now)
        return claims, key

    def _open_narrowed(self, token: str, now: int, *, narrowings: int) -> tuple[Claims, _Key]:
        if narrowings > MAX_NARROWINGS:
            raise refused("token_narrow_depth")
        # Read before any signature: which key must have signed it, only the parent can say.
        by = _narrowing(payload_of(token))
        if not is_compact(by.parent):
            raise refused("token_format")
        parent, key = self._open(by.parent, now, narrowings=narrowings)
        holder = holder_of(token.partition(".")[0], typ=NARROWED, code="token_header")
        # An unbound token has no holder who could narrow it.
        if parent.cnf is UNSET or not compare_digest(holder.thumbprint, parent.cnf.jkt):
            raise refused("token_narrow_key")
        signed_payload(token, holder.public, holder.alg, code="token_signature")
        if now >= by.exp + self._leeway_s:
            raise refused("token_expired")
        if by.iat > now + self._leeway_s:
            raise refused("token_not_yet_valid")
        if not parent.iat <= by.iat < by.exp:
            raise refused("token_lifetime")
        if f"{parent.iss} {by.jti}" in self._revoked:
            raise refused("token_revoked")
        return _narrowed(parent, by), key

    def _key(self, alg: str, kid: str, now: int) -> _Key:
        if not _KID.fullmatch(kid):
            raise refused("token_kid")
        key = self._keys.get(kid)
        if key is None:
            raise refused("token_unknown_kid")
        if key.meta.status == "revoked":
            raise refused("token_key_revoked")
        expires_at = key.meta.expires_at
        if now + self._leeway_s < key.meta.not_before or (
            expires_at is not None and now >= expires_at
        ):
            raise refused("token_key_inactive")
        # One key, one algorithm (RFC 8725 §3.1): the token does not get to choose.
        if alg != key.meta.alg:
            raise refused("token_alg")
        return key

    def _check_claims(self, claims: Claims, key: _Key, now: int) -> None:
        issuer, iss = key.issuer, claims.iss
        if iss != issuer.iss:
            raise refused("token_issuer")
        if claims.aud != self._audience:
            raise refused("token_audience")
        if now >= claims.exp + self._leeway_s:
            raise refused("token_expired")
        if max(claims.nbf, claims.iat) > now + self._leeway_s:
            raise refused("token_not_yet_valid")
        if not 0 < claims.exp - claims.iat <= issuer.max_lifetime_s:
            raise refused("token_lifetime")
        if claims.iat < key.meta.not_before:
            raise refused("token_key_inactive")
        # Neither sub, jti nor tenant can hold a space, so that no two pairs read alike.
        subject = f"{iss} {claims.sub}"
        if claims.iat < max(
            issuer.min_iat,
            self._issuers.min_iat_by_subject.get(subject, 0),
            self._issuers.min_iat_by_tenant.get(f"{iss} {claims.tenant}", 0),
        ):
            raise refused("token_superseded")
        if claims.auth_epoch < self._issuers.min_epoch_by_subject.get(subject, 0):
            raise refused("token_epoch")
        if f"{iss} {claims.jti}" in self._revoked:
            raise refused("token_revoked")
        self._check_confined(claims, issuer)
        if issuer.scope is not None and issuer.scope not in claims.scope.split(" "):
            raise ForbiddenError(
                f"This needs an access token with the scope '{issuer.scope}'.", code="scope_missing"
            )

    def _check_confined(self, claims: Claims, issuer: Issuer) -> None:
        """Raise unless tenant and accounts are the issuer's; with others beside it, as listed."""
        is_alone, accounts = self._is_one_issuer, issuer.accounts
        owns_tenants = issuer.tenants is None and (is_alone or claims.tenant is None)
        if not (owns_tenants or claims.tenant in (issuer.tenants or ())):
            raise refused("token_tenant")
        if accounts is None and is_alone:
            return
        for spends in (claims.budget, *claims.allowances):
            if not _may_spend(spends.account, accounts or ()):
                raise refused("token_account")


def _may_spend(account: str, patterns: tuple[str, ...]) -> bool:
    return any(
        account.startswith(pattern[:-1]) if pattern.endswith("*") else account == pattern
        for pattern in patterns
    )


def _credential(authorization: str) -> tuple[str, str]:
    scheme, _, token = authorization.partition(" ")
    scheme = scheme.lower()
    if scheme not in SCHEMES or not token or " " in token or "," in token:
        raise refused("token_auth_header")
    return scheme, token


def _check_bond(claims: Claims, issuer: Issuer, scheme: str) -> None:
    if claims.cnf is UNSET:
        if scheme == "dpop" or (
            issuer.dpop == "required" and claims.client_id not in issuer.bearer_clients
        ):
            raise refused("token_unbound")
    elif scheme != "dpop":
        # RFC 9449 §7.1. Taken as a bearer token, it would lose its bond.
        raise refused("token_cnf")


def _narrowed(parent: Claims, by: Narrowing) -> Claims:
    allowances = parent.allowances
    if by.limits:
        # Of its own, since what others spend from the account is not this token's; and named so
        # that nobody can spend from another's.
        mark = sha256(f"{parent.iss} {parent.sub} {parent.jti} {by.jti}".encode()).hexdigest()
        allowances = (*allowances, Limits(account=mark[:40], limits=by.limits))
    return structs.replace(
        restricted(parent, by), exp=min(parent.exp, by.exp), cnf=by.cnf, allowances=allowances
    )


def _narrowing(payload: bytes) -> Narrowing:
    strict_json(payload, code="token_claims")
    try:
        return decode_narrowing(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise refused("token_claims") from None


def _alg_and_kid(header: dict[str, object]) -> tuple[str, str]:
    if header.keys() != HEADER_FIELDS:
        raise refused("token_header")
    alg, kid, typ = header["alg"], header["kid"], header["typ"]
    if not isinstance(alg, str) or not isinstance(kid, str) or not isinstance(typ, str):
        raise refused("token_header")
    if typ.lower() not in TYPES:
        raise refused("token_typ")
    return alg, kid


def _claims(payload: bytes) -> Claims:
    strict_json(payload, code="token_claims")
    try:
        return _decode_claims(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise refused("token_claims") from None


def _load(issuers: Issuers) -> dict[str, _Key]:
    unknown = set(issuers.must_understand) - SUPPORTED_FEATURES
    if unknown:
        raise PolicyError(
            f"needs a newer version, for: {', '.join(sorted(unknown))}", code="issuers_invalid"
        )
    keys: dict[str, _Key] = {}
    for issuer in issuers.issuers:
        for meta in issuer.keys:
            if meta.alg not in issuer.algorithms:
                raise PolicyError(
                    f"key '{meta.kid}' is for {meta.alg}, which its issuer does not use",
                    code="issuers_invalid",
                )
            if meta.kid in keys:
                raise PolicyError(f"there are two keys '{meta.kid}'", code="issuers_invalid")
            try:
                public = public_key(meta)
            except ValueError as exc:
                raise PolicyError(f"key {exc}", code="issuers_invalid") from None
            keys[meta.kid] = _Key(issuer, meta, public)
    return keys
