"""A manifest that cannot be served does not take over: the last good policy stays, and it is said."""

import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from msgspec import structs

from support.publisher import Publisher
from support.upstream import running_upstream
from support.validator import Running, running_validator, settings
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Policy, Route
from waypost.shared.errors import StoreError
from waypost.shared.trust import ManifestKeeper
from waypost.validator.startup.assembly import open_services
from waypost.validator.startup.worker import require_manifest

pytestmark = pytest.mark.anyio


@pytest.fixture
async def validator(tmp_path: Path) -> AsyncGenerator[Running]:
    async with (
        running_upstream() as upstream,
        running_validator(tmp_path, {"acme": upstream}) as run,
    ):
        yield run


def of_providers(*providers: str) -> Policy:
    models = tuple(
        a_model(f"of-{name}", provider=name, promises=("no_training",)) for name in providers
    )
    names = tuple(model.id for model in models)
    return a_policy(models=models, routes=(Route(name="default", models=names),), last_resort=names)


def publish(validator: Running, policy: Policy) -> bytes:
    return validator.publisher.publish(policy=policy, issuers=validator.app.issuers())


async def readiness(validator: Running) -> tuple[int, dict[str, str]]:
    response = await validator.client.get("/readyz")
    return response.status_code, response.json()["checks"]


async def test_a_policy_without_any_provider_here_does_not_take_over(
    validator: Running, caplog: pytest.LogCaptureFixture
) -> None:
    before = validator.services.manifests.trusted
    assert before is not None

    put = await validator.client.put(
        "/admin/bundle", content=publish(validator, of_providers("elsewhere", "nowhere"))
    )

    assert put.status_code == 409
    error = put.json()["error"]
    assert error["code"] == "providers_missing"
    assert "of-elsewhere (of elsewhere), of-nowhere (of nowhere)" in error["message"]
    assert "validator.yaml" in error["message"]
    assert (await validator.chat()).status_code == 200
    status, checks = await readiness(validator)
    assert (status, checks["manifest"], checks["updates"]) == (
        200,
        f"v{before.policy.version}",
        "refused",
    )
    refused = [r for r in caplog.records if "refused: no provider of its models" in r.message]
    assert [record.levelno for record in refused] == [logging.ERROR]
    metrics = (await validator.client.get("/metrics")).text
    assert "waypost_manifest_refused 1.0" in metrics
    assert f"waypost_manifest_version {before.policy.version}.0" in metrics


async def test_what_comes_with_such_a_policy_holds_at_once(validator: Running) -> None:
    before = validator.services.manifests.trusted
    assert before is not None
    caller = validator.headers(jti="0123456789abcdef")
    issuers = structs.replace(
        validator.app.issuers(),
        revoked_jtis=(f"{validator.app.issuers().issuers[0].iss} 0123456789abcdef",),
    )

    await validator.client.put(
        "/admin/bundle",
        content=validator.publisher.publish(policy=of_providers("elsewhere"), issuers=issuers),
    )
    response = await validator.client.get("/v1/models", headers=caller)

    assert (response.status_code, response.json()["error"]["code"]) == (401, "token_revoked")
    after = validator.services.manifests.trusted
    assert after is not None
    assert after.policy is before.policy
    assert after.versions["timestamp"] > before.versions["timestamp"]


async def test_the_next_good_policy_takes_over(validator: Running) -> None:
    await validator.client.put("/admin/bundle", content=publish(validator, of_providers("x")))

    put = await validator.client.put("/admin/bundle", content=publish(validator, a_policy()))

    assert put.status_code == 200
    _, checks = await readiness(validator)
    assert (checks["manifest"], checks["updates"]) == (f"v{put.json()['version']}", "ok")
    assert "waypost_manifest_refused 0.0" in (await validator.client.get("/metrics")).text


async def test_it_is_told_once_however_often_it_is_asked_for(
    validator: Running, caplog: pytest.LogCaptureFixture
) -> None:
    await validator.client.put("/admin/bundle", content=publish(validator, of_providers("x")))
    for _ in range(3):
        await validator.services.manifests.refresh()
        await validator.client.put("/admin/bundle", content=publish(validator, of_providers("x")))

    assert len([r for r in caplog.records if "refused" in r.message]) == 1


async def test_models_without_a_provider_are_named_beside_those_that_are_served(
    validator: Running, caplog: pytest.LogCaptureFixture
) -> None:
    put = await validator.client.put(
        "/admin/bundle", content=publish(validator, of_providers("acme", "elsewhere"))
    )

    assert put.status_code == 200
    assert put.json()["unserved"] == ["of-elsewhere"]
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert any("nobody is served by: of-elsewhere (of elsewhere)" in each for each in warned)
    assert "waypost_models_unserved 1.0" in (await validator.client.get("/metrics")).text
    assert (await validator.chat()).status_code == 200


async def test_a_policy_of_signers_who_were_replaced_is_not_kept(validator: Running) -> None:
    validator.publisher.replace_key("targets")

    await validator.client.put("/admin/bundle", content=publish(validator, of_providers("x")))

    status, checks = await readiness(validator)
    assert (status, checks["manifest"]) == (503, "manifest_refused")


# ── at the first start ─────────────────────────────────────────────────────────────────────────


async def test_a_first_start_on_such_a_policy_says_what_is_wrong(tmp_path: Path) -> None:
    publisher = Publisher(policy=of_providers("elsewhere"))
    (tmp_path / "root.json").write_bytes(publisher.root)
    config = settings(
        tmp_path, {"acme": {"base_url": "http://127.0.0.1:1"}}, manifest={"root": "root.json"}
    )
    config.manifest.cache.parent.mkdir()
    keeper = ManifestKeeper(
        url=None, channel="prod", root=publisher.root, cache=config.manifest.cache
    )
    keeper.accept(publisher.publish(), etag=None)

    async with open_services(config, environment={}) as services:
        with pytest.raises(StoreError, match=r"of-elsewhere \(of elsewhere\); add one") as exc:
            require_manifest(services.manifests, services.config.manifest)
        assert services.manifests.trusted is None

    assert exc.value.code == "manifest_refused"


async def test_requests_to_one_that_waits_for_a_better_policy_are_refused_by_name(
    tmp_path: Path,
) -> None:
    async with (
        running_upstream() as upstream,
        running_validator(tmp_path, {"acme": upstream}, policy=of_providers("elsewhere")) as run,
    ):
        answer = await run.chat()
        status, checks = await readiness(run)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "manifest_refused")
    assert (status, checks["manifest"], checks["updates"]) == (503, "manifest_refused", "refused")
