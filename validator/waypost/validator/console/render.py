"""Pages from templates. Rendered in a thread: the event loop has requests to forward."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from anyio import to_thread
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from waypost.validator.console.words import FILTERS, percent, shown

__all__ = ["Asset", "assets", "render"]

_FOLDER = Path(__file__).parent
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """A file that pages use; its address changes with its content, so caches may keep it."""

    body: bytes
    media_type: str
    url: str


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:12]
    return Asset(body, _TYPES[path.suffix], f"/console/static/{path.name}?v={digest}")


@cache
def assets() -> dict[str, Asset]:
    """Return all of them, by name."""
    return {path.name: _read(path) for path in (_FOLDER / "static").iterdir()}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment


async def render(template: str, **context: Any) -> str:  # noqa: ANN401 - what templates use
    """Return the page."""
    shared = {"assets": {name: asset.url for name, asset in assets().items()}, "percent": percent}

    def write() -> str:
        return _environment().get_template(template).render(shared, **context)

    return await to_thread.run_sync(write)
