"""What an answer says, read from the bytes that the caller would get. Pure.

The rule: a best effort that never raises. Of an API or an event that is not known nothing is
read, and an answer of which nothing can be read is not a sure one.
"""

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Raw, Struct

__all__ = ["Answer", "read_answer", "with_logprobs"]


class Answer(Struct, frozen=True):
    """One answer.

    Attributes:
        text: what the model wrote; empty if it wrote none, as when it calls a tool.
        logprobs: of its tokens, as natural logarithms; empty where the provider told none.
        tokens: the text of each of those tokens.
    """

    text: str = ""
    logprobs: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()


class _Token(Struct):
    logprob: float = 0.0
    token: str = ""


class _Logprobs(Struct):
    content: list[_Token] | None = None


class _Words(Struct):
    content: str | list["_Part"] | None = None
    text: str | None = None


class _Choice(Struct):
    message: _Words | None = None
    delta: _Words | None = None
    text: str | None = None
    index: int = 0
    logprobs: _Logprobs | None = None


class _Part(Struct):
    """A block of ``/v1/messages``, or an item of ``/v1/responses`` or of its content."""

    text: str | None = None
    content: "str | list[_Part] | None" = None


class _Body(Struct):
    """One answer of any of the APIs, or one event of one."""

    choices: list[_Choice] | None = None
    content: list[_Part] | None = None
    output: list[_Part] | None = None
    delta: _Words | str | None = None
    type: str | None = None


_decode = msgspec.json.Decoder(_Body, strict=False).decode

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode

# Events of /v1/messages and /v1/responses whose ``delta`` is text of the answer.
_DELTAS = frozenset({"content_block_delta", "response.output_text.delta"})


def read_answer(body: bytes, *, streamed: bool) -> Answer:
    """Return the first answer in ``body``: a whole response, or all events of a stream."""
    bodies = list(_events(body)) if streamed else [body]
    texts: list[str] = []
    tokens: list[_Token] = []
    for one in bodies:
        try:
            _read(_decode(one), texts, tokens)
        except (ValueError, RecursionError):  # half a character is no DecodeError
            continue
    return Answer(
        "".join(texts),
        tuple(token.logprob for token in tokens),
        tuple(token.token for token in tokens),
    )


def with_logprobs(body: bytes) -> bytes:
    """Return a chat completion's request that also asks for the probability of each token."""
    return _encode({**_decode_fields(body), "logprobs": Raw(b"true")})


def _events(body: bytes) -> Iterator[bytes]:
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _read(body: _Body, texts: list[str], tokens: list[_Token]) -> None:
    for choice in body.choices or ():
        if choice.index:
            continue
        words = choice.message or choice.delta
        texts.append(_text_of(words.content) if words is not None else choice.text or "")
        if choice.logprobs is not None:
            tokens += choice.logprobs.content or ()
    texts.append(_text_of(body.content))
    texts.append(_text_of(body.output))
    if body.type in _DELTAS:
        texts.append(body.delta if isinstance(body.delta, str) else _delta_text(body.delta))


def _delta_text(delta: _Words | None) -> str:
    return "" if delta is None else delta.text or ""


def _text_of(content: str | Sequence[_Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or _text_of(part.content) for part in content)
