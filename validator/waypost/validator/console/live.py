"""Decisions as they come: pieces of HTML over server-sent events, one look at the records a second.

The rule: a page gets each decision once, also what came while it was cut off, and nothing once its
session is over.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from waypost.shared.errors import RefusalError, StoreError, WaypostError
from waypost.shared.records import DecisionRecord
from waypost.validator.console.decisions import ID, asked_of
from waypost.validator.console.pages import is_over, services_of
from waypost.validator.console.render import render
from waypost.validator.console.session import Session
from waypost.validator.http.server_protocol import end_with_server
from waypost.validator.records import RecordFilter
from waypost.validator.services import Services

__all__ = ["follow"]

POLL_S = 1.0
BEAT = 15  # polls without news until a sign of life, for what stands between
BACK_MS = 120_000  # a record is written when its request ends, and named by its arrival
ROWS = 50
MAX_VIEWERS = 16


async def follow(request: Request) -> Response:
    """Rows as they come, as server-sent events, until the page is left."""
    services = services_of(request)
    asked = asked_of(request, services.clock())
    viewers: set[object] = request.scope["viewers"]
    if len(viewers) >= MAX_VIEWERS:
        raise RefusalError(
            f"{MAX_VIEWERS} pages follow decisions already; close one, or reload by hand.",
            code="console_busy",
        )
    # A browser that was cut off says where; a new page says what it shows already.
    after = request.headers.get("last-event-id") or request.query_params.get("after", "")
    ending = asyncio.Event()
    end_with_server(request.scope, ending.set)
    return StreamingResponse(
        _events(services, request.scope["session"], asked.filters, after, viewers, ending),
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
    )


async def _events(
    services: Services,
    session: Session,
    filters: RecordFilter,
    after: str,
    viewers: set[object],
    ending: asyncio.Event,
) -> AsyncGenerator[str]:
    me = object()
    viewers.add(me)
    try:
        yield "retry: 2000\n\n"
        sent: set[str] | None = None
        quiet = 0
        while not ending.is_set():
            if await is_over(services, session):
                yield "event: over\ndata:\n\n"
                return
            since_ms = int(services.clock() * 1_000) - BACK_MS
            recent = await _recent(services, structs.replace(filters, since_ms=since_ms))
            new: list[DecisionRecord] = []
            if recent is not None:
                known = _sent_before(recent, after) if sent is None else sent
                new = [record for record in recent if record.id not in known]
                # What has left the window cannot come again.
                sent = {record.id for record in recent}
            if new:
                rows = await render("_rows.html", records=new, is_new=True)
                lines = "\n".join(f"data: {line}" for line in rows.splitlines() if line.strip())
                yield f"id: {new[0].id}\nevent: rows\n{lines}\n\n"
            quiet = 0 if new else quiet + 1
            if quiet % BEAT == 1:
                yield ": quiet\n\n"
            try:
                async with asyncio.timeout(POLL_S):
                    await ending.wait()
            except TimeoutError:
                continue
    except StoreError:
        return  # nobody can tell whether the session has ended; the page asks again later
    finally:
        viewers.discard(me)


async def _recent(services: Services, filters: RecordFilter) -> tuple[DecisionRecord, ...] | None:
    """Return the newest; ``None`` while the store is down, as the page goes on when it is back."""
    try:
        return await services.store.list(filters, limit=ROWS)
    except WaypostError:
        return None


def _sent_before(recent: Sequence[DecisionRecord], after: str) -> set[str]:
    """Return what the page has: ``after`` and all that arrived before it; all if it is no id."""
    if not after:
        return set()
    if not ID.fullmatch(after):
        return {record.id for record in recent}
    # By the time in the id: it may have left the window while the page was cut off.
    newest = int(after[:8] + after[9:13], 16), after
    return {record.id for record in recent if (record.at_ms, record.id) <= newest}
