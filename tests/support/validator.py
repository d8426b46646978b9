"""A whole validator on a real socket: signed manifest, token issuer, ledger, records, providers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import httpx
import uvicorn

from support.publisher import Publisher
from support.quick_server import QuickServer
from support.tokens import AUDIENCE, App, Wishes
from support.upstream import Upstream
from support.worlds import a_policy
from waypost.cli.listening import listen, url_of
from waypost.shared.contracts import Policy, SpendLimit
from waypost.shared.records import DecisionRecord
from waypost.shared.trust import ManifestKeeper
from waypost.validator.config import ValidatorConfig
from waypost.validator.http.server_protocol import GuardedProtocol
from waypost.validator.ledger import scope_of
from waypost.validator.routes.app import create_app
from waypost.validator.services import Services
from waypost.validator.startup.assembly import open_services

OPERATOR_TOKEN = "operator-0123456789abcdef"
ENVIRONMENT = {"ACME_KEY": "sk-acme-secret", "CONSOLE_TOKEN": OPERATOR_TOKEN}
HELLO: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "2 + 2?"}]}


class Clock:
    """The machine's time, moved by ``ahead_s``."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Running:
    """A running validator, and a client of it."""

    url: str
    services: Services
    app: App
    publisher: Publisher
    client: httpx.AsyncClient
    clock: Clock = field(default_factory=Clock)

    def bearer(self, **wishes: Unpack[Wishes]) -> str:
        wishes.setdefault("now", int(time.time()))
        return self.app.bearer(**wishes)

    def headers(self, **wishes: Unpack[Wishes]) -> dict[str, str]:
        return {"Authorization": self.bearer(**wishes)}

    async def chat(
        self,
        body: Mapping[str, Any] | bytes = HELLO,
        *,
        headers: Mapping[str, str] | None = None,
        **wishes: Unpack[Wishes],
    ) -> httpx.Response:
        """Send a chat completion as a caller with this token."""
        content = body if isinstance(body, bytes) else None
        return await self.client.post(
            "/v1/chat/completions",
            content=content,
            json=None if content is not None else body,
            headers={
                **self.headers(**wishes),
                **({"Content-Type": "application/json"} if content is not None else {}),
                **(headers or {}),
            },
        )

    async def record(self, response: httpx.Response) -> DecisionRecord:
        """Return the record of the request that got ``response``, once it is there."""
        return await self.record_of(response.headers["x-request-id"])

    async def record_of(self, record_id: str) -> DecisionRecord:
        for _ in range(500):
            record = await self.services.records.get(record_id)
            if record is not None:
                return record
            await asyncio.sleep(0.01)
        raise AssertionError("no record was written")

    async def settled(self, account: str = "acme") -> tuple[int, int]:
        """Return the same once nothing is held any more."""
        for _ in range(500):
            found = await self.spent(account)
            if not found[1]:
                return found
            await asyncio.sleep(0.01)
        raise AssertionError("something is still held")

    async def spent(self, account: str = "acme") -> tuple[int, int]:
        """Return what the account has spent in all, and what is still held."""
        limit = SpendLimit(window="total", limit_nusd=10**15)
        scope = scope_of(f"account:{account}", (limit,))
        (balance,) = await self.services.ledger.balances((scope,), now=int(self.clock()))
        return balance.spent_nusd, balance.reserved_nusd


def settings(folder: Path, providers: Mapping[str, Any], **changes: Any) -> ValidatorConfig:  # noqa: ANN401
    """A valid ``validator.yaml`` for ``providers``."""
    return ValidatorConfig.model_validate(
        {
            "audience": AUDIENCE,
            "channel": "prod",
            "manifest": {"root": "root.json", "admin": True},
            "providers": providers,
            "budgets": {"default": [{"window": "total", "limit_usd": 1_000}]},
            **changes,
        }
    ).below(folder)


@asynccontextmanager
async def serving(app: Any) -> AsyncGenerator[str]:  # noqa: ANN401 - any ASGI application
    """Serve ``app`` on a free port; gives its URL."""
    with listen("127.0.0.1", 0) as sock:
        config = uvicorn.Config(
            app, http=GuardedProtocol, log_config=None, access_log=False, lifespan="on"
        )
        server = QuickServer(config)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            while not server.started:
                if task.done():
                    await task
                    raise AssertionError("the server did not start")
                await asyncio.sleep(0.005)
            yield url_of(sock)
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def running_validator(
    folder: Path,
    upstreams: Mapping[str, Upstream],
    *,
    policy: Policy | None = None,
    change: Callable[[dict[str, Any]], None] | None = None,
    publish: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
    **changes: Any,  # noqa: ANN401 - sections of validator.yaml
) -> AsyncGenerator[Running]:
    """Run a validator whose manifest is ``policy``.

    Args:
        upstreams: by the provider's name in the policy.
        publish: arguments for the publisher, as ``hints``.
        changes: sections of ``validator.yaml``.
    """
    clock = Clock()
    app = App()
    publisher = Publisher(policy=policy or a_policy())
    bundle = publisher.publish(issuers=app.issuers(), **(publish or {}))
    (folder / "root.json").write_bytes(publisher.root)
    providers: dict[str, Any] = {
        # One try each, so that a test counts hops; those about retries ask for more.
        name: {"base_url": upstream.base_url, "api_key": "ACME_KEY", "timeout_s": 5, "retries": 0}
        for name, upstream in upstreams.items()
    }
    if change is not None:
        change(providers)
    config = settings(folder, providers, **changes)
    config.manifest.cache.parent.mkdir(parents=True, exist_ok=True)
    keeper = ManifestKeeper(
        url=None, channel="prod", root=publisher.root, cache=config.manifest.cache
    )
    keeper.accept(bundle, etag=None)
    all_services: list[Services] = []

    @asynccontextmanager
    async def opening() -> AsyncGenerator[Services]:
        async with open_services(config, environment=environment, clock=clock) as services:
            all_services.append(services)
            yield services

    async with (
        serving(create_app(opening)) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield Running(url, all_services[0], app, publisher, client, clock)
