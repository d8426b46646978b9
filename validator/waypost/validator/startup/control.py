"""What a supervisor and its workers tell each other, over a pair of sockets that both can wait on.

The rule: a worker does nothing to the port or to its callers unasked, and the end of the
connection means that the supervisor is gone: then a worker ends as well.
"""

import asyncio
import socket
from typing import Self

import msgspec
from msgspec import Struct

__all__ = [
    "Adopt",
    "Adopted",
    "Channel",
    "Close",
    "Cut",
    "Failed",
    "Go",
    "Leave",
    "Message",
    "Ready",
    "Share",
    "Shared",
    "Start",
]

HEAD_BYTES = 4
MAX_MESSAGE_BYTES = 64 * 2**20  # what is kept of a manifest is a quarter of it at most


class Start(Struct, frozen=True, tag=True):
    """To a worker, first of all: what the others have verified. ``what`` → newest last."""

    known: dict[str, list[bytes]]


class Go(Struct, frozen=True, tag=True):
    """To a worker that is ready: take connections."""


class Adopt(Struct, frozen=True, tag=True):
    """To a worker: another has verified this; see ``ManifestKeeper.state``."""

    number: int
    what: str
    state: bytes


class Shared(Struct, frozen=True, tag=True):
    """To a worker: what it shared under this number is in use; ``pending`` have not said so."""

    number: int
    pending: int


class Leave(Struct, frozen=True, tag=True):
    """To a worker: requests are served still, but each connection ends with its answer.

    Attributes:
        is_stopping: all workers end, so that ``/readyz`` says no. Else others go on, and this
            one takes no more connections.
    """

    is_stopping: bool


class Close(Struct, frozen=True, tag=True):
    """To a worker: close the port, and end when the answers under way have.

    Attributes:
        linger_s: how long a connection without a request may still bring one.
        drain_s: how long answers may take; 0: as long as they do.
    """

    linger_s: float
    drain_s: float


class Cut(Struct, frozen=True, tag=True):
    """To a worker that drains: end now what is still under way."""


class Ready(Struct, frozen=True, tag=True):
    """From a worker: it could serve."""


class Failed(Struct, frozen=True, tag=True):
    """From a worker: it cannot start, and why."""

    code: str
    message: str


class Share(Struct, frozen=True, tag=True):
    """From a worker: it has verified this, which all others should know."""

    number: int
    what: str
    state: bytes


class Adopted(Struct, frozen=True, tag=True):
    """From a worker: what came under this number is in use, or was refused."""

    number: int


Message = Start | Go | Adopt | Shared | Leave | Close | Cut | Ready | Failed | Share | Adopted

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Channel:
    """One end of the pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> Self:
        """Return the end that ``sock`` is; it is closed with it."""
        return cls(*await asyncio.open_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Tell the other end; what it does not read waits here. Never raises."""
        if not self._writer.is_closing():
            body = _encode(message)
            self._writer.write(len(body).to_bytes(HEAD_BYTES) + body)

    async def receive(self) -> Message | None:
        """Return what the other end told; ``None`` when it is gone."""
        try:
            size = int.from_bytes(await self._reader.readexactly(HEAD_BYTES))
            if size > MAX_MESSAGE_BYTES:
                return None
            return _decoder.decode(await self._reader.readexactly(size))
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError):
            return None

    async def flushed(self) -> None:
        """Return when what was sent is on its way, or cannot be."""
        try:
            await self._writer.drain()
        except OSError:
            return

    def close(self) -> None:
        """Be gone, for the other end."""
        self._writer.close()
