"""``make bench``: speed as ratios within one run. Name sections to run only those.

Figures depend on the machine; the ratios much less. A section that lacks a tool says which.
``python -m bench.rooms`` times nothing: it counts how far one request walks through the modules.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import (
    analysing,
    choosing,
    consoling,
    deciding,
    detecting,
    embedding,
    latency_world,
    ledgers,
    outage,
    recording,
    reporting,
    rivals,
    routing_quality,
    serving,
    simulating,
    slow_readers,
    trusting,
    verifying,
)
from bench.processes import Unavailable

Rows = list[tuple[str, str, str]]

SECTIONS: dict[str, Callable[[Path], Rows]] = {
    "analyse": lambda _: analysing.rows(),
    "console": consoling.rows,
    "decide": lambda _: deciding.rows(),
    "detect": lambda _: detecting.rows(),
    "latency": lambda _: latency_world.rows(),
    "ledger": ledgers.rows,
    "quality": lambda _: routing_quality.rows(),
    "records": recording.rows,
    "sdk": embedding.rows,
    "serve": serving.rows,
    "simulate": lambda _: simulating.rows(),
    "slow": slow_readers.rows,
    "stream": serving.stream_rows,
    "tokens": verifying.rows,
    "trust": trusting.rows,
}

# Install other people's code, so only when asked for: `make bench-rivals`.
# These take minutes: `python -m bench latencies outage race reports`.
ASKED_FOR: dict[str, Callable[[Path], Rows]] = {
    "choose": lambda _: choosing.rows(),
    "latencies": lambda _: latency_world.rows_of_many(),
    "outage": outage.rows,
    "race": ledgers.race_rows,
    "reports": lambda _: reporting.rows(),
    "rivals": rivals.rows,
}


def main() -> int:
    """Run the sections named, or all."""
    console = Console()
    chosen = sys.argv[1:] or list(SECTIONS)
    sections = {**SECTIONS, **ASKED_FOR}
    unknown = [name for name in chosen if name not in sections]
    if unknown:
        console.print(f"no section {', '.join(unknown)}; there are {', '.join(sections)}")
        return 2
    for name in chosen:
        table = Table("what", "measured", "aim", title=name, title_justify="left")
        with tempfile.TemporaryDirectory(prefix="waypost-bench-") as folder:
            try:
                for row in sections[name](Path(folder)):
                    table.add_row(*row)
            except Unavailable as exc:
                console.print(f"{name}: skipped, {exc}")
                continue
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
