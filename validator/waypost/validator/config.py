"""What the operator of a validator writes: ``validator.yaml``, read strictly.

Secrets are never in it: ``api_key`` names an environment variable. Paths are relative to the
file. What may be served to whom is not here either: that is the signed manifest's business.
"""

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, HttpUrl, field_validator, model_validator
from pydantic_core import PydanticCustomError

from waypost.cli.yamlfile import FileError, FileModel, read_yaml
from waypost.shared.contracts import SpendLimit, Window
from waypost.shared.errors import StoreError, WaypostError
from waypost.shared.money import NUSD_PER_USD
from waypost.validator.ledger.base import RateLimit, Scope, scope_of
from waypost.validator.ledger.calendar import Calendar
from waypost.validator.resilience.breaker import BreakerRules

__all__ = [
    "BreakerConfig",
    "Budgets",
    "CanaryConfig",
    "CandidateConfig",
    "ConfigError",
    "ConsoleConfig",
    "DPoPConfig",
    "LedgerConfig",
    "LimitsConfig",
    "ManifestConfig",
    "MetricsConfig",
    "ProviderConfig",
    "PseudonymConfig",
    "ReceiptsConfig",
    "RecordsConfig",
    "ReplayConfig",
    "SpendRule",
    "TracingConfig",
    "ValidatorConfig",
    "load_config",
    "load_pseudonym_key",
]

MIB = 1_048_576
PSEUDONYM_KEY_BYTES = 32


class ConfigError(WaypostError):
    """``validator.yaml`` cannot be used; the message names file, line, field and the mend."""

    code = "config_invalid"


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("config", "{message}", {"message": message})


def _path(value: object) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value:
        raise _wrong("should be the path of a file")
    return Path(value)


def _usd(value: object) -> object:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(InvalidOperation):
            return Decimal(value)
    raise _wrong("write dollars as a plain number, as in 0.50")


def _seconds(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else value


def _pattern(pattern: str, message: str) -> BeforeValidator:
    """Refuse text that does not match, without repeating it: it may be a key in the wrong place."""

    def check(value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise _wrong(message)
        return value

    return BeforeValidator(check)


FilePath = Annotated[Path, BeforeValidator(_path)]
Usd = Annotated[
    Decimal, BeforeValidator(_usd), Field(ge=0, le=9_000_000, decimal_places=9, allow_inf_nan=False)
]
EnvName = Annotated[
    str,
    _pattern(
        r"[A-Za-z_][A-Za-z0-9_]*",
        "should be the name of an environment variable that holds the key",
    ),
]
NameText = Annotated[
    str,
    _pattern(
        r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}",
        "should be a name: up to 64 of A-Z a-z 0-9 . _ : / -, beginning with a letter or digit",
    ),
]
Channel = Annotated[
    str,
    _pattern(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "should be a channel: up to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit",
    ),
]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=86_400)]


def _http_url(value: str) -> HttpUrl:
    try:
        return HttpUrl(value)
    except ValueError:
        # Its own words might quote a password.
        raise _wrong("should be a URL that begins with https:// or http://") from None


def _plain_http(url: str) -> str:
    parsed = _http_url(url)
    if parsed.username or parsed.password or parsed.query or parsed.fragment:
        raise _wrong("give scheme, host and path only; keys belong in the environment")
    # As parsed: what is sent as Host and path holds neither spaces nor letters beyond ASCII.
    return str(parsed).rstrip("/")


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
        return None if url is None else str(_http_url(url))


class BreakerConfig(FileModel):
    """When a model at a provider is given a rest; see ``BreakerRules`` and docs/resilience.md."""

    failures: Annotated[int, Field(ge=1, le=1_000)] = 5
    window_s: Seconds = 30.0
    min_calls: Annotated[int, Field(ge=1, le=100_000)] = 20
    failed_percent: Annotated[int, Field(ge=1, le=100)] = 50
    slow_percent: Annotated[int, Field(ge=1, le=100)] = 80
    slow_after_s: Seconds = 30.0
    first_rest_s: Seconds = 5.0
    last_rest_s: Seconds = 300.0

    @property
    def rules(self) -> BreakerRules:
        """The same as the breaker reads it."""
        return BreakerRules(**self.model_dump())


class ProviderConfig(FileModel):
    """One upstream, by the name that the manifest's models give as ``provider``.

    Attributes:
        base_url: up to and including the version, as SDKs want it: ``https://…/v1``.
        api_key: name of the environment variable that holds the key; absent: no key is sent.
        api_keys: instead, the names of several, used in turn.
        dialect: how it is spoken to.
        apis: what it speaks itself of OpenAI's APIs, if not all four.
        sampling: whether its models take ``temperature``, ``top_p`` and ``top_k``; ``None``: as
            usual for its dialect.
        max_tokens_field: what the provider calls the answer's limit.
        timeout_s: longest silence of the provider; of an unstreamed answer, its whole time.
        retries: how often one request may be sent here again after a failure.
        retry_percent: how many requests more, in per cent, all retries together may make.
        max_concurrency: never more requests at once; fewer when it gets slow.
        simulated: a stand-in, which every table then says.
    """

    base_url: str
    api_key: EnvName | None = None
    api_keys: list[EnvName] = []
    dialect: Literal["anthropic", "gemini", "openai"] = "openai"
    apis: list[Literal["chat.completions", "completions", "embeddings", "responses"]] | None = None
    sampling: bool | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    timeout_s: Seconds = 60.0
    connect_timeout_s: Seconds = 3.0
    retries: Annotated[int, Field(ge=0, le=5)] = 1
    retry_percent: Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=20)] = 20
    max_concurrency: Annotated[int, Field(ge=1, le=100_000)] = 1_024
    breaker: BreakerConfig = BreakerConfig()
    simulated: bool = False

    @property
    def key_names(self) -> list[str]:
        """The environment variables that hold its keys."""
        return self.api_keys if self.api_key is None else [self.api_key]

    @model_validator(mode="after")
    def _one_way_to_name_keys(self) -> "ProviderConfig":
        if self.api_key is not None and self.api_keys:
            raise _wrong("give api_key or api_keys, not both")
        if len(set(self.api_keys)) < len(self.api_keys):
            raise _wrong("api_keys names a variable twice")
        return self

    @model_validator(mode="after")
    def _apis_are_its_own(self) -> "ProviderConfig":
        if self.apis is not None and self.dialect != "openai":
            raise _wrong(f"apis is for dialect openai; {self.dialect} has a fixed set")
        return self

    @field_validator("base_url")
    @classmethod
    def _is_plain_http(cls, url: str) -> str:
        return _plain_http(url)


class LedgerConfig(FileModel):
    """Where budgets are kept.

    Attributes:
        path: SQLite's file.
        durability: of SQLite; ``full`` survives a power cut, ``normal`` a crash of the process.
        dsn: name of the environment variable that holds the address of Redis or PostgreSQL.
        prefix: tells several ledgers in one Redis apart.
        patience_s: how long a request waits for the store.
        leased: whether slices of budgets are taken in advance and spent without a round trip.
        lease_s: how long a slice is kept.
        lease_percent: of what is left, at most, in one slice.
        when_down: ``spend_leases`` goes on with the slices at hand while the store is down.
    """

    store: Literal["sqlite", "redis", "postgres"] = "sqlite"
    path: FilePath = Path("state/ledger.sqlite")
    durability: Literal["full", "normal"] = "normal"
    dsn: EnvName | None = None
    prefix: NameText = "waypost"
    patience_s: Seconds = 2.0
    leased: bool = False
    lease_s: Annotated[int, Field(ge=5, le=3_600)] = 10
    lease_percent: Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=50)] = 5.0
    when_down: Literal["fail_closed", "spend_leases"] = "fail_closed"

    @model_validator(mode="after")
    def _is_reachable(self) -> "LedgerConfig":
        if (self.store == "sqlite") == (self.dsn is not None):
            raise _wrong(
                f"store: {self.store} {'has no' if self.dsn else 'needs'} dsn, the name of"
                " an environment variable with the store's address"
            )
        if self.when_down == "spend_leases" and not self.leased:
            raise _wrong("when_down: spend_leases needs leased: true; without, nothing is at hand")
        return self


class RecordsConfig(FileModel):
    """Where decision records are kept, and for how long.

    Attributes:
        path: SQLite's file, or the folder of JSON lines.
        dsn: name of the environment variable that holds PostgreSQL's connection string.
        totals_days: how long totals by the hour and feedback are kept.
        spill: folder for records while the store is down, up to ``spill_mib`` per process.
        prompts: whether a record holds the newest user message, redacted.
    """

    store: Literal["sqlite", "postgres", "jsonl"] = "sqlite"
    path: FilePath = Path("state/records.sqlite")
    dsn: EnvName | None = None
    retain_days: Annotated[int, Field(ge=1, le=3_650)] = 30
    totals_days: Annotated[int, Field(ge=1, le=3_650)] = 400
    spill: FilePath = Path("state/spill")
    spill_mib: Annotated[int, Field(ge=1, le=1_048_576)] = 512
    prompts: bool = False

    @model_validator(mode="after")
    def _is_reachable(self) -> "RecordsConfig":
        if (self.store == "postgres") != (self.dsn is not None):
            raise _wrong("store: postgres needs dsn, the name of a variable; no other store has it")
        if self.totals_days < self.retain_days:
            raise _wrong("totals_days must be retain_days or more, or records would lack totals")
        return self


class MetricsConfig(FileModel):
    """Whether ``GET /metrics`` is answered, and to whom.

    Attributes:
        token: name of the environment variable that holds what a scraper sends as bearer.
            Without one anybody may read the counts; what accounts have left is told only with it.
        path: folder in which workers that share a port tell each other their counts.
    """

    enabled: bool = True
    token: EnvName | None = None
    path: FilePath = Path("state/metrics")


class TracingConfig(FileModel):
    """Where traces are sent, as OTLP over HTTP.

    Attributes:
        endpoint: ``http://collector:4318/v1/traces``.
        share: of the requests whose callers do not say whether to trace them.
        headers: name → environment variable with its value, as a collector's key.
    """

    endpoint: str
    share: Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=1)] = 0.1
    headers: dict[str, EnvName] = {}

    @field_validator("endpoint")
    @classmethod
    def _is_http(cls, endpoint: str) -> str:
        return str(_http_url(endpoint))


class ReceiptsConfig(FileModel):
    """Whether decisions are provable: a signed receipt per answer, a sealed log of the records.

    Attributes:
        origin: the log's name, unique to this machine: ``validator.example/decisions``.
        key: file with the secret; made, readable by its owner alone, if it is not there.
        log: folder of the log.
        header: whether answers carry ``Waypost-Receipt``.
    """

    origin: Annotated[
        str,
        _pattern(
            r"[A-Za-z0-9][A-Za-z0-9./_-]{2,127}",
            "should be a name without a scheme, as validator.example/decisions",
        ),
    ]
    key: FilePath = Path("state/receipts.key")
    log: FilePath = Path("state/log")
    header: bool = True


Fraction = Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=1)]


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
    max_cost: Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=100)] = 0.2


class CandidateConfig(FileModel):
    """A manifest on trial: another channel of the same repository.

    Attributes:
        url: its ``bundle.json``; without one, ``cache`` is a bundle that somebody puts there.
        state: file by which workers tell each other of a roll-back.
        shadow_share: of the callers whose requests it decides along, unseen.
        canary: serves a share of the callers.
    """

    channel: Channel
    url: str | None = None
    cache: FilePath = Path("state/candidate.json")
    state: FilePath = Path("state/canary.json")
    shadow_share: Fraction = 0.0
    canary: CanaryConfig | None = None

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        return None if url is None else str(_http_url(url))


class ConsoleConfig(FileModel):
    """The operator's pages at ``/console``; without a token there are none.

    Attributes:
        token: name of the environment variable that holds what an operator logs in with.
    """

    token: EnvName | None = None


class SpendRule(FileModel):
    """What may be spent in each window, and from where on callers are warned.

    Attributes:
        warn_usd: nothing is refused for it.
        limit_requests, limit_tokens: in any stretch of the window's length.
    """

    window: Window
    limit_usd: Usd | None = None
    warn_usd: Usd | None = None
    limit_requests: Annotated[int, Field(ge=0, le=10**9)] | None = None
    limit_tokens: Annotated[int, Field(ge=0, le=10**12)] | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> "SpendRule":
        rates = (self.limit_requests, self.limit_tokens)
        if self.limit_usd is None and self.warn_usd is None and rates == (None, None):
            raise _wrong("give limit_usd, warn_usd, limit_requests or limit_tokens")
        if rates != (None, None) and self.window not in ("minute", "hour", "day", "week"):
            raise _wrong("requests and tokens are limited per minute, hour, day or week")
        if self.warn_usd is not None and self.window == "request":
            raise _wrong("a single request warns nobody; leave warn_usd out, or name a window")
        return self

    def _spend(self, usd: Decimal | None) -> Iterable[SpendLimit]:
        if usd is not None:
            yield SpendLimit(window=self.window, limit_nusd=int(usd * NUSD_PER_USD))

    @property
    def limits(self) -> Iterable[SpendLimit]:
        """The hard limit in nano-dollars, if there is one."""
        return self._spend(self.limit_usd)

    @property
    def warnings(self) -> Iterable[SpendLimit]:
        """The soft limit in nano-dollars, if there is one."""
        return self._spend(self.warn_usd)

    @property
    def rates(self) -> Iterable[RateLimit]:
        """The limits of requests and tokens."""
        if self.window in ("minute", "hour", "day", "week"):
            if self.limit_requests is not None:
                yield RateLimit(unit="requests", window=self.window, limit=self.limit_requests)
            if self.limit_tokens is not None:
                yield RateLimit(unit="tokens", window=self.window, limit=self.limit_tokens)


Rules = list[SpendRule]
# By name; "*" is for whoever is not listed.
RulesByName = dict[str, Rules]


class Budgets(FileModel):
    """The ledger's own limits. A token may only lower them.

    Attributes:
        default: for an account that is not listed; empty: what the token says is all.
        accounts: per account, instead of the default.
        users: by the token's subject.
        overall: for all requests together.
        unlimited: whether an account may spend that neither this nor its token limits.
        time_zone: whose days, weeks and months are counted.
        webhook: name of the environment variable with the URL that is told of soft limits.
    """

    default: Rules = []
    accounts: RulesByName = {}
    users: RulesByName = {}
    tenants: RulesByName = {}
    tiers: RulesByName = {}
    providers: RulesByName = {}
    models: RulesByName = {}
    overall: Rules = []
    unlimited: bool = False
    time_zone: str = "UTC"
    webhook: EnvName | None = None

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        try:
            if name != "UTC":
                ZoneInfo(name)
        except (ValueError, OSError):
            raise _wrong("should be a time zone, as in Europe/Berlin") from None
        return name

    @property
    def calendar(self) -> Calendar:
        """When the windows begin and end."""
        # A small machine may lack the database of time zones.
        return Calendar() if self.time_zone == "UTC" else Calendar(ZoneInfo(self.time_zone))

    def scope(self, name: str) -> Scope:
        """Return any scope by its name, with the limits set here; a user by the subject."""
        kind, _, who = name.partition(":")
        by_kind = {
            "user": self.users,
            "tenant": self.tenants,
            "tier": self.tiers,
            "provider": self.providers,
            "model": self.models,
        }
        if kind == "account":
            return self.account(who)
        return _scope(name, self.overall if name == "global" else _rules(by_kind[kind], who))

    def account(self, name: str, ceilings: Iterable[SpendLimit] = ()) -> Scope:
        """Return the account ``name``, also within the ``ceilings`` of its token."""
        return _scope(f"account:{name}", self.accounts.get(name, self.default), ceilings)

    def caller(
        self, *, subject: str, pseudonym: str, tenant: str | None, tier: str
    ) -> tuple[Scope, ...]:
        """Return what else a caller's requests count for, whatever serves them."""
        scopes = [_scope(f"user:{pseudonym}", _rules(self.users, subject))]
        if tenant is not None:
            scopes.append(_scope(f"tenant:{tenant}", _rules(self.tenants, tenant)))
        scopes.append(_scope(f"tier:{tier}", _rules(self.tiers, tier)))
        if self.overall:
            scopes.append(_scope("global", self.overall))
        return tuple(scopes)

    def target(self, *, provider: str, model: str) -> tuple[Scope, ...]:
        """Return what a request counts for that ``model`` serves."""
        return (
            _scope(f"provider:{provider}", _rules(self.providers, provider)),
            _scope(f"model:{model}", _rules(self.models, model)),
        )


def _rules(by_name: RulesByName, name: str) -> Rules:
    rules = by_name.get(name)
    return by_name.get("*", []) if rules is None else rules


def _scope(name: str, rules: Rules, ceilings: Iterable[SpendLimit] = ()) -> Scope:
    return scope_of(
        name,
        (*ceilings, *(limit for rule in rules for limit in rule.limits)),
        warnings=(warning for rule in rules for warning in rule.warnings),
        rates=tuple(rate for rule in rules for rate in rule.rates),
    )


class PseudonymConfig(FileModel):
    """The key that turns a token's subject into the pseudonym in records.

    A file is generated when absent. Whoever holds the key can tell whether a record is about a
    given subject; losing it only ends that.
    """

    path: FilePath | None = None
    env: EnvName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "PseudonymConfig":
        if (self.path is None) == (self.env is None):
            raise _wrong("give exactly one of path and env")
        return self


class DPoPConfig(FileModel):
    """How clients prove that they hold the key of their token. Absent: bound tokens are refused.

    Attributes:
        origins: what clients put before the path of a request: scheme, host and port as they
            see them, and a prefix that a proxy takes off.
        nonce: ``required``: a proof must hold a nonce of ours, which limits for how long one
            can be made in advance; ``optional``: asked for when a client's clock is off.
        max_age_s: how far a client's clock may be off, else.
    """

    origins: Annotated[list[str], Field(min_length=1)]
    nonce: Literal["required", "optional"] = "optional"
    max_age_s: Annotated[int, Field(ge=5, le=600)] = 60

    @field_validator("origins")
    @classmethod
    def _are_plain(cls, origins: list[str]) -> list[str]:
        return [_plain_http(origin) for origin in origins]


class ReplayConfig(FileModel):
    """Where proofs and one-time tokens are remembered.

    Attributes:
        store: ``sqlite`` for all workers on this machine, ``redis`` for all machines.
        dsn: name of the environment variable that holds Redis' address.
        prefix: tells several deployments in one Redis apart.
    """

    store: Literal["sqlite", "redis"] = "sqlite"
    path: FilePath = Path("state/replay.sqlite")
    dsn: EnvName | None = None
    prefix: NameText = "waypost"

    @model_validator(mode="after")
    def _is_reachable(self) -> "ReplayConfig":
        if (self.store == "redis") != (self.dsn is not None):
            raise _wrong("store: redis and dsn, a variable with Redis' address, go together")
        return self


class LimitsConfig(FileModel):
    """What one request may take of this machine."""

    body_bytes: Annotated[int, Field(ge=1_024, le=256 * MIB)] = 4 * MIB
    body_timeout_s: Seconds = 30.0


class ValidatorConfig(FileModel):
    """All of ``validator.yaml``.

    Attributes:
        audience: what a token's ``aud`` must be, exactly.
        channel: which channel's manifest this validator obeys.
        detectors: kind of finding → data class that it raises; see docs/compliance.md.
    """

    audience: Annotated[str, Field(min_length=1, max_length=300)]
    channel: Channel = "prod"
    manifest: ManifestConfig
    providers: Annotated[dict[NameText, ProviderConfig], Field(min_length=1)]
    ledger: LedgerConfig = LedgerConfig()
    records: RecordsConfig = RecordsConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig | None = None
    receipts: ReceiptsConfig | None = None
    candidate: CandidateConfig | None = None
    budgets: Budgets = Budgets()
    pseudonym: PseudonymConfig = PseudonymConfig(path=Path("state/pseudonym.key"))
    limits: LimitsConfig = LimitsConfig()
    console: ConsoleConfig = ConsoleConfig()
    dpop: DPoPConfig | None = None
    replay: ReplayConfig = ReplayConfig()
    detectors: dict[str, NameText] = {}

    def below(self, folder: Path) -> "ValidatorConfig":
        """Return the same with relative paths taken from ``folder``."""
        manifest = self.manifest
        return self.model_copy(
            update={
                "manifest": manifest.model_copy(
                    update={"root": folder / manifest.root, "cache": folder / manifest.cache}
                ),
                "ledger": self.ledger.model_copy(update={"path": folder / self.ledger.path}),
                "replay": self.replay.model_copy(update={"path": folder / self.replay.path}),
                "metrics": self.metrics.model_copy(update={"path": folder / self.metrics.path}),
                "candidate": self.candidate
                and self.candidate.model_copy(
                    update={
                        "cache": folder / self.candidate.cache,
                        "state": folder / self.candidate.state,
                    }
                ),
                "receipts": self.receipts
                and self.receipts.model_copy(
                    update={"key": folder / self.receipts.key, "log": folder / self.receipts.log}
                ),
                "records": self.records.model_copy(
                    update={
                        "path": folder / self.records.path,
                        "spill": folder / self.records.spill,
                    }
                ),
                "pseudonym": self.pseudonym.model_copy(
                    update={"path": self.pseudonym.path and folder / self.pseudonym.path}
                ),
            }
        )


def load_config(path: Path) -> ValidatorConfig:
    """Return the configuration in ``path``, its paths made absolute.

    Raises:
        ConfigError: naming what cannot be read, or each wrong field with its line.
    """
    try:
        file = read_yaml(path)
    except FileError as exc:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; `waypost init` writes one") from None
        raise ConfigError(exc.message) from None
    config = file.read(ValidatorConfig)
    if config is None or file.findings:
        raise ConfigError(FileError(file.findings).message)
    return config.below(path.parent.absolute())


def load_pseudonym_key(config: PseudonymConfig, environment: Mapping[str, str]) -> bytes:
    """Return the key; a file that does not exist yet is made, readable by its owner alone.

    Raises:
        ConfigError: the variable is unset, or what was found is shorter than 32 bytes.
        StoreError: the file cannot be read or written.
    """
    if config.env is not None:
        key = environment.get(config.env, "").encode()
        where = f"environment variable {config.env}"
    else:
        assert config.path is not None  # noqa: S101 - the model holds exactly one of the two
        where = str(config.path)
        try:
            key = _made_once(config.path)
        except OSError as exc:
            raise StoreError(f"{where} cannot be used as the pseudonym key: {exc}") from exc
    if len(key) < PSEUDONYM_KEY_BYTES:
        raise ConfigError(f"the pseudonym key in {where} needs {PSEUDONYM_KEY_BYTES} bytes or more")
    return key


def _made_once(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_hex(PSEUDONYM_KEY_BYTES).encode())
            # Of several workers starting at once one link holds, and all read the same key.
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.unlink(draft)
    return path.read_bytes().strip()
