"""A validator in front of three providers, each of which speaks another dialect."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from support.upstream import Upstream, answering, running_upstream
from support.validator import Running, running_validator
from support.wires import generating, messaging
from support.worlds import a_model, a_policy
from waypost.shared.contracts import ENDPOINTS, HostedTool, Policy, Route

NEWS = HostedTool(name="web_search", call_nusd=10_000_000, calls=3, tokens=1_000)


@dataclass(frozen=True)
class Dialects:
    """The validator, and its providers."""

    validator: Running
    openai: Upstream
    anthropic: Upstream
    gemini: Upstream

    @property
    def all(self) -> tuple[Upstream, ...]:
        return (self.openai, self.anthropic, self.gemini)

    def token(self, **wishes: Any) -> str:  # noqa: ANN401 - see ``Wishes``
        return self.validator.bearer(**wishes).removeprefix("Bearer ")


def three_models() -> Policy:
    """One model per dialect, each of which may be asked by any API."""
    names = ("gpt", "claude", "gemini")
    providers = ("openai", "anthropic", "google")
    return a_policy(
        models=tuple(
            a_model(
                name,
                provider=provider,
                capabilities=("json", "tools", "vision"),
                endpoints=ENDPOINTS,
                quality=50 + place,
                hosted_tools=(NEWS,) if name == "gpt" else UNSET,
            )
            for place, (name, provider) in enumerate(zip(names, providers, strict=True))
        ),
        data_classes={},
        routes=(Route(name="default", models=names),),
        last_resort=(),
    )


@asynccontextmanager
async def running_dialects(folder: Path, **changes: Any) -> AsyncGenerator[Dialects]:  # noqa: ANN401
    """Run it. ``changes`` are settings of providers: by name, what differs."""

    def change(providers: dict[str, Any]) -> None:
        providers["anthropic"] |= {"dialect": "anthropic", "betas": ["files-2025", "thinking-2026"]}
        providers["google"]["dialect"] = "gemini"
        for settings in providers.values():
            # Many tests fail these providers; none is about giving one a rest.
            settings["breaker"] = {"failures": 1_000, "min_calls": 100_000}
        for name, settings in changes.items():
            providers[name] |= settings

    async with (
        running_upstream(answering()) as openai,
        running_upstream(messaging()) as anthropic,
        running_upstream(generating()) as gemini,
        running_validator(
            folder,
            {"openai": openai, "anthropic": anthropic, "google": gemini},
            policy=three_models(),
            change=change,
        ) as validator,
    ):
        yield Dialects(validator, openai, anthropic, gemini)
