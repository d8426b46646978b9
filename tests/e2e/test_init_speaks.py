"""What ``waypost init`` writes speaks to each provider as that provider wants it."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.upstream import Behaviour, Exchange, Upstream, answering, running_upstream
from support.validator import Running, running_validator
from support.wires import messaging
from waypost.edge.authoring.load_policy import load_policy
from waypost.edge.commands.init_project import init_project
from waypost.shared.contracts import Policy

pytestmark = pytest.mark.anyio

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
# What each of them has, by its documentation on 2026-11-28; all else is a 404 there. Mistral and
# medcloud stand for whoever has chat completions alone.
HAVE: dict[str, frozenset[str]] = {
    "anthropic": frozenset({MESSAGES}),
    "groq": frozenset({CHAT}),
    "medcloud": frozenset({CHAT}),
    "mistral": frozenset({CHAT, "/v1/embeddings"}),
    "openai": frozenset({CHAT, RESPONSES, "/v1/completions", "/v1/embeddings"}),
}
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    MESSAGES: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
    RESPONSES: {"input": "hi"},
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def responding(exchange: Exchange) -> None:
    answer: dict[str, Any] = {"id": "r", "object": "response", "model": "m", "status": "completed", "output": [],
              "usage": {"input_tokens": 3, "output_tokens": 2}}  # fmt: skip
    await exchange.respond(200, json.dumps(answer).encode())


def strict(name: str) -> Behaviour:
    """Answer what the provider has, and 404 to all else."""
    answers = {CHAT: answering(), MESSAGES: messaging(), RESPONSES: responding}

    async def behave(exchange: Exchange) -> None:
        path = exchange.seen.path
        if path not in HAVE[name]:
            await exchange.respond(404, b'{"detail":"Not Found"}')
        else:
            await answers[path](exchange)

    return behave


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[tuple[Running, dict[str, Upstream], Policy]]:
    project = tmp_path / "project"
    init_project(project, key=Ed25519PrivateKey.generate())
    policy = load_policy(project / "policy.yaml", channel="prod", version=1, issued_at=1).full
    written = yaml.safe_load((project / "validator.yaml").read_text())["providers"]
    async with AsyncExitStack() as stack:
        upstreams = {
            name: await stack.enter_async_context(running_upstream(strict(name))) for name in HAVE
        }

        def as_written(providers: dict[str, Any]) -> None:
            for name, settings in written.items():
                kept = {
                    key: settings[key] for key in settings if key not in ("base_url", "api_key")
                }
                providers[name] |= kept

        running = running_validator(tmp_path, upstreams, policy=policy, change=as_written)
        yield await stack.enter_async_context(running), upstreams, policy


async def test_every_api_reaches_every_model_of_what_init_writes_in_words_that_its_provider_has(
    world: tuple[Running, dict[str, Upstream], Policy],
) -> None:
    validator, upstreams, policy = world

    for path, body in ASKED.items():
        for model in policy.models:
            answer = await validator.client.post(
                path,
                json={**body, "model": model.id},
                headers=validator.headers(tier="enterprise"),
            )
            assert answer.status_code == 200, (path, model.id, answer.text)
            assert f'model="{model.id}"' in answer.headers["waypost-decision"]

    for name, upstream in upstreams.items():
        assert {seen.path for seen in upstream.seen} <= HAVE[name]
