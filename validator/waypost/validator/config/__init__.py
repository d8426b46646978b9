"""What the operator of a validator writes: ``validator.yaml``, read strictly.

Secrets are never in it: ``api_key`` names an environment variable. Paths are relative to the
file. What may be served to whom is not here either: that is the signed manifest's business.
"""

from pathlib import Path
from typing import Annotated, cast

from pydantic import Field

from waypost.cli.yamlfile import FileError, FileModel, YAMLFile, did_you_mean, read_yaml
from waypost.validator.config.budgets import Budgets
from waypost.validator.config.callers import CORSConfig, DPoPConfig, PseudonymConfig
from waypost.validator.config.manifests import CandidateConfig, ManifestConfig
from waypost.validator.config.oversight import (
    ConsoleConfig,
    MetricsConfig,
    ReceiptsConfig,
    ReportConfig,
    TellCostConfig,
    TracingConfig,
)
from waypost.validator.config.providers import ProviderConfig
from waypost.validator.config.stores import (
    LedgerConfig,
    PeersConfig,
    RecordsConfig,
    ReplayConfig,
)
from waypost.validator.config.value_types import Channel, ConfigError, NameText, Seconds

__all__ = ["ConfigError", "LimitsConfig", "ValidatorConfig", "load_config"]

MIB = 1_048_576


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
    report: ReportConfig = ReportConfig()
    tell_cost: TellCostConfig = TellCostConfig()
    cors: CORSConfig = CORSConfig()
    dpop: DPoPConfig | None = None
    replay: ReplayConfig = ReplayConfig()
    peers: PeersConfig | None = None
    detectors: dict[str, NameText] = {}

    def below(self, folder: Path) -> "ValidatorConfig":
        """Return the same with relative paths taken from ``folder``."""
        manifest = self.manifest
        return self.model_copy(
            update={
                "manifest": manifest.model_copy(
                    update={"root": folder / manifest.root, "cache": folder / manifest.cache}
                ),
                "providers": {
                    name: provider.below(folder) for name, provider in self.providers.items()
                },
                "ledger": self.ledger.model_copy(update={"path": folder / self.ledger.path}),
                "replay": self.replay.model_copy(update={"path": folder / self.replay.path}),
                "metrics": self.metrics.model_copy(
                    update={
                        "path": folder / self.metrics.path,
                        "token_file": None
                        if self.metrics.token_file is None
                        else folder / self.metrics.token_file,
                    }
                ),
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
    _check_detectors(file)
    if config is None or file.findings:
        raise ConfigError(FileError(file.findings).message)
    return config.below(path.parent.absolute())


def _check_detectors(file: YAMLFile) -> None:
    found = file.value.get("detectors")
    if not isinstance(found, dict) or not found:
        return
    # Late: what detects takes errors from here.
    from waypost.validator.detectors import undetected

    for kind, known in undetected(cast("dict[str, object]", found)).items():
        file.find(("detectors", kind), f"nothing detects '{kind}'{did_you_mean(kind, known)}")
