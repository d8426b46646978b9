"""Drives ``exchange`` over an httpx-shaped transport: one driver blocks, one awaits.

httpx and its successor httpx2 have the same shape and different classes, so the drivers are
mixins that ``_binding`` completes, a few lines each.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from waypost.client._core import Core
from waypost.client._exchange import (
    Discard,
    GetToken,
    Headers,
    Race,
    Refresh,
    Send,
    Step,
    Watch,
    exchange,
)
from waypost.client._token import AsyncTokens, Tokens

__all__ = ["AsyncDriver", "SyncDriver", "WatchedStream", "in_thread"]


class Request(Protocol):
    method: str

    @property
    def url(self) -> object: ...
    @property
    def headers(self) -> Headers: ...
    def read(self) -> bytes: ...
    async def aread(self) -> bytes: ...


class Response(Protocol):
    status_code: int
    stream: Any
    is_closed: bool

    @property
    def content(self) -> bytes: ...
    @property
    def headers(self) -> Headers: ...
    def close(self) -> None: ...
    async def aclose(self) -> None: ...


T = TypeVar("T")
RequestT = TypeVar("RequestT", bound=Request)
ResponseT = TypeVar("ResponseT", bound=Response)


class SyncDriver(Generic[RequestT, ResponseT]):
    """A transport that blocks. Subclasses say how to pass on and how to send anew."""

    unreachable: tuple[type[Exception], ...]
    stream: "type[WatchedStream]"
    connects = False  # by sockets of its own, so that others may be tried first

    def __init__(self, core: Core, tokens: Tokens) -> None:
        self._core = core
        self._tokens = tokens

    def pass_on(self, request: RequestT) -> ResponseT:
        raise NotImplementedError

    def send(
        self, request: RequestT, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> ResponseT:
        raise NotImplementedError

    def handle_request(self, request: RequestT) -> ResponseT:
        path = self._core.api_path(str(request.url))
        if path is None:
            return self.pass_on(request)
        body = request.read()
        flow = exchange(
            self._core,
            self._tokens,
            method=request.method,
            path=path,
            headers=request.headers,
            body=body,
            unreachable=self.unreachable,
        )
        try:
            step = next(flow)
            while True:
                try:
                    result = self._act(step, request, body)
                except BaseException as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(result)
        except StopIteration as done:
            answer: tuple[ResponseT, Watch] = done.value
        return watched(*answer, self.stream)

    def _act(self, step: Step, request: RequestT, body: bytes) -> object:
        match step:
            case GetToken(instead_of):
                return self._tokens.get(instead_of)
            case Refresh():
                return self._core.refresh()
            case Race(bases):
                return self._core.network.race(bases) if self.connects else {}
            case Send(url, headers):
                return self.send(request, url, headers, body)
            case Discard(answer):
                return answer.close()


class AsyncDriver(Generic[RequestT, ResponseT]):
    """A transport that awaits; see ``SyncDriver``."""

    unreachable: tuple[type[Exception], ...]
    stream: "type[WatchedStream]"
    connects = False  # by sockets of its own, so that others may be tried first

    def __init__(self, core: Core, tokens: AsyncTokens) -> None:
        self._core = core
        self._tokens = tokens

    async def pass_on(self, request: RequestT) -> ResponseT:
        raise NotImplementedError

    async def send(
        self, request: RequestT, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> ResponseT:
        raise NotImplementedError

    async def handle_async_request(self, request: RequestT) -> ResponseT:
        path = self._core.api_path(str(request.url))
        if path is None:
            return await self.pass_on(request)
        body = await request.aread()
        flow = exchange(
            self._core,
            self._tokens,
            method=request.method,
            path=path,
            headers=request.headers,
            body=body,
            unreachable=self.unreachable,
        )
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._act(step, request, body)
                except BaseException as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(result)
        except StopIteration as done:
            answer: tuple[ResponseT, Watch] = done.value
        return watched(*answer, self.stream)

    async def _act(self, step: Step, request: RequestT, body: bytes) -> object:
        match step:
            case GetToken(instead_of):
                return await self._tokens.get(instead_of)
            case Refresh():
                return await in_thread(self._core.refresh)
            case Race(bases):
                if not self.connects:
                    return {}
                return await in_thread(partial(self._core.network.race, bases))
            case Send(url, headers):
                return await self.send(request, url, headers, body)
            case Discard(answer):
                return await answer.aclose()


async def in_thread(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, with the event loop free meanwhile."""
    from anyio import to_thread

    return await to_thread.run_sync(work)


def watched(response: ResponseT, watch: Watch, stream: "type[WatchedStream]") -> ResponseT:
    """Return ``response`` with its body under watch."""
    if response.is_closed:
        # Read already, as test transports have it: nobody will iterate or close it again.
        watch.chunk(response.content)
        watch.complete()
    else:
        response.stream = stream(response.stream, watch)
    return response


class WatchedStream:
    """A response body that tells its watch when it starts, ends and breaks.

    Serves as sync and as async stream; ``_binding`` adds the base classes that clients insist on.
    """

    def __init__(self, inner: Any, watch: Watch) -> None:  # noqa: ANN401 - of either library
        self._inner = inner
        self._watch = watch

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._inner:
                self._watch.chunk(chunk)
                yield chunk
        except Exception:
            self._watch.end(failed=True)
            raise
        self._watch.complete()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                self._watch.chunk(chunk)
                yield chunk
        except Exception:
            self._watch.end(failed=True)
            raise
        self._watch.complete()

    def close(self) -> None:
        self._watch.end()
        self._inner.close()

    async def aclose(self) -> None:
        self._watch.end()
        await self._inner.aclose()
