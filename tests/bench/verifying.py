"""What it costs to learn who asks: a token known and new, a proof, a mark remembered."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from bench.deciding import median_us
from support.tokens import AUDIENCE, NOW, App
from waypost.client.dpop import DPoPKey
from waypost.validator.access.dpop import ProofChecker
from waypost.validator.access.seen_once import SqliteSeen
from waypost.validator.access.tokens import TokenVerifier

ORIGIN, PATH = "https://gateway.example", "/v1/chat/completions"
COUNT = 1_000


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim)."""
    result: list[tuple[str, str, str]] = []

    def add(what: str, call: Callable[[int], object], aim: str = "") -> None:
        result.append((what, f"{median_us(call, COUNT):.1f} µs", aim))

    for app in (App(), App.with_es256(), App.with_rs256()):
        verifier = TokenVerifier(app.issuers(), audience=AUDIENCE)
        known, alg = app.bearer(), app.public_key().alg
        new = [app.bearer() for _ in range(COUNT)]
        verifier.verify(known, now=NOW)
        add(f"a known token, {alg}", lambda _, v=verifier, t=known: v.verify(t, now=NOW), "≤ 15 µs")  # type: ignore[misc]
        add(f"a new token, {alg}", lambda i, v=verifier, t=new: v.verify(t[i], now=NOW), "≤ 300 µs")  # type: ignore[misc]

    app, holder, child = App(), DPoPKey.generate(), DPoPKey.generate()
    parent = app.mint(jkt=holder.thumbprint)
    narrowed = [
        holder.narrow(parent, to=child.thumbprint, lifetime_s=60, models=["small"], now=NOW)
        for _ in range(COUNT)
    ]
    verifier = TokenVerifier(app.issuers(), audience=AUDIENCE)
    add("a new token, narrowed once", lambda i: verifier.verify(f"DPoP {narrowed[i]}", now=NOW))

    checker = ProofChecker([ORIGIN], nonce_key=b"n" * 32)

    def prove(i: int) -> str:
        return holder.proof("POST", ORIGIN + PATH, token=parent, now=NOW, jti=f"{i:032}")

    proofs = [prove(i) for i in range(COUNT)]
    add("SDK: signing a proof", prove)
    add(
        "checking a proof",
        lambda i: checker.check(
            proofs[i],
            method="POST",
            path=PATH,
            token=parent,
            jkt=holder.thumbprint,
            now=NOW,
        ),
    )
    result.append(("remembering a proof", f"{_remember_us(folder):.1f} µs", ""))
    return result


def _remember_us(folder: Path) -> float:
    async def run() -> float:
        seen = SqliteSeen.open(folder / "replay.sqlite")
        marks = [uuid4().bytes for _ in range(COUNT)]
        start = time.perf_counter()
        for mark in marks:
            await seen.is_first(mark, until=NOW)
        took = time.perf_counter() - start
        await seen.close()
        return took * 1e6 / COUNT

    return asyncio.run(run())
