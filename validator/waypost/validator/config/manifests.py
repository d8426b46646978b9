"""Which signed manifests are served: the one in force, and a candidate on trial."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from waypost.cli.yamlfile import FileModel
from waypost.validator.config.budgets import SpendRule
from waypost.validator.config.value_types import (
    Channel,
    EnvName,
    FilePath,
    Fraction,
    Number,
    Seconds,
    http_url,
    wrong,
)

__all__ = ["CanaryConfig", "CandidateConfig", "ManifestConfig", "SendConfig"]


class ManifestConfig(FileModel):
    """Where the signed manifest comes from.

    Attributes:
        url: the edge's ``bundle.json``; without one, bundles come by ``PUT /admin/bundle``.
        projection: ``full`` if that bundle has what the operator marked private as well.
        access_token: name of the environment variable that holds what the edge wants as bearer
            for a ``full`` bundle.
        root: the trusted root this validator starts from.
        cache: last good bundle, so that a restart needs no network.
        refresh_s: how often to ask for a newer one; jittered by a fifth.
        grace_s: how long an expired manifest is still served on.
        admin: whether ``PUT /admin/bundle`` is answered; a bundle is its own authority.
    """

    url: str | None = None
    projection: Literal["client", "full"] = "client"
    access_token: EnvName | None = None
    root: FilePath
    cache: FilePath = Path("state/manifest.json")
    refresh_s: Seconds = 30.0
    grace_s: Annotated[int, Field(ge=0, le=7 * 86_400)] = 3_600
    admin: bool = False

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        return None if url is None else str(http_url(url))


class CanaryConfig(FileModel):
    """How many callers a candidate serves, and what ends that.

    Attributes:
        share: of the callers, always the same ones.
        min_requests: of each side before anything is judged.
        max_failed, max_refused, max_bad: how much higher the share of failures, refusals and bad
            ratings may surely be (0.02: two points).
        max_cost: how much dearer a request may surely be (0.2: a fifth).
    """

    share: Fraction
    min_requests: Annotated[int, Field(ge=20)] = 200
    max_failed: Fraction = 0.02
    max_refused: Fraction = 0.02
    max_bad: Fraction = 0.05
    max_cost: Annotated[Number, Field(ge=0, le=100)] = 0.2


class SendConfig(FileModel):
    """How many shadowed requests are also sent where the candidate would, and who pays.

    Attributes:
        share: of the requests in the shadow, drawn one by one.
        budget: the trial's own; with a hard limit, since nobody else's holds.
        at_once: more are not sent.
        timeout_s: what takes longer is given up, and paid.
    """

    share: Fraction
    budget: Annotated[list[SpendRule], Field(min_length=1)]
    at_once: Annotated[int, Field(ge=1, le=64)] = 4
    timeout_s: Seconds = 60.0

    @field_validator("budget")
    @classmethod
    def _is_limited(cls, budget: list[SpendRule]) -> list[SpendRule]:
        if all(rule.limit_usd is None for rule in budget):
            raise wrong("give the trial a limit_usd: no caller's budget holds for what it sends")
        if any(rule.limit_requests is not None for rule in budget):
            raise wrong("share and at_once bound the requests of a trial; leave limit_requests out")
        return budget


class CandidateConfig(FileModel):
    """A manifest on trial: another channel of the same repository.

    Attributes:
        url: its ``bundle.json``; without one, ``cache`` is a bundle that somebody puts there.
        state: file by which workers tell each other of a roll-back.
        shadow_share: of the callers whose requests it decides along, unseen.
        send: also asks the candidate's choice; without it nothing is sent in the shadow.
        canary: serves a share of the callers.
    """

    channel: Channel
    url: str | None = None
    cache: FilePath = Path("state/candidate.json")
    state: FilePath = Path("state/canary.json")
    shadow_share: Fraction = 0.0
    send: SendConfig | None = None
    canary: CanaryConfig | None = None

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        return None if url is None else str(http_url(url))
