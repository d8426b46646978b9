"""The SDK as typed code uses it: checked with the suite's types, never run."""

from collections.abc import Awaitable
from pathlib import Path
from typing import assert_type

import anthropic
import httpx
import httpx2
import openai

from waypost.client import (
    AsyncWaypost,
    Choice,
    Explanation,
    Freshness,
    Measured,
    TrustError,
    Waypost,
)
from waypost.client.testing import FakeValidator, StaticManifest, static_waypost
from waypost.shared.contracts import Policy


def token() -> str:
    return ""


async def atoken() -> str:
    return ""


def blocking() -> None:
    with Waypost(manifest_url="", root=Path("root.json"), token=token, data=["phi"]) as wp:
        assert_type(wp, Waypost)
        assert_type(wp.base_url, str)
        assert_type(wp.freshness, Freshness)
        assert_type(wp.last_error, TrustError | None)
        assert_type(wp.refresh(), bool)
        assert_type(wp.http_client(), httpx.Client)
        assert_type(wp.http_client(timeout=5, transport=httpx.HTTPTransport()), httpx.Client)
        openai.OpenAI(base_url=wp.base_url, http_client=wp.httpx2_client())
        anthropic.Anthropic(base_url=wp.base_url, http_client=wp.httpx2_client())
        measured = wp.measure([{"role": "user", "content": "Hello"}], tools=[{}])
        assert_type(measured, Measured)
        with wp.facts(data="phi", tags=("a", "b"), interactive=None):
            choice = wp.choose(measured)
        assert_type(choice, Choice)
        assert_type(choice.model, str | None)
        assert_type(choice.cost_nusd, int | None)
        assert_type(choice.exclusions, dict[str, str])
        assert_type(wp.explain(choice), Explanation)


async def awaiting() -> None:
    async with AsyncWaypost(manifest_url="", root=b"", token=atoken, cache_dir=False) as wp:
        assert_type(wp, AsyncWaypost)
        assert_type(await wp.refresh(), bool)
        assert_type(wp.choose("Hello"), Choice)
        assert_type(wp.http_client(), httpx.AsyncClient)
        assert_type(wp.httpx2_client(), httpx2.AsyncClient)
        openai.AsyncOpenAI(base_url=wp.base_url, http_client=wp.httpx2_client())
        closing: Awaitable[None] = wp.aclose()
        await closing
    AsyncWaypost(manifest_url="", root=b"", token=token)
    AsyncWaypost(manifest_url="", root=b"", token="fixed")


def misused(policy: Policy) -> None:
    Waypost(manifest_url="", root=b"", token=atoken)  # type: ignore[arg-type]
    Waypost(manifest_url="", root=b"", chanel="prod")  # type: ignore[call-arg]
    Waypost(manifest_url="", root=b"", token=1)  # type: ignore[arg-type]


def testing(policy: Policy) -> None:
    assert_type(static_waypost(policy, tier="free", tags="a"), Waypost)
    Waypost(manifest=StaticManifest(policy))
    assert_type(FakeValidator(policy).transport(), httpx.MockTransport)
