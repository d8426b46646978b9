"""Who asks: the token's claims, checked once and remembered."""

import hmac

from waypost.shared.contracts import Claims, Limits, Signed
from waypost.shared.errors import TokenError
from waypost.shared.rules import cohort
from waypost.validator.desk import Caller, Desk, Serving
from waypost.validator.ledger import lowest

__all__ = ["authenticate", "pseudonym"]

PSEUDONYM_CHARS = 24  # 96 bits: no two subjects of one operator meet


async def authenticate(
    desk: Desk, authorization: bytes | None, *, now: int
) -> tuple[Caller, Serving]:
    """Return the caller, and the manifest whose issuers vouch for them.

    Raises:
        TokenError: the token does not hold; see ``TokenCode``.
        RefusalError: there is no manifest to check it against.
    """
    text = None if authorization is None else authorization.decode("latin-1")
    serving = desk.serving(now)
    try:
        claims = serving.verifier.verify(text, now=now)
    except TokenError as exc:
        # The issuer may have got a new key since we last looked.
        if exc.code != "token_unknown_kid" or not await desk.look_for_keys():
            raise
        serving = desk.serving(now)
        claims = serving.verifier.verify(text, now=now)
    known = desk.callers.get(id(claims))
    if known is not None and known.claims is claims:
        return known, serving
    caller = _caller(desk, claims)
    desk.remember(caller)
    return caller, serving


def _caller(desk: Desk, claims: Claims) -> Caller:
    account = claims.budget.account
    budgets = desk.config.budgets
    limits = lowest((*claims.budget.limits, *budgets.limits(account)))
    return Caller(
        claims=claims,
        subject=pseudonym(claims, key=desk.pseudonym_key),
        signed=Signed(
            tier=claims.tier,
            cohort=cohort(claims.iss, claims.sub),
            tenant=claims.tenant,
            region=claims.region,
            data_classes=claims.data_classes,
            models=claims.models,
        ),
        limits=Limits(account=account, limits=limits),
        may_spend=bool(limits) or budgets.unlimited,
    )


def pseudonym(claims: Claims, *, key: bytes) -> str:
    """Return what records call the token's subject: the same for the same, and no way back."""
    # Neither can hold a space, so that no two pairs read alike.
    who = f"{claims.iss} {claims.sub}".encode()
    return hmac.digest(key, who, "sha256").hex()[:PSEUDONYM_CHARS]
