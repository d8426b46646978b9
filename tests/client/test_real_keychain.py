"""The key in a real keychain: a Secret Service on a message bus of its own, as desktops have it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from support.debian import needs
from support.first_come import kept_thumbprint

SESSION = Path(__file__).parents[1] / "support" / "keychain_session.py"
# A keychain is of whoever is logged in; this one's user is nobody, and has a password.
IN_SESSION = """
printf secret | gnome-keyring-daemon --unlock --components=secrets >/dev/null
"$PYTHON" "$SESSION" kept held
"$PYTHON" "$SESSION" kept
"$PYTHON" "$SESSION" locked
"""

needs_keychain = needs("dbus-run-session", "gnome-keyring-daemon")


def run(home: Path, *command: str) -> list[dict[str, str]]:
    """Run a command as a user whose home this is, and who has no session but what it starts."""
    home.mkdir(exist_ok=True)
    keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    done = subprocess.run(
        command,
        env={
            **keep,
            "HOME": str(home),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_RUNTIME_DIR": str(home),
            "PYTHON": sys.executable,
            "SESSION": str(SESSION),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_keychain
def test_the_key_is_in_the_keychain_and_the_next_process_finds_it_while_it_is_open(
    tmp_path: Path,
) -> None:
    first, second, third = run(tmp_path / "user", "dbus-run-session", "--", "sh", "-c", IN_SESSION)

    assert first["held"] == "-----BEGIN PRIVATE KEY-----"
    assert first["kept"] == second["kept"]
    assert len(first["kept"]) == 43
    # Locked, with nobody there to open it: said, and no key is put where it is less safe.
    assert third["locked"].startswith("store_unavailable: the keychain does not open")
    assert not (tmp_path / "user/data/waypost/dpop.pem").exists()


def test_without_a_session_s_keychain_the_key_is_in_a_file(tmp_path: Path) -> None:
    (told,) = run(tmp_path, sys.executable, str(SESSION), "kept")

    assert told["kept"] == kept_thumbprint(tmp_path / "data/waypost/dpop.pem")
