"""Model providers for demonstrations: real HTTP, keys and streams; answers from a small list.

One process plays several providers, each below its own path (``/groq/v1/chat/completions``),
with its own API key, models and latency; ``anthropic`` speaks the Messages API as well. A provider
may also *relay* to a real model server, so that the same provider can be switched off in either
case: ``PUT /groq/outage`` takes it down, ``DELETE /groq/outage`` brings it back.

Every simulated response says so: in its text, and in the header ``x-simulated: 1``.
"""

import argparse
import asyncio
import hmac
import math
import random
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route

from waypost.cli.listening import listen, url_of
from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.measure import ChatRequest, decode_chat

__all__ = [
    "ANNOUNCEMENT",
    "SPEAKING_MESSAGES",
    "Config",
    "Profile",
    "Provider",
    "Relay",
    "create_app",
    "delays_s",
    "main",
]

ANNOUNCEMENT = "waypost upstreams listening on"
SPEAKING_MESSAGES = frozenset({"anthropic"})

# Medians of time to first token spread about this much in providers' public status histories:
# a tenth of the requests takes more than 1.5 times the median.
TTFT_SIGMA = 0.32
TOKEN_SIGMA = 0.25

# Read from the top, first match wins: words of the newest user message → answer.
ANSWERS: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"sky"}),
        "Air scatters blue light far more than red, so blue reaches you from everywhere.",
    ),
    (
        frozenset({"prove", "proof"}),
        "Assume the root of 2 is a fraction p/q in lowest terms. Then p² = 2q², so p is even: "
        "p = 2r. Then q² = 2r², so q is even too. But p/q was in lowest terms: a contradiction.",
    ),
    (
        frozenset({"newsletter"}),
        "Come and climb 112 steps: our lighthouse museum opens its door, and its lamp, on Sunday.",
    ),
    (
        frozenset({"story"}),
        "The lighthouse keeper wrote one letter a night and gave each to the tide. Years later "
        "a child two coasts away had a shoebox full of them, and came to ask how they end.",
    ),
    (
        frozenset({"patient", "discharge", "diagnosis"}),
        "Summary: discharged on oral antibiotics, follow-up in two weeks. Return at once if "
        "breathing gets worse. No allergies were recorded.",
    ),
    (
        frozenset({"contract", "clause", "gdpr"}),
        "The clause on location keeps the data in the European Union and forbids its use for "
        "training.",
    ),
    (
        frozenset({"photosynthesis"}),
        "Plants turn light, water and carbon dioxide into sugar, and give off oxygen.",
    ),
)
ANY_ANSWER = "A fair question. A real model would answer it here, at the same speed and price."

_WORD = re.compile(r"\w+")
_PIECE = re.compile(r"\s*\S{1,6}")  # English prose has a token about every five characters


class Profile(Struct, frozen=True, kw_only=True):
    """How fast a model answers: medians."""

    ttft_ms: float
    tokens_per_s: float


class Relay(Struct, frozen=True, kw_only=True):
    """A real OpenAI-compatible server behind the provider.

    Attributes:
        base_url: ends in ``/v1``.
        models: the provider's name for a model → the server's; others pass as they are.
    """

    base_url: str
    api_key: str
    models: dict[str, str] = {}


class Provider(Struct, frozen=True, kw_only=True):
    """One provider: the key it wants, and its models by the provider's own name for them."""

    name: str
    api_key: str
    models: dict[str, Profile]
    relay: Relay | None = None


class Config(Struct, frozen=True, kw_only=True):
    """What one process plays. The same ``seed`` and order of requests gives the same delays."""

    providers: tuple[Provider, ...]
    seed: int = 0


class _Answer(Struct, frozen=True):
    pieces: tuple[str, ...]
    finish_reason: str
    prompt_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.pieces),
            "total_tokens": self.prompt_tokens + len(self.pieces),
        }


class _Said(Struct):
    role: str
    content: str | list[dict[str, Any]]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(str(block.get("text", "")) for block in self.content)


class _Messages(Struct):
    """What is read of a request to the Messages API."""

    model: str
    messages: list[_Said]
    max_tokens: int
    system: str | list[dict[str, Any]] = ""
    stream: bool = False

    def as_chat(self) -> ChatRequest:
        """Return the same as a chat completion."""
        system = _Said("system", self.system)
        said = [system, *self.messages] if self.system else self.messages
        body = {
            "model": self.model,
            "messages": [{"role": one.role, "content": one.text} for one in said],
            "max_tokens": self.max_tokens,
        }
        return decode_chat(msgspec.json.encode(body))


def _text(content: Any) -> str:  # noqa: ANN401 - text, parts or nothing, as OpenAI has it
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


def _answer(chat: ChatRequest) -> _Answer:
    texts = [_text(message.content) for message in chat.messages]
    newest = next(
        (
            text
            for message, text in zip(reversed(chat.messages), reversed(texts), strict=True)
            if message.role == "user"
        ),
        "",
    )
    words = {word.casefold() for word in _WORD.findall(newest)}
    found = next((answer for keys, answer in ANSWERS if keys & words), ANY_ANSWER)
    pieces = _PIECE.findall(f"(simulated) {found}")
    kept = tuple(pieces[: chat.output_limit])
    return _Answer(
        pieces=kept,
        finish_reason="stop" if len(kept) == len(pieces) else "length",
        prompt_tokens=sum(4 + len(_PIECE.findall(text)) for text in texts),
    )


def _spread(median: float, sigma: float, rng: random.Random) -> float:
    return rng.lognormvariate(math.log(median), sigma)


def delays_s(profile: Profile, tokens: int, rng: random.Random) -> list[float]:
    """Return the wait before each of ``tokens`` tokens, drawn around the medians."""
    first = _spread(profile.ttft_ms / 1_000, TTFT_SIGMA, rng)
    return [
        first,
        *(_spread(1 / profile.tokens_per_s, TOKEN_SIGMA, rng) for _ in range(1, tokens)),
    ]


def _json(status: int, body: object, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(body), status, headers=headers, media_type="application/json"
    )


def _error(status: int, code: str, message: str, *, param: str | None = None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "code": code, "param": param}
    return _json(status, {"error": error}, {"x-simulated": "1"})


class _Front:
    """The routes of one provider."""

    def __init__(self, provider: Provider, rng: random.Random) -> None:
        self._provider = provider
        self._rng = rng
        self._is_down = False
        self._client: httpx.AsyncClient | None = None

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            *(
                [Route("/v1/messages", self._messages, methods=["POST"])]
                if self._provider.name in SPEAKING_MESSAGES
                else []
            ),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/outage", self._outage, methods=["PUT", "DELETE"]),
        ]

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None, None]:
        if self._provider.relay is None:
            yield
            return
        # Small machines take a while over their first token.
        async with httpx.AsyncClient(timeout=120) as self._client:
            yield

    def _refusal(self, request: Request) -> Response | None:
        if self._is_down:
            return _error(503, "overloaded", f"{self._provider.name} is down (switched off).")
        given = request.headers.get("x-api-key") or request.headers.get(
            "authorization", ""
        ).removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._provider.api_key.encode()):
            return _error(401, "invalid_api_key", "That is not this provider's API key.")
        return None

    async def _outage(self, request: Request) -> Response:
        self._is_down = request.method == "PUT"
        return _json(200, {"provider": self._provider.name, "down": self._is_down})

    async def _models(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": self._provider.name}
            for name in self._provider.models
        ]
        return _json(200, {"object": "list", "data": data}, {"x-simulated": "1"})

    async def _chat(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        body = await request.body()
        if self._provider.relay is not None:
            return await self._relayed(self._provider.relay, body)
        try:
            chat = decode_chat(body)
        except InvalidRequestError as exc:
            return _error(400, exc.code, exc.message, param=exc.param)
        profile = self._provider.models.get(chat.model)
        if profile is None:
            return _error(404, "model_not_found", "There is no such model here.", param="model")
        answer = _answer(chat)
        waits_s = delays_s(profile, len(answer.pieces), self._rng)
        about: dict[str, object] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": chat.model,
        }
        if chat.stream:
            with_usage = bool(chat.stream_options and chat.stream_options.include_usage)
            return StreamingResponse(
                _events(answer, waits_s, about, with_usage=with_usage),
                media_type="text/event-stream",
                headers={"x-simulated": "1"},
            )
        await asyncio.sleep(sum(waits_s))
        message = {"role": "assistant", "content": "".join(answer.pieces), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        completion = about | {
            "object": "chat.completion",
            "choices": [choice | {"logprobs": None}],
            "usage": answer.usage,
        }
        return _json(200, completion, {"x-simulated": "1"})

    async def _messages(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        try:
            asked = msgspec.json.decode(await request.body(), type=_Messages)
        except msgspec.DecodeError as exc:
            return _error(400, "invalid_request_error", str(exc))
        profile = self._provider.models.get(asked.model)
        if profile is None:
            return _error(404, "not_found_error", f"model: {asked.model}")
        answer = _answer(asked.as_chat())
        waits_s = delays_s(profile, len(answer.pieces), self._rng)
        usage = {"input_tokens": answer.prompt_tokens, "output_tokens": len(answer.pieces)}
        message: dict[str, object] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": asked.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage | {"output_tokens": 1},
        }
        stop = "end_turn" if answer.finish_reason == "stop" else "max_tokens"
        if asked.stream:
            return StreamingResponse(
                _message_events(answer, waits_s, message, stop),
                media_type="text/event-stream",
                headers={"x-simulated": "1"},
            )
        await asyncio.sleep(sum(waits_s))
        content = [{"type": "text", "text": "".join(answer.pieces)}]
        whole = message | {"content": content, "stop_reason": stop, "usage": usage}
        return _json(200, whole, {"x-simulated": "1"})

    async def _relayed(self, relay: Relay, body: bytes) -> Response:
        if self._client is None:
            raise RuntimeError("the application's lifespan did not run")
        try:
            fields = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.DecodeError:
            return _error(400, "invalid_json", "The body is not a JSON object.")
        asked_for = str(fields.get("model"))
        fields["model"] = relay.models.get(asked_for, asked_for)
        request = self._client.build_request(
            "POST",
            f"{relay.base_url}/chat/completions",
            content=msgspec.json.encode(fields),
            headers={
                "authorization": f"Bearer {relay.api_key}",
                "content-type": "application/json",
            },
        )
        try:
            answer = await self._client.send(request, stream=True)
        except httpx.HTTPError:
            return _error(502, "relay_failed", "The model server behind this did not answer.")

        async def bytes_then_close() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_bytes():
                    yield chunk
            finally:
                await answer.aclose()

        return StreamingResponse(
            bytes_then_close(),
            answer.status_code,
            media_type=answer.headers.get("content-type"),
        )


async def _message_events(
    answer: _Answer, waits_s: Iterable[float], message: dict[str, object], stop: str
) -> AsyncIterator[bytes]:
    def event(kind: str, **fields: object) -> bytes:
        data = msgspec.json.encode({"type": kind} | fields)
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    for index, (piece, wait_s) in enumerate(zip(answer.pieces, waits_s, strict=True)):
        await asyncio.sleep(wait_s)
        if index == 0:
            yield event("message_start", message=message)
            block = {"type": "text", "text": ""}
            yield event("content_block_start", index=0, content_block=block)
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield event("content_block_stop", index=0)
    usage = {"output_tokens": len(answer.pieces)}
    delta = {"stop_reason": stop, "stop_sequence": None}
    yield event("message_delta", delta=delta, usage=usage)
    yield event("message_stop")


async def _events(
    answer: _Answer, waits_s: Iterable[float], about: dict[str, object], *, with_usage: bool
) -> AsyncIterator[bytes]:
    def event(**fields: object) -> bytes:
        chunk: dict[str, object] = {"object": "chat.completion.chunk", "choices": ()}
        chunk |= about | fields
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def choice(delta: dict[str, str], finish_reason: str | None = None) -> list[object]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]

    for index, (piece, wait_s) in enumerate(zip(answer.pieces, waits_s, strict=True)):
        await asyncio.sleep(wait_s)
        if index == 0:
            yield event(choices=choice({"role": "assistant", "content": ""}))
        yield event(choices=choice({"content": piece}))
    yield event(choices=choice({}, answer.finish_reason))
    if with_usage:
        yield event(usage=answer.usage)
    yield b"data: [DONE]\n\n"


def create_app(config: Config) -> Starlette:
    """Return an app that plays every provider of ``config``, each below ``/<name>``."""
    rng = random.Random(config.seed)
    fronts = {provider.name: _Front(provider, rng) for provider in config.providers}

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            for front in fronts.values():
                await stack.enter_async_context(front.connected())
            yield

    return Starlette(
        routes=[Mount(f"/{name}", routes=front.routes) for name, front in fronts.items()],
        lifespan=lifespan,
    )


def main() -> None:
    """Play the providers of the configuration file named on the command line, until signalled.

    The file holds API keys, so it is a file and not arguments, which any user may list.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("config", type=Path, help="Config, as JSON")
    config = msgspec.json.decode(parser.parse_args().config.read_bytes(), type=Config)
    with listen("127.0.0.1", 0) as listening:
        # From here on the kernel queues connections, so the address can be told.
        print(f"{ANNOUNCEMENT} {url_of(listening)}", flush=True)
        uvicorn.Server(
            uvicorn.Config(
                create_app(config),
                log_level="warning",
                timeout_graceful_shutdown=1,
            )
        ).run(sockets=[listening])


if __name__ == "__main__":
    main()
