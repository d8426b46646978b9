"""Logs as one JSON object per line on standard error, for machines to collect."""

import logging
import sys

import msgspec

from waypost.validator.telemetry.scrubber import Scrubber

__all__ = ["JsonFormatter", "configure_logs", "hide_in_logs"]

_scrubbers: list[Scrubber] = [Scrubber(())]


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON, without the keys that are to be hidden."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _scrubbers[-1].text(msgspec.json.encode(line).decode())


def hide_in_logs(scrubber: Scrubber) -> None:
    """Keep the keys that ``scrubber`` knows out of every log of this process from now on."""
    _scrubbers[:] = [scrubber]


def configure_logs() -> None:
    """Send every log of this process to standard error, from ``info`` upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    # One line per request or refresh, which records and our own log say better.
    for name in ("httpx", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
