"""Files that are there whole or not at all, whatever ends the process or fills the disk."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["make_once", "replace_file"]


def replace_file(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``; raises OSError, and then it holds what it did before."""
    draft = _draft(path, data)
    try:
        os.replace(draft, path)
    except OSError:
        _forget(draft)
        raise


def make_once(path: Path, data: bytes) -> bytes:
    """Return what ``path`` holds: ``data``, readable by its owner alone, if it was not there.

    Of several processes that start at once one makes it, and all read the same.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path, data)
        try:
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            _forget(draft)
    return path.read_bytes()


def _draft(path: Path, data: bytes) -> str:
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except OSError:
        _forget(draft)  # on a full disk drafts would pile up
        raise
    return draft


def _forget(draft: str) -> None:
    with suppress(OSError):
        os.unlink(draft)
