"""The chunked coding, decoded strictly (RFC 9112 §7.1). Pure: bytes in, bytes out.

Our own, since llhttp heeds framing fields in trailers (a ``Content-Length`` there is an error,
a ``Connection: close`` ends the connection) and does not tell where a message ends.
"""

import re

__all__ = ["Chunks", "MalformedError"]

# Bytes that carry no body: the line of a chunk with its extensions, or all trailers together.
MAX_LINE_BYTES = 16_384
MAX_TRAILER_BYTES = 65_536

_HEX = b"0123456789abcdefABCDEF"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n\0]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n")


class MalformedError(Exception):
    """Bytes that are no HTTP response, or too many of them."""


class Chunks:
    """One chunked body.

    Attributes:
        is_complete: whether its last byte, after the trailers, has come.
    """

    __slots__ = ("_left", "_rest", "_trailer_bytes", "is_complete")

    def __init__(self) -> None:
        self.is_complete = False
        self._left = 0  # of the chunk that has begun
        self._rest = b""  # of a line, or of a chunk's last two bytes, that has not come whole
        self._trailer_bytes = -1  # so far; less than 0 before the last chunk

    def feed(self, data: bytes, body: list[bytes]) -> int:
        """Add what ``data`` holds to ``body``; return how much of it came after the end.

        Raises:
            MalformedError: it is not the chunked coding.
        """
        if self._rest:
            # A line that comes byte by byte is not looked through anew with each of them.
            ends_line = self._left or b"\n" in data
            data = self._rest + data
            self._rest = b""
            if not ends_line:
                self._wait(data, 0, self._most_of_line)
                return 0
        at, size = 0, len(data)
        while at < size and self._trailer_bytes < 0:
            if not self._left:
                at = self._size_line(data, at)
            stop = at + self._left
            if stop > size:
                self._part(data, at, stop, body)
                return 0
            if stop > at:
                if data[stop - 2 : stop] != b"\r\n":
                    raise MalformedError("a chunk without its line end")
                body.append(data[at : stop - 2])
                self._left = 0
                at = stop
        while at < size and not self.is_complete:
            at = self._trailer(data, at)
        return size - at

    @property
    def _most_of_line(self) -> int:
        is_trailer = self._trailer_bytes >= 0
        return MAX_TRAILER_BYTES - self._trailer_bytes if is_trailer else MAX_LINE_BYTES

    def _size_line(self, data: bytes, at: int) -> int:
        """Read how long the next chunk is; return where it begins."""
        end = data.find(b"\r\n", at)
        digits = data[at:end]
        if end < 0 or not 0 < len(digits) < 16 or digits.strip(_HEX):
            # The rare ways to write it.
            line = _SIZE_LINE.match(data, at)
            if line is None:
                return self._wait(data, at, self._most_of_line)
            digits, end = line[1], line.end() - 2
            if end - at > MAX_LINE_BYTES:
                raise MalformedError("a chunk's line is too long")
        size = int(digits, 16)
        if size:
            self._left = size + 2  # its line end is part of it
        else:
            self._trailer_bytes = 0
        return end + 2

    def _part(self, data: bytes, at: int, stop: int, body: list[bytes]) -> None:
        """Read a part of a chunk; its line end is kept until it is whole."""
        held = max(at, min(len(data), stop - 2))
        if held > at:
            body.append(data[at:held])
        self._left = stop - held
        self._rest = data[held:]
        if not b"\r\n".startswith(self._rest):
            raise MalformedError("a chunk without its line end")

    def _trailer(self, data: bytes, at: int) -> int:
        """Read over one line of the trailers, which change nothing; return where it ends."""
        if data.startswith(b"\r\n", at):
            self.is_complete = True
            return at + 2
        line = _TRAILER.match(data, at)
        if line is None:
            return self._wait(data, at, self._most_of_line)
        self._trailer_bytes += line.end() - at
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise MalformedError(f"trailers of more than {MAX_TRAILER_BYTES} bytes")
        return line.end()

    def _wait(self, data: bytes, at: int, at_most: int) -> int:
        """Keep a line that has not come whole."""
        rest = data[at:]
        if b"\n" in rest:
            raise MalformedError("a line of the chunked coding that is none")
        if len(rest) > at_most:
            raise MalformedError("a line of the chunked coding is too long")
        self._rest = rest
        return len(data)
