"""A validator says days ahead which signature lapses, and afterwards what to do."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from support.publisher import Publisher
from support.tokens import App
from support.upstream import running_upstream
from support.validator import OPERATOR_TOKEN, Running, running_validator, settings
from waypost.edge.publishing.repository import LIFETIME_S
from waypost.shared.errors import RefusalError, TrustError
from waypost.shared.trust import ManifestKeeper
from waypost.validator.startup.assembly import open_services

pytestmark = pytest.mark.anyio

DAY_S = 86_400


@pytest.fixture
async def validator(tmp_path: Path) -> AsyncGenerator[Running]:
    async with (
        running_upstream() as upstream,
        running_validator(
            tmp_path, {"acme": upstream, "medcloud": upstream}, console={"token": "CONSOLE_TOKEN"}
        ) as run,
    ):
        yield run


async def sign(validator: Running, **lifetime_s: int) -> None:
    """Publish a manifest of which some signatures hold for other times than usual."""
    bundle = validator.publisher.publish(
        issuers=validator.app.issuers(), lifetime_s={**LIFETIME_S, **lifetime_s}
    )
    assert (await validator.client.put("/admin/bundle", content=bundle)).status_code == 200


async def test_readiness_tells_of_each_role_and_of_what_lapses(validator: Running) -> None:
    well = (await validator.client.get("/readyz")).json()
    await sign(validator, targets=6 * DAY_S)
    soon = await validator.client.get("/readyz")
    validator.clock.ahead_s = 6 * DAY_S + 60
    over = await validator.client.get("/readyz")

    assert well["checks"]["updates"] == "ok"
    assert well["expires_in_s"].keys() == {"root", "targets", "hints", "snapshot", "timestamp"}
    assert (soon.status_code, soon.json()["checks"]["updates"]) == (200, "expires_soon")
    assert soon.json()["expires_in_s"]["targets"] == pytest.approx(6 * DAY_S, abs=30)
    assert (over.status_code, over.json()["checks"]["updates"]) == (503, "expired")


async def test_the_metric_is_by_role(validator: Running) -> None:
    await sign(validator, targets=3 * DAY_S)

    text = (await validator.client.get("/metrics")).text

    told = {
        line.partition('"')[2].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("waypost_manifest_expires_in_seconds{")
    }
    assert told["targets"] == pytest.approx(3 * DAY_S, abs=30)
    assert told["root"] == pytest.approx(LIFETIME_S["root"], abs=30)
    assert told.keys() >= {"snapshot", "timestamp"}


async def test_the_log_says_it_once_a_day(
    validator: Running, caplog: pytest.LogCaptureFixture
) -> None:
    await sign(
        validator, targets=6 * DAY_S, snapshot=90 * DAY_S, timestamp=90 * DAY_S, hints=90 * DAY_S
    )
    for ahead_s in (0, 30, DAY_S + 60, 4 * DAY_S + 60):
        validator.clock.ahead_s = ahead_s
        await validator.services.manifests.refresh()

    told = [(r.levelname, r.message) for r in caplog.records if "signature of" in r.message]
    assert told == [
        ("WARNING", "the signature of targets expires in 5 days; publish again: waypost publish"),
        ("WARNING", "the signature of targets expires in 4 days; publish again: waypost publish"),
        ("ERROR", "the signature of targets expires in 47 hours; publish again: waypost publish"),
    ]


async def test_a_request_on_an_expired_manifest_is_told_to_publish_again(
    validator: Running,
) -> None:
    await sign(validator, targets=3_000)
    validator.clock.ahead_s = 3_000 + validator.services.config.manifest.grace_s + 60

    with pytest.raises(RefusalError, match="publish again: waypost publish") as caught:
        validator.services.manifests.active(validator.clock())

    assert caught.value.code == "manifest_expired"


async def test_one_that_starts_with_an_expired_manifest_does_not_say_to_try_again_shortly(
    tmp_path: Path,
) -> None:
    publisher, app = Publisher(), App()
    (tmp_path / "root.json").write_bytes(publisher.root)
    config = settings(tmp_path, {"acme": {"base_url": "http://127.0.0.1:1"}})
    async with open_services(config, environment={}) as services:
        bundle = publisher.publish(issuers=app.issuers(), lifetime_s={**LIFETIME_S, "targets": -1})
        with pytest.raises(TrustError):
            services.manifests.keeper.accept(bundle, etag=None)
        await services.manifests.take_over()

        with pytest.raises(RefusalError, match="expired: publish again: waypost publish") as caught:
            services.manifests.active(services.clock())

    assert caught.value.code == "manifest_expired"
    assert isinstance(services.manifests.keeper, ManifestKeeper)


async def test_the_console_shows_what_lapses(validator: Running) -> None:
    await sign(validator, targets=DAY_S + 3_600)
    origin = {"origin": validator.url}
    await validator.client.post("/console/login", data={"token": OPERATOR_TOKEN}, headers=origin)

    page = (await validator.client.get("/console/manifest")).text

    assert "The signature of targets expires in 24 hours; publish again: waypost publish." in page


async def test_the_console_says_that_a_newer_manifest_cannot_be_served(validator: Running) -> None:
    from support.worlds import a_model, a_policy
    from waypost.shared.contracts import Route

    policy = a_policy(
        models=(a_model("far", provider="elsewhere"),),
        routes=(Route(name="default", models=("far",)),),
        last_resort=(),
    )
    await validator.client.put(
        "/admin/bundle",
        content=validator.publisher.publish(policy=policy, issuers=validator.app.issuers()),
    )
    origin = {"origin": validator.url}
    await validator.client.post("/console/login", data={"token": OPERATOR_TOKEN}, headers=origin)

    page = (await validator.client.get("/console/manifest")).text

    assert "The newest manifest cannot be served here: no provider of its models" in page
    assert "The policy of v1 stays." in page
