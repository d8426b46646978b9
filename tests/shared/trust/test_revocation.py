"""A revoked key's manifest is let go of by whoever acts upon it, at once and without a restart."""

from pathlib import Path

import anyio
import pytest

from support.publisher import Publisher
from support.site import BUNDLE, Site, site, tree_of
from support.upstream import running_upstream
from support.validator import Running, running_validator
from waypost.client import Waypost

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "2 + 2?"}]


def client_of(publisher: Publisher, shelf: Site) -> Waypost:
    return Waypost(
        manifest_url=shelf.url,
        root=publisher.root,
        base_url="https://validator.example",
        token="unread",
        cache_dir=False,
        refresh_interval_s=None,
    )


def test_the_sdk_proposes_nothing_from_it(publisher: Publisher) -> None:
    publisher.publish()
    with site(tree_of(publisher)) as shelf, client_of(publisher, shelf) as wp:
        assert wp.refresh() is True
        assert wp.choose(HELLO).freshness == "fresh"
        publisher.replace_key("targets")
        shelf.files[BUNDLE] = publisher.bundle()
        assert wp.refresh() is False
        assert wp.choose(HELLO).reason == "no_manifest"
        publisher.publish()
        shelf.files[BUNDLE] = publisher.bundle()
        assert wp.refresh() is True
        assert wp.choose(HELLO).freshness == "fresh"


async def test_a_validator_serves_nothing_on_it(tmp_path: Path) -> None:
    async with (
        running_upstream() as upstream,
        running_validator(tmp_path, {"acme": upstream, "medcloud": upstream}) as validator,
    ):
        assert (await validator.chat()).status_code == 200
        assert await checks(validator) == {
            "manifest": "v1",
            "updates": "ok",
            "ledger": "ok",
            "records": "ok",
            "replay": "ok",
        }
        publisher = validator.publisher
        publisher.replace_key("targets")
        refused = await validator.client.put("/admin/bundle", content=publisher.bundle())
        assert refused.json()["error"]["code"] == "signature"
        assert (await validator.chat()).status_code == 503
        assert (await checks(validator))["manifest"] == "manifest_missing"
        issuers = validator.app.issuers()
        newer = await anyio.to_thread.run_sync(lambda: publisher.publish(issuers=issuers))
        assert (await validator.client.put("/admin/bundle", content=newer)).status_code == 200
        assert (await validator.chat()).status_code == 200


async def checks(validator: Running) -> dict[str, str]:
    answer: dict[str, str] = (await validator.client.get("/readyz")).json()["checks"]
    return answer
