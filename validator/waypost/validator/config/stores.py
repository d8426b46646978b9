"""Where budgets, records and what may be used only once are kept.

The address of a store on the network may hold a password, so ``dsn`` names a variable.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from waypost.cli.yamlfile import FileModel
from waypost.validator.config.value_types import EnvName, FilePath, NameText, Number, Seconds, wrong

__all__ = ["LedgerConfig", "PeersConfig", "RecordsConfig", "ReplayConfig"]


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
        on_loss: when the store has forgotten what was spent: ``refuse`` all until a person has
            rebuilt it, or ``rebuild`` it from the decision records at once.
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
    lease_percent: Annotated[Number, Field(gt=0, le=50)] = 5.0
    when_down: Literal["fail_closed", "spend_leases"] = "fail_closed"
    on_loss: Literal["refuse", "rebuild"] = "refuse"

    @model_validator(mode="after")
    def _is_reachable(self) -> "LedgerConfig":
        if (self.store == "sqlite") == (self.dsn is not None):
            raise wrong(
                f"store: {self.store} {'has no' if self.dsn else 'needs'} dsn, the name of"
                " an environment variable with the store's address"
            )
        if self.when_down == "spend_leases" and not self.leased:
            raise wrong("when_down: spend_leases needs leased: true; without, nothing is at hand")
        return self


class RecordsConfig(FileModel):
    """Where decision records are kept, and for how long.

    Attributes:
        path: SQLite's file, or the folder of JSON lines.
        dsn: name of the environment variable that holds PostgreSQL's connection string.
        totals_days: how long totals by hour and day and feedback are kept.
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
            raise wrong("store: postgres needs dsn, the name of a variable; no other store has it")
        if self.totals_days < self.retain_days:
            raise wrong("totals_days must be retain_days or more, or records would lack totals")
        return self


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
            raise wrong("store: redis and dsn, a variable with Redis' address, go together")
        return self


class PeersConfig(FileModel):
    """Where validators tell each other which models rest; by default, the ledger's Redis if any.

    Attributes:
        dsn: name of the environment variable that holds Redis' address.
        prefix: tells several deployments in one Redis apart.
    """

    dsn: EnvName
    prefix: NameText = "waypost"
