"""Who asks: the token's claims, checked once and remembered; what counts once, used up."""

import hmac
from collections.abc import Mapping
from hashlib import sha256

from msgspec import UNSET

from waypost.shared.contracts import Claims, Signed
from waypost.shared.decision.rules import cohort
from waypost.shared.errors import TokenError
from waypost.validator.access.checks import AccessChecks
from waypost.validator.access.dpop import Proof
from waypost.validator.access.jose import refused
from waypost.validator.access.tokens import LEEWAY_S
from waypost.validator.config.budgets import Budgets
from waypost.validator.ledger import scope_of
from waypost.validator.manifest.active import ActiveManifest, Principal
from waypost.validator.manifest.refresh import ManifestService

__all__ = ["authenticate", "pseudonym"]

PSEUDONYM_CHARS = 24  # 96 bits: no two subjects of one operator meet


async def authenticate(
    access: AccessChecks,
    manifests: ManifestService,
    budgets: Budgets,
    headers: Mapping[bytes, bytes],
    *,
    method: str,
    path: str,
    now: int,
) -> tuple[Principal, ActiveManifest, str | None]:
    """Return the caller, the manifest whose issuers vouch for them, and a nonce to answer with.

    Args:
        budgets: what whom may spend, where the token does not say.
        headers: as ``pick_headers`` returns them.
        path: without query.

    Raises:
        TokenError: the token does not hold, nor its proof; see ``TokenCode``.
        ForbiddenError: ``scope_missing``.
        RefusalError: there is no manifest to check it against.
        StoreError: nobody can tell whether proof or token were used before.
    """
    authorization = headers.get(b"authorization")
    text = None if authorization is None else authorization.decode("latin-1")
    active = manifests.active(now)
    try:
        claims = active.verifier.verify(text, now=now)
    except TokenError as exc:
        # The issuer may have got a new key since we last looked.
        if exc.code != "token_unknown_kid" or not await manifests.look_for_keys():
            raise
        active = manifests.active(now)
        claims = active.verifier.verify(text, now=now)
    nonce: str | None = None
    if claims.cnf is not UNSET:
        proof = headers.get(b"dpop")
        assert text is not None  # noqa: S101 - claims came of it
        proven = await _prove(
            access,
            None if proof is None else proof.decode("latin-1"),
            method=method,
            path=path,
            token=text.partition(" ")[2],
            jkt=claims.cnf.jkt,
            now=now,
        )
        nonce = proven.next_nonce
    if claims.one_time:
        # Last, so that a request refused for its proof does not use it up.
        mark = sha256(f"{claims.iss} {claims.jti}".encode()).digest()[:16]
        if not await access.seen.is_first(mark, until=claims.exp + LEEWAY_S):
            raise refused("token_replayed")
    principal = active.known(claims)
    if principal is None:
        principal = _principal(claims, budgets, access.pseudonym_key)
        active.remember(principal)
    return principal, active, nonce


async def _prove(
    access: AccessChecks,
    proof: str | None,
    *,
    method: str,
    path: str,
    token: str,
    jkt: str,
    now: int,
) -> Proof:
    if access.proofs is None:
        raise refused("token_cnf")
    proven = access.proofs.check(proof, method=method, path=path, token=token, jkt=jkt, now=now)
    if not await access.seen.is_first(proven.mark, until=proven.until):
        raise refused("dpop_replayed")
    return proven


def _principal(claims: Claims, budgets: Budgets, pseudonym_key: bytes) -> Principal:
    account = claims.budget.account
    subject = pseudonym(claims, key=pseudonym_key)
    pays = budgets.account(account, claims.budget.limits)
    return Principal(
        claims=claims,
        subject=subject,
        signed=Signed(
            tier=claims.tier,
            cohort=cohort(claims.iss, claims.sub),
            tenant=claims.tenant,
            region=claims.region,
            data_classes=claims.data_classes,
            models=claims.models,
        ),
        account=account,
        scopes=(
            pays,
            *(scope_of(f"narrowed:{one.account}", one.limits) for one in claims.allowances),
            *budgets.principal(
                subject=claims.sub, pseudonym=subject, tenant=claims.tenant, tier=claims.tier
            ),
        ),
        may_spend=bool(pays.limits) or budgets.unlimited,
    )


def pseudonym(claims: Claims, *, key: bytes) -> str:
    """Return what records call the token's subject: the same for the same, and no way back."""
    # Neither can hold a space, so that no two pairs read alike.
    who = f"{claims.iss} {claims.sub}".encode()
    return hmac.digest(key, who, "sha256").hex()[:PSEUDONYM_CHARS]
