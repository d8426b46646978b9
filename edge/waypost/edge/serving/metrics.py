"""What the edge says of its signatures: in its log, and to whoever scrapes ``/metrics``."""

import logging
import time
from collections.abc import Callable, Mapping

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from waypost.shared.errors import WaypostError
from waypost.shared.trust import LapseTeller, lapses

__all__ = ["Expiry"]

_log = logging.getLogger("waypost.edge")

# The text format of Prometheus 0.0.4.
_HEAD = """\
# HELP waypost_manifest_expires_in_seconds Until the signature of a role lapses.
# TYPE waypost_manifest_expires_in_seconds gauge
"""


class Expiry:
    """When the signatures of the tree lapse."""

    def __init__(
        self, expires: Callable[[], Mapping[str, int]], *, now: Callable[[], float] = time.time
    ) -> None:
        """Args:
        expires: reads role → Unix seconds from the tree; raises WaypostError.
        """
        self._expires = expires
        self._now = now
        self._teller = LapseTeller()

    def tell(self) -> None:
        """Log what has to be signed anew; never raises."""
        try:
            found = lapses(self._expires(), self._now())
        except (WaypostError, ValueError) as exc:
            _log.error("cannot see when the signatures lapse: %s", exc)
            return
        for lapse in self._teller.news(found):
            _log.log(logging.ERROR if lapse.is_urgent else logging.WARNING, "%s", lapse)

    async def metrics(self, _request: Request) -> Response:
        """Answer ``GET /metrics``. It tells no more than the tree does."""
        expires = await to_thread.run_sync(self._expires)
        now = self._now()
        lines = [
            f'waypost_manifest_expires_in_seconds{{role="{role}"}} {at - now:.0f}\n'
            for role, at in expires.items()
        ]
        return PlainTextResponse(
            _HEAD + "".join(lines),
            headers={"Cache-Control": "no-store"},
            media_type="text/plain; version=0.0.4",
        )
