"""What every page of the console shares: its frame, its window of time, its services."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse

from waypost.cli.http_body import read_body
from waypost.shared.errors import InvalidRequestError
from waypost.validator.console.render import render
from waypost.validator.console.session import ALL_SESSIONS, Session
from waypost.validator.console.words import when
from waypost.validator.http.problems import OK
from waypost.validator.records import RecordFilter
from waypost.validator.records.savings import Alone, alone_of
from waypost.validator.services import Services

__all__ = [
    "DAY",
    "HOUR_MS",
    "WINDOWS",
    "Window",
    "alone_in",
    "form_of",
    "is_over",
    "page",
    "services_of",
    "window_of",
]

MAX_FORM_BYTES = 524_288
MAX_FIELDS = 64
FORM_TIMEOUT_S = 10.0

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000


class Window(NamedTuple):
    """A stretch of time up to now, and the steps a chart of it has."""

    name: str
    title: str
    steps: int
    step_ms: int

    @property
    def span_ms(self) -> int:
        """How long it is."""
        return self.steps * self.step_ms

    def starts_ms(self, now: float) -> range:
        """Return the start of each step, the last one being under way; whole steps from 1970."""
        last = int(now * 1_000) // self.step_ms * self.step_ms
        return range(last - (self.steps - 1) * self.step_ms, last + self.step_ms, self.step_ms)

    def label(self, at_ms: int) -> str:
        """Return what the axis says of the step that begins at ``at_ms``."""
        text = when(at_ms / 1_000)
        return text[11:16] if self.step_ms <= HOUR_MS else text[5:10]


# Steps are whole hours where they can be: those are added up already.
WINDOWS: Mapping[str, Window] = {
    window.name: window
    for window in (
        Window("1h", "hour", 30, 2 * MINUTE_MS),
        Window("24h", "24 hours", 24, HOUR_MS),
        Window("7d", "7 days", 28, 6 * HOUR_MS),
        Window("30d", "30 days", 30, DAY_MS),
    )
}

DAY = WINDOWS["24h"]


async def alone_in(services: Services, window: Window) -> Alone:
    """Return what savings are told against in ``window``, whatever part of it is looked at."""
    all_of_it = RecordFilter(since_ms=window.starts_ms(services.clock()).start)
    stats = await services.store.stats(all_of_it, by=("model",), times=())
    trusted = services.manifests.trusted
    policy = None if trusted is None else trusted.policy
    return alone_of(policy, stats.rows, services.config.report.against)


def window_of(request: Request) -> Window:
    """Return the window that the query names; a day if it names none.

    Raises:
        InvalidRequestError: there is no such window.
    """
    name = request.query_params.get("window") or "24h"
    window = WINDOWS.get(name)
    if window is None:
        raise InvalidRequestError(f"A window is one of {', '.join(WINDOWS)}.", code="invalid_query")
    return window


def services_of(request: Request) -> Services:
    """Return what the validator serves with."""
    services: Services = request.scope["services"]
    return services


async def is_over(services: Services, session: Session) -> bool:
    """Whether the session has lapsed, or was ended by itself or with all others.

    Raises:
        StoreError: nobody can tell.
    """
    if services.clock() >= session.expires_at:
        return True
    ended = [await services.access.seen.ended_until(mark) for mark in (session.mark, ALL_SESSIONS)]
    return max(ended) >= session.expires_at


async def form_of(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form that a browser sent.

    Raises:
        InvalidRequestError: it is not one, too large, or too slow.
    """
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or int(length) > MAX_FORM_BYTES:
        raise InvalidRequestError(f"A form may have {MAX_FORM_BYTES} bytes.", code="body_too_large")
    try:
        body = await read_body(
            request.receive,
            length=length.encode(),
            limit=MAX_FORM_BYTES,
            timeout_s=FORM_TIMEOUT_S,
        )
        text = body.decode("ascii")
        return parse_qs(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:
        raise InvalidRequestError("This is not a form of ours.", code="invalid_body") from None


async def page(
    request: Request,
    template: str,
    *,
    status: int = OK,
    **context: Any,  # noqa: ANN401 - what templates use
) -> HTMLResponse:
    """Return a page in its frame."""
    services = services_of(request)
    is_operator: bool = request.scope["is_operator"]
    trusted = services.manifests.trusted if is_operator else None
    body = await render(
        template,
        path=request.scope["path"],
        is_operator=is_operator,
        channel=services.config.channel,
        version=None if trusted is None else trusted.policy.version,
        is_simulated=any(one.simulated for one in services.config.providers.values()),
        now=services.clock(),
        status=status,
        **context,
    )
    return HTMLResponse(body, status)
