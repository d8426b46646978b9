"""What operators and auditors see of a validator: metrics, traces, receipts, the console."""

from pathlib import Path
from typing import Annotated

from pydantic import field_validator, model_validator

from waypost.cli.yamlfile import FileModel
from waypost.validator.config.value_types import (
    EnvName,
    FilePath,
    Fraction,
    NameText,
    http_url,
    matching,
    wrong,
)

__all__ = [
    "ConsoleConfig",
    "MetricsConfig",
    "ReceiptsConfig",
    "ReportConfig",
    "TellCostConfig",
    "TracingConfig",
]


class MetricsConfig(FileModel):
    """Whether ``GET /metrics`` is answered, and to whom.

    Attributes:
        token: name of the environment variable that holds what a scraper sends as bearer.
            Without one anybody may read the counts; what accounts have left is told only with it.
        token_file: file with that token instead, made with a random one if it is not there.
        path: folder in which workers that share a port tell each other their counts.
    """

    enabled: bool = True
    token: EnvName | None = None
    token_file: FilePath | None = None
    path: FilePath = Path("state/metrics")

    @model_validator(mode="after")
    def _has_one_token(self) -> "MetricsConfig":
        if self.token is not None and self.token_file is not None:
            raise wrong("metrics has token or token_file, not both")
        return self


class TracingConfig(FileModel):
    """Where traces are sent, as OTLP over HTTP.

    Attributes:
        endpoint: ``http://collector:4318/v1/traces``.
        share: of the requests whose callers do not say whether to trace them.
        headers: name → environment variable with its value, as a collector's key.
    """

    endpoint: str
    share: Fraction = 0.1
    headers: dict[str, EnvName] = {}

    @field_validator("endpoint")
    @classmethod
    def _is_http(cls, endpoint: str) -> str:
        return str(http_url(endpoint))


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
        matching(
            r"[A-Za-z0-9][A-Za-z0-9./_-]{2,127}",
            "should be a name without a scheme, as validator.example/decisions",
        ),
    ]
    key: FilePath = Path("state/receipts.key")
    log: FilePath = Path("state/log")
    header: bool = True


class ReportConfig(FileModel):
    """What report and console say.

    Attributes:
        against: the model that savings are told against; without one, the best-rated in regular
            use.
    """

    against: NameText | None = None


class TellCostConfig(FileModel):
    """What callers are told of the cost of their answers; nothing unless you say so.

    Attributes:
        header: whether answers in one piece carry ``Waypost-Cost``.
        usage: whether the usage of an answer, or of a stream's last event, has a ``cost``.
    """

    header: bool = False
    usage: bool = False


class ConsoleConfig(FileModel):
    """The operator's pages at ``/console``; without a token there are none.

    Attributes:
        token: name of the environment variable that holds what an operator logs in with.
    """

    token: EnvName | None = None
