"""Runs ``waypost demo`` as a user would: as a process, with a temporary directory of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAYPOST = Path(sys.executable).with_name("waypost")

# Keys of whoever runs the tests must not make them spend.
_KEYS = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "WAYPOST_LIVE_BASE_URL", "WAYPOST_LIVE_API_KEY"}


def environment(tmp: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which all temporary files land below ``tmp``."""
    own = {name: value for name, value in os.environ.items() if name not in _KEYS}
    return {**own, "TMPDIR": str(tmp), "COLUMNS": "100", **(extra or {})}


def run_demo(
    *options: str, tmp: Path, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return the finished process of ``waypost demo options``."""
    return subprocess.run(
        [WAYPOST, "demo", *options],
        env=environment(tmp, extra),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@dataclass
class KeptDemo:
    """A demonstration that is still running. ``told`` is the JSON it wrote."""

    process: subprocess.Popen[str]
    told: dict[str, Any]
    tmp: Path

    def stop(self, how: signal.Signals) -> int:
        """Return the exit code after sending ``how``."""
        self.process.send_signal(how)
        return self.process.wait(30)

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Return what ``command`` came to, in a shell with the two variables it told to set."""
        export = self.told["next"][0]["command"]
        assert export.startswith("export ")
        return subprocess.run(
            ["bash", "-c", f"{export}\n{command}"],
            env=environment(self.tmp),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextmanager
def starting_demo(tmp: Path) -> Generator[subprocess.Popen[str], None, None]:
    """Run ``waypost demo --keep --json``; enter at once."""
    process = subprocess.Popen(
        [WAYPOST, "demo", "--keep", "--json"],
        env=environment(tmp),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal; some shells start background jobs deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        process.stdout.close()
        process.stderr.close()


@contextmanager
def kept_demo(tmp: Path) -> Generator[KeptDemo, None, None]:
    """Run ``waypost demo --keep --json``; enter when it has played all and waits."""
    with starting_demo(tmp) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":  # the document's own end; inner ones are indented
                break
        assert lines, process.stderr.read()
        yield KeptDemo(process, json.loads("".join(lines)), tmp)


def wait_for(condition: Callable[[], bool], *, deadline_s: float = 30.0) -> None:
    """Return when ``condition`` holds; other processes make it so."""
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
