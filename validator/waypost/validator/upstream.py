"""One provider: its address, its key, its connections, and what its failures mean."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from msgspec import Struct

from waypost.shared.records import AttemptOutcome
from waypost.validator.config import ProviderConfig
from waypost.validator.http1 import ExchangeError, Origin, Response, Stage
from waypost.validator.providers import DIALECTS
from waypost.validator.resilience.breaker import Breaker

__all__ = ["Answer", "NoAnswerError", "Stream", "Upstream"]

MAX_ANSWER_BYTES = 64 * 1_048_576  # pictures and sounds come as base64 inside the JSON

# W3C Trace Context §3.2, version 00. Nothing else that a caller sends reaches a header.
_TRACE = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_OUTCOMES: dict[Stage, AttemptOutcome] = {
    "connect": "connect_error",
    "timeout": "timeout",
    "broken": "server_error",
    "malformed": "bad_response",
}


class NoAnswerError(Exception):
    """A provider could not be asked, or did not answer, or not to the end."""

    def __init__(self, outcome: AttemptOutcome) -> None:
        super().__init__(outcome)
        self.outcome: AttemptOutcome = outcome


class Answer(Struct, frozen=True):
    """A whole response of a provider."""

    status: int
    body: bytes


class Upstream:
    """One provider, for one event loop."""

    def __init__(self, name: str, config: ProviderConfig, *, api_key: str | None) -> None:
        self.name = name
        self.dialect = DIALECTS[config.dialect]
        self.max_tokens_field = config.max_tokens_field
        self.timeout_s = config.timeout_s
        self.breaker = Breaker()
        self._origin = Origin(
            config.base_url + self.dialect.PATH,
            headers={
                **self.dialect.headers(api_key),
                "Accept": "*/*",
                # Bytes pass through untouched, so they had better not be compressed.
                "Accept-Encoding": "identity",
                "User-Agent": "waypost",
            },
            connect_timeout_s=config.connect_timeout_s,
        )

    async def ask(self, body: bytes, *, trace: bytes | None) -> Answer:
        """Return the provider's answer to ``body``, whole, whatever its status.

        Raises:
            NoAnswerError: there was none.
        """
        until = asyncio.get_running_loop().time() + self.timeout_s
        try:
            async with self._origin.post(body, headers=_headers(trace), until=until) as response:
                answer = await response.read_all(until=until, at_most=MAX_ANSWER_BYTES)
                return Answer(response.status, answer)
        except ExchangeError as failure:
            raise NoAnswerError(_OUTCOMES[failure.stage]) from failure

    @asynccontextmanager
    async def stream(self, body: bytes, *, trace: bytes | None) -> AsyncGenerator["Stream"]:
        """Give the provider's answer to ``body`` as it arrives; leaving early hangs up.

        Raises:
            NoAnswerError: there was none, or it broke off.
        """
        until = asyncio.get_running_loop().time() + self.timeout_s
        try:
            async with self._origin.post(body, headers=_headers(trace), until=until) as response:
                yield Stream(response, self.timeout_s)
        except ExchangeError as failure:
            raise NoAnswerError(_OUTCOMES[failure.stage]) from failure

    async def close(self) -> None:
        """Close all connections."""
        await self._origin.close()


def _headers(trace: bytes | None) -> str:
    if trace is None or not _TRACE.fullmatch(trace):
        return ""
    return f"traceparent: {trace.decode()}\r\n"


class Stream:
    """A response whose body is still arriving."""

    __slots__ = ("_loop", "_response", "_timeout_s", "is_event_stream", "status")

    def __init__(self, response: Response, timeout_s: float) -> None:
        self.status = response.status
        self.is_event_stream = response.content_type.lower().startswith(
            "text/event-stream"
        ) and response.content_encoding.lower() in ("", "identity")
        self._response = response
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Return the next bytes as they come off the wire; empty at the end."""
        return await self._response.read(until=self._loop.time() + self._timeout_s)
