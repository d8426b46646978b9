"""The validator's other endpoints: what a caller may see, and what an operator needs."""

import sqlite3
import time
from pathlib import Path

import pytest

from support.publisher import Publisher
from support.tokens import App
from support.upstream import Upstream
from support.validator import HELLO, Running, running_validator
from waypost.shared.contracts import SpendLimit

pytestmark = pytest.mark.anyio


async def test_models_are_those_that_the_token_may_use(validator: Running) -> None:
    async def listed(**wishes: object) -> list[str]:
        headers = validator.headers(**wishes)  # type: ignore[arg-type]
        response = await validator.client.get("/v1/models", headers=headers)
        assert response.json()["object"] == "list"
        return [model["id"] for model in response.json()["data"]]

    assert await listed(tier="free") == ["auto", "small", "large", "clinical"]
    assert await listed(tier="enterprise") == ["auto", "small", "large", "frontier", "clinical"]
    assert await listed(models=("large",)) == ["auto", "large"]
    assert await listed(data_classes=("phi",)) == ["auto", "clinical"]


async def test_a_decision_is_told_to_whom_it_concerns(validator: Running) -> None:
    response = await validator.chat(tier="free", headers={"Waypost-Proposal": 'model="frontier"'})

    found = await validator.client.get(
        f"/v1/decisions/{response.headers['x-request-id']}", headers=validator.headers()
    )

    told = found.json()
    assert told["record"]["verdict"] == "overridden"
    assert told["explanation"]["sentence"].startswith("The client asked for frontier, but it is")
    assert told["explanation"]["exclusions"]["frontier"]["code"] == "tier_not_allowed"


async def test_a_decision_is_not_told_to_others_nor_that_it_exists(validator: Running) -> None:
    response = await validator.chat(sub="alice")
    await validator.record(response)
    path = f"/v1/decisions/{response.headers['x-request-id']}"

    stranger = await validator.client.get(path, headers=validator.headers(sub="mallory"))
    nobody = await validator.client.get(path)
    unheard_of = await validator.client.get(
        "/v1/decisions/0190-none", headers=validator.headers(sub="mallory")
    )

    assert stranger.status_code == 404
    assert stranger.json() == unheard_of.json()
    assert nobody.status_code == 401


async def test_a_tenant_shares_its_decisions(validator: Running) -> None:
    response = await validator.chat(sub="alice", tenant="hospital")
    path = f"/v1/decisions/{response.headers['x-request-id']}"

    colleague = validator.headers(sub="bob", tenant="hospital")
    outsider = validator.headers(sub="bob", tenant="bank")

    assert (await validator.client.get(path, headers=colleague)).status_code == 200
    assert (await validator.client.get(path, headers=outsider)).status_code == 404


async def test_a_tenant_of_one_issuer_reads_nothing_of_its_namesake_at_another(
    validator: Running,
) -> None:
    idp = App(iss="https://idp.example", kid="idp-1")
    both = tuple(
        one.issuer(tenants=("hospital",), accounts=("acme",)) for one in (validator.app, idp)
    )
    issuers = validator.app.issuers(issuers=both, version=2)
    validator.services.manifests.keeper.accept(
        validator.publisher.publish(issuers=issuers), etag=None
    )
    await validator.services.manifests.take_over()
    response = await validator.chat(sub="alice", tenant="hospital")
    await validator.record(response)
    path = f"/v1/decisions/{response.headers['x-request-id']}"

    namesake = {
        "Authorization": idp.bearer(sub="alice", tenant="hospital", now=int(validator.clock()))
    }
    colleague = validator.headers(sub="bob", tenant="hospital")

    assert (await validator.client.get(path, headers=namesake)).status_code == 404
    assert (await validator.client.get(path, headers=colleague)).status_code == 200


async def test_refused_strangers_records_belong_to_nobody(validator: Running) -> None:
    response = await validator.client.post("/v1/chat/completions", json=HELLO)
    await validator.record(response)

    found = await validator.client.get(
        f"/v1/decisions/{response.headers['x-request-id']}", headers=validator.headers()
    )

    assert found.status_code == 404


async def test_deciding_spends_nothing_and_sends_nothing(
    validator: Running, acme: Upstream
) -> None:
    response = await validator.client.post(
        "/v1/decide", json={**HELLO, "model": "large"}, headers=validator.headers()
    )

    told = response.json()
    assert (told["verdict"], told["model"], told["manifest"]) == ("accepted", "large", 1)
    assert 0 < told["cost_estimate_nusd"] < told["cost_bound_nusd"]
    assert told["explanation"]["sentence"]
    assert not acme.seen
    assert await validator.spent() == (0, 0)


@pytest.mark.parametrize("limit_nusd", [20_000, 100_000, 10_000_000])
async def test_deciding_foretells_what_the_budget_will_do(
    validator: Running, limit_nusd: int
) -> None:
    limits = (SpendLimit(window="day", limit_nusd=limit_nusd),)
    body = {**HELLO, "model": "large"}

    told = await validator.client.post(
        "/v1/decide", json=body, headers=validator.headers(limits=limits)
    )
    done = await validator.chat(body, limits=limits)

    assert told.status_code == done.status_code
    if done.status_code == 200:
        record = await validator.record(done)
        assert told.json()["model"] == record.model
        assert told.json()["reason"] == record.reason
        assert told.json()["cost_bound_nusd"] == record.reserved_nusd
    else:
        assert told.json()["error"]["code"] == done.json()["error"]["code"]


async def test_deciding_refuses_as_the_real_thing_does(validator: Running) -> None:
    response = await validator.client.post(
        "/v1/decide", json=HELLO, headers=validator.headers(tier="platinum")
    )

    assert (response.status_code, response.json()["error"]["code"]) == (403, "unknown_tier")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/chat", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models", 401, "token_missing"),
        ("GET", "/v1/decisions/x", 401, "token_missing"),
        ("POST", "/v1/decide", 401, "token_missing"),
    ],
)
async def test_wrong_ways_have_the_envelope_as_well(
    validator: Running, method: str, path: str, status: int, code: str
) -> None:
    response = await validator.client.request(method, path)

    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "code", "param"}
    assert response.json()["error"]["code"] == code
    if status == 405:
        assert response.headers["allow"]


async def test_probes_may_be_heads(validator: Running) -> None:
    for path in ("/livez", "/readyz"):
        response = await validator.client.head(path)
        assert (response.status_code, response.content) == (200, b"")


async def test_readiness_says_what_is_missing(validator: Running) -> None:
    assert (await validator.client.get("/readyz")).status_code == 200

    await validator.services.ledger.close()
    with sqlite3.connect(validator.services.config.ledger.path) as db:
        db.execute("DROP TABLE windows")
    db.close()
    trusted = validator.services.manifests.keeper.current
    assert trusted is not None
    validator.clock.ahead_s = (
        trusted.expires_at - time.time() + validator.services.config.manifest.grace_s + 60
    )
    response = await validator.client.get("/readyz")

    assert response.status_code == 503
    checks = response.json()["checks"]
    assert checks["manifest"] == "manifest_expired"
    assert checks["ledger"] == "ledger_unavailable"
    assert checks["records"] == "ok"
    assert (await validator.client.get("/livez")).status_code == 200


# ── the manifest by hand ───────────────────────────────────────────────────────────────────────


async def test_a_newer_manifest_takes_over_at_once(validator: Running) -> None:
    bundle = validator.publisher.publish()

    response = await validator.client.put("/admin/bundle", content=bundle)

    assert response.json()["version"] == 2
    assert (await validator.chat()).headers["waypost-manifest"] == "2"


async def test_an_old_record_is_explained_by_the_manifest_it_was_decided_by(
    validator: Running,
) -> None:
    old = await validator.chat(tier="free", headers={"Waypost-Proposal": 'model="frontier"'})
    policy = validator.publisher.policy
    await validator.client.put("/admin/bundle", content=validator.publisher.publish(policy=policy))

    found = await validator.client.get(
        f"/v1/decisions/{old.headers['x-request-id']}", headers=validator.headers()
    )

    assert found.json()["explanation"]["trace"][0].startswith("manifest: v1 ")


@pytest.mark.parametrize("case", ["nonsense", "tampered", "a stranger's", "older"])
async def test_a_bundle_that_does_not_hold_changes_nothing(validator: Running, case: str) -> None:
    older = validator.publisher.bundle()
    newer = validator.publisher.publish()
    bundle = {
        "nonsense": b"{}",
        "tampered": newer.replace(b"hipaa_baa", b"hipaa_bab"),
        "a stranger's": Publisher().publish(),
        "older": older,
    }[case]
    if case == "older":
        await validator.client.put("/admin/bundle", content=newer)
    before = (await validator.chat()).headers["waypost-manifest"]

    response = await validator.client.put("/admin/bundle", content=bundle)

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert (await validator.chat()).headers["waypost-manifest"] == before


async def test_bundles_are_taken_by_hand_only_where_the_operator_allows_it(
    tmp_path: Path, acme: Upstream
) -> None:
    manifest = {"root": "root.json"}
    async with running_validator(tmp_path, {"acme": acme}, manifest=manifest) as validator:
        response = await validator.client.put(
            "/admin/bundle", content=validator.publisher.publish()
        )

    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


async def test_a_new_issuer_key_counts_from_the_next_manifest_on(validator: Running) -> None:
    from support.tokens import App

    second = App(kid="app-2")
    token = {"Authorization": second.bearer(now=int(time.time()))}
    before = await validator.client.get("/v1/models", headers=token)
    issuers = validator.app.issuers()
    issuer = validator.app.issuer(keys=(validator.app.public_key(), second.public_key()))
    bundle = validator.publisher.publish(
        issuers=type(issuers)(
            channel="prod", version=1, issued_at=issuers.issued_at, issuers=(issuer,)
        )
    )
    await validator.client.put("/admin/bundle", content=bundle)
    after = await validator.client.get("/v1/models", headers=token)

    assert before.json()["error"]["code"] == "token_unknown_kid"
    assert after.status_code == 200
