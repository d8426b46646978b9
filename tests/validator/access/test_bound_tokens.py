"""Tokens bound to a key, and tokens for one request, through a running validator."""

import multiprocessing
import sqlite3
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import anyio
import httpx
import pytest
from anyio import to_thread
from msgspec import structs

from support.first_come import firsts
from support.upstream import Upstream
from support.validator import HELLO, Running, running_validator
from waypost.client import AsyncWaypost, Waypost
from waypost.client.dpop import DPoPKey
from waypost.client.testing import StaticManifest
from waypost.shared.errors import StoreError
from waypost.validator.access.dpop import NONCE_SPAN_S, ProofChecker
from waypost.validator.access.seen_once import SqliteSeen

pytestmark = pytest.mark.anyio

ORIGIN = "https://gateway.example"
CHAT = "/v1/chat/completions"
KEY = DPoPKey.generate()


@pytest.fixture
async def bound(tmp_path: Path, acme: Upstream, medcloud: Upstream) -> AsyncGenerator[Running]:
    """A validator that checks proofs, and knows itself as ``ORIGIN``."""
    upstreams = {"acme": acme, "medcloud": medcloud}
    async with running_validator(tmp_path, upstreams, dpop={"origins": [ORIGIN]}) as running:
        yield running


def proven(running: Running, *, jti: str = "", nonce: str | None = None) -> dict[str, str]:
    """Return the headers of one chat request with a token bound to ``KEY``."""
    now = int(running.clock())
    token = running.app.mint(jkt=KEY.thumbprint, now=now)
    proof = KEY.proof(
        "POST", ORIGIN + CHAT, token=token, now=now, jti=jti or uuid4().hex, nonce=nonce
    )
    return {"Authorization": f"DPoP {token}", "DPoP": proof}


def told(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_the_holder_of_the_key_is_served(bound: Running, acme: Upstream) -> None:
    response = await bound.client.post(CHAT, json=HELLO, headers=proven(bound))

    assert response.status_code == 200
    # Neither token nor proof is the provider's business.
    assert "dpop" not in acme.seen[0].headers
    assert acme.seen[0].headers["authorization"] == "Bearer sk-acme-secret"


async def test_a_stolen_token_is_worth_nothing(bound: Running) -> None:
    token = proven(bound)["Authorization"].removeprefix("DPoP ")
    as_bearer = {"Authorization": f"Bearer {token}"}
    without = {"Authorization": f"DPoP {token}"}

    response = await bound.client.post(CHAT, json=HELLO, headers=as_bearer)
    assert told(response) == (401, "token_cnf")
    response = await bound.client.post(CHAT, json=HELLO, headers=without)
    assert told(response) == (401, "dpop_missing")
    assert response.headers["www-authenticate"] == (
        'DPoP error="invalid_dpop_proof", algs="EdDSA ES256"'
    )


async def test_a_proof_is_good_for_one_request(bound: Running) -> None:
    headers = proven(bound)

    first = await bound.client.post(CHAT, json=HELLO, headers=headers)
    again = await bound.client.post(CHAT, json=HELLO, headers=headers)

    assert first.status_code == 200
    assert told(again) == (401, "dpop_replayed")
    # The token was remembered meanwhile, which excuses nobody from a proof.
    assert (await bound.spent())[0] > 0


async def test_a_thief_cannot_use_up_the_proofs_of_the_holder(bound: Running) -> None:
    headers, jti = proven(bound, jti="0123456789abcdef"), "0123456789abcdef"
    token = headers["Authorization"].removeprefix("DPoP ")
    now = int(bound.clock())
    stolen = DPoPKey.generate().proof("POST", ORIGIN + CHAT, token=token, now=now, jti=jti)

    thief = await bound.client.post(CHAT, json=HELLO, headers={**headers, "DPoP": stolen})
    holder = await bound.client.post(CHAT, json=HELLO, headers=headers)

    assert told(thief) == (401, "dpop_key")
    assert holder.status_code == 200


async def test_a_request_with_two_proofs_has_none(bound: Running) -> None:
    headers = httpx.Headers([*proven(bound).items(), ("DPoP", proven(bound)["DPoP"])])

    assert told(await bound.client.post(CHAT, json=HELLO, headers=headers)) == (
        401,
        "dpop_missing",
    )


async def test_the_origin_is_what_is_configured_and_not_what_host_says(bound: Running) -> None:
    now = int(bound.clock())
    token = bound.app.mint(jkt=KEY.thumbprint, now=now)
    url = f"https://elsewhere.example{CHAT}"
    headers = {
        "Authorization": f"DPoP {token}",
        "DPoP": KEY.proof("POST", url, token=token, now=now, jti=uuid4().hex),
        "Host": "elsewhere.example",
        "X-Forwarded-Host": "elsewhere.example",
    }

    assert told(await bound.client.post(CHAT, json=HELLO, headers=headers)) == (
        401,
        "dpop_target",
    )


async def test_a_client_whose_clock_is_off_is_told_a_nonce_and_served_with_it(
    bound: Running,
) -> None:
    bound.clock.ahead_s = 3_000.0
    now = int(bound.clock())
    token = bound.app.mint(jkt=KEY.thumbprint, now=now)

    def headers(nonce: str | None) -> dict[str, str]:
        late = KEY.proof(
            "POST", ORIGIN + CHAT, token=token, now=now - 3_000, jti=uuid4().hex, nonce=nonce
        )
        return {"Authorization": f"DPoP {token}", "DPoP": late}

    refused = await bound.client.post(CHAT, json=HELLO, headers=headers(None))
    assert told(refused) == (401, "dpop_time")
    assert refused.headers["www-authenticate"].startswith('DPoP error="use_dpop_nonce"')
    served = await bound.client.post(
        CHAT, json=HELLO, headers=headers(refused.headers["dpop-nonce"])
    )
    assert served.status_code == 200


async def test_an_answer_brings_a_new_nonce_before_the_old_one_lapses(bound: Running) -> None:
    old = bound.services.access.proofs.nonce(int(bound.clock()))  # type: ignore[union-attr]
    early = await bound.client.post(CHAT, json=HELLO, headers=proven(bound, nonce=old))
    bound.clock.ahead_s = float(NONCE_SPAN_S)
    late = await bound.client.post(CHAT, json=HELLO, headers=proven(bound, nonce=old))

    assert "dpop-nonce" not in early.headers
    new = late.headers["dpop-nonce"]
    bound.clock.ahead_s = 2.0 * NONCE_SPAN_S
    last = await bound.client.post(CHAT, json=HELLO, headers=proven(bound, nonce=new))
    assert [answer.status_code for answer in (early, late, last)] == [200, 200, 200]


async def test_without_settings_for_proofs_bound_tokens_are_refused(
    validator: Running,
) -> None:
    response = await validator.client.post(CHAT, json=HELLO, headers=proven(validator))

    assert told(response) == (401, "token_cnf")


async def test_issuers_that_bind_their_tokens_are_told_of_where_nobody_checks_proofs(
    validator: Running, caplog: pytest.LogCaptureFixture
) -> None:
    app, publisher = validator.app, validator.publisher
    bundle = publisher.publish(issuers=app.issuers(issuers=(app.issuer(dpop="required"),)))

    await validator.client.put("/admin/bundle", content=bundle)

    assert "cannot be checked without the section dpop" in caplog.text


# ── the SDK ────────────────────────────────────────────────────────────────────────────────────


def checks_at(running: Running, *, requires_nonce: bool = True) -> None:
    """Have the validator know itself by the address it has."""
    checker = ProofChecker([running.url], nonce_key=b"n" * 32, requires_nonce=requires_nonce)
    structs.force_setattr(running.services.access, "proofs", checker)


async def test_the_sdk_proves_each_request_and_takes_a_nonce_on_its_way(
    bound: Running, acme: Upstream
) -> None:
    checks_at(bound)
    token = bound.app.mint(jkt=KEY.thumbprint, now=int(time.time()))
    manifest = StaticManifest(bound.publisher.policy)
    async with (
        AsyncWaypost(
            token=token,
            dpop=KEY,
            manifest=manifest,
            base_url=bound.url,
            refresh_interval_s=None,
        ) as wp,
        wp.http_client() as client,
    ):
        answers = [await client.post(f"{wp.base_url}/chat/completions", json=HELLO) for _ in "ab"]
        bound.clock.ahead_s = 2.0 * NONCE_SPAN_S
        answers.append(await client.post(f"{wp.base_url}/chat/completions", json=HELLO))

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len(acme.seen) == 3


async def test_the_blocking_sdk_does_the_same(bound: Running, acme: Upstream) -> None:
    checks_at(bound)
    token = bound.app.mint(jkt=KEY.thumbprint, now=int(time.time()))
    manifest = StaticManifest(bound.publisher.policy)

    def ask() -> int:
        with (
            Waypost(
                token=token,
                dpop=KEY,
                manifest=manifest,
                base_url=bound.url,
                refresh_interval_s=None,
            ) as wp,
            wp.http_client() as client,
        ):
            return client.post(f"{wp.base_url}/chat/completions", json=HELLO).status_code

    assert await to_thread.run_sync(ask) == 200
    assert len(acme.seen) == 1


async def test_a_nonce_that_does_not_help_is_asked_for_once(bound: Running) -> None:
    checks_at(bound)
    other = DPoPKey.generate()
    token = bound.app.mint(jkt=KEY.thumbprint, now=int(time.time()))
    async with (
        AsyncWaypost(
            token=token,
            dpop=other,
            manifest=StaticManifest(bound.publisher.policy),
            base_url=bound.url,
            refresh_interval_s=None,
        ) as wp,
        wp.http_client() as client,
    ):
        response = await client.post(f"{wp.base_url}/chat/completions", json=HELLO)

    assert told(response) == (401, "dpop_key")


# ── narrowed tokens ────────────────────────────────────────────────────────────────────────────


async def asked_by_a_child(
    bound: Running, *, key: DPoPKey | None = None, models: Sequence[str] | None = None
) -> httpx.Response:
    """Ask as a process that was handed a narrowed token, and ``key``."""
    checks_at(bound)
    child = DPoPKey.generate()
    parent = bound.app.mint(jkt=KEY.thumbprint, now=int(time.time()))
    async with (
        AsyncWaypost(
            token=KEY.narrow(parent, to=child.thumbprint, lifetime_s=60, models=models),
            dpop=key or DPoPKey.from_pem(child.pem()),
            manifest=StaticManifest(bound.publisher.policy),
            base_url=bound.url,
            refresh_interval_s=None,
        ) as wp,
        wp.http_client() as client,
    ):
        return await client.post(f"{wp.base_url}/chat/completions", json=HELLO)


async def test_a_sub_process_uses_a_narrowed_token_with_a_key_of_its_own(bound: Running) -> None:
    response = await asked_by_a_child(bound, models=["large"])

    assert response.status_code == 200
    assert (await bound.record(response)).model == "large"


async def test_a_narrowed_token_with_no_model_left_may_use_none(bound: Running) -> None:
    assert told(await asked_by_a_child(bound, models=[])) == (403, "not_in_token")


async def test_a_narrowed_token_s_budget_is_its_own_and_its_children_s(bound: Running) -> None:
    checks_at(bound, requires_nonce=False)
    child, grandchild = DPoPKey.generate(), DPoPKey.generate()
    parent = bound.app.mint(jkt=KEY.thumbprint, now=int(time.time()))
    budget_nusd = 150_000
    narrowed = KEY.narrow(
        parent, to=child.thumbprint, lifetime_s=60, models=["small"], budget_nusd=budget_nusd
    )
    narrower = child.narrow(narrowed, to=grandchild.thumbprint, lifetime_s=60)

    async def ask(token: str, key: DPoPKey) -> httpx.Response:
        url = f"{bound.url}{CHAT}"
        proof = key.proof("POST", url, token=token, now=int(time.time()), jti=uuid4().hex)
        headers = {"Authorization": f"DPoP {token}", "DPoP": proof}
        return await bound.client.post(CHAT, json=HELLO, headers=headers)

    spent_nusd, refused = 0, None
    for turn in range(400):
        who = (narrowed, child) if turn % 2 else (narrower, grandchild)
        response = await ask(*who)
        if response.status_code != 200:
            refused = response
            break
        spent_nusd += (await bound.record(response)).cost_nusd

    assert refused is not None
    assert told(refused) == (402, "budget_exhausted")
    assert "This narrowed token may spend $0.00015" in refused.json()["error"]["message"]
    assert 0 < spent_nusd <= budget_nusd
    # Neither is its parent's budget touched by that, nor that of a sibling.
    assert (await ask(parent, KEY)).status_code == 200
    sibling = KEY.narrow(parent, to=child.thumbprint, lifetime_s=60, budget_nusd=budget_nusd)
    assert (await ask(sibling, child)).status_code == 200


async def test_a_narrowed_token_is_not_its_parent_s_holder_s(bound: Running) -> None:
    assert told(await asked_by_a_child(bound, key=KEY)) == (401, "dpop_key")


# ── one-time tokens ────────────────────────────────────────────────────────────────────────────


async def test_a_one_time_token_is_good_for_one_request(validator: Running) -> None:
    headers = validator.headers(one_time=True)

    first = await validator.client.post(CHAT, json=HELLO, headers=headers)
    again = await validator.client.post(CHAT, json=HELLO, headers=headers)

    assert first.status_code == 200
    assert told(again) == (401, "token_replayed")


async def test_a_refused_proof_does_not_use_up_a_one_time_token(bound: Running) -> None:
    now = int(bound.clock())
    token = bound.app.mint(jkt=KEY.thumbprint, one_time=True, now=now)
    wrong = KEY.proof("GET", ORIGIN + CHAT, token=token, now=now, jti=uuid4().hex)
    right = KEY.proof("POST", ORIGIN + CHAT, token=token, now=now, jti=uuid4().hex)
    authorization = {"Authorization": f"DPoP {token}"}

    await bound.client.post(CHAT, json=HELLO, headers={**authorization, "DPoP": wrong})
    response = await bound.client.post(CHAT, json=HELLO, headers={**authorization, "DPoP": right})

    assert response.status_code == 200


async def test_where_nothing_can_be_remembered_nothing_is_let_in_and_no_token_called_invalid(
    validator: Running,
) -> None:
    await validator.services.access.seen.close()

    response = await validator.chat(one_time=True)
    ready = await validator.client.get("/readyz")

    assert told(response) == (503, "replay_unavailable")
    assert (await validator.chat()).status_code == 200
    assert ready.status_code == 503
    assert ready.json()["checks"]["replay"] == "replay_unavailable"


# ── what is remembered ─────────────────────────────────────────────────────────────────────────


def test_of_several_processes_one_sees_a_proof_first(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.starmap(firsts, [(path, 300)] * 2)

    assert sum(counts) == 300


async def test_what_is_over_is_forgotten_and_what_is_not_stays(tmp_path: Path) -> None:
    seen = SqliteSeen.open(tmp_path / "replay.sqlite")
    await seen.is_first(b"over", until=100)
    await seen.is_first(b"not over", until=101)

    await seen.sweep(now=100)

    assert await seen.is_first(b"over", until=200)
    assert not await seen.is_first(b"not over", until=200)
    await seen.close()


async def test_memory_that_is_full_lets_nothing_in(tmp_path: Path) -> None:
    seen = SqliteSeen.open(tmp_path / "replay.sqlite", max_marks=2)
    for mark in (b"1", b"2"):
        await seen.is_first(mark, until=100)
    await seen.sweep(now=50)

    with pytest.raises(StoreError) as caught:
        await seen.is_first(b"3", until=100)
    assert caught.value.code == "replay_unavailable"
    await seen.sweep(now=100)
    assert await seen.is_first(b"3", until=200)
    await seen.close()


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    first = SqliteSeen.open(path)
    await first.is_first(b"mark", until=100)
    await first.close()

    second = SqliteSeen.open(path)
    assert not await second.is_first(b"mark", until=100)
    await second.close()


async def test_a_writer_elsewhere_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    seen = SqliteSeen.open(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: seen.is_first(b"mark", until=100))
            await anyio.sleep(0.01)
            other.execute("COMMIT")

    assert not await seen.is_first(b"mark", until=100)
    await seen.close()
