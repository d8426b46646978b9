"""One HTTP/1.1 response, read from bytes as they come. Pure: no socket, no clock.

llhttp reads the head, whole and alone, so that what could be smuggled past a parser is not ours
to get wrong. Bodies are counted here, as only then it is known where a message ends: whatever
comes after that belongs to no exchange.
"""

import re

import httptools

from waypost.validator.http.transports.chunks import Chunks, MalformedError

__all__ = ["MalformedError", "Message"]

MAX_HEAD_BYTES = 65_536  # interim heads included
MAX_INTERIM = 32  # 1xx heads before the one that counts; servers send one or two
_PREFIX = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) [0-9]{3}(?: [\t -~\x80-\xff]*)?\r\n")  # RFC 9112 §4
# Of the names that count; most fields have another.
_LENGTHS = frozenset({11, 12, 14, 16, 17})
_NOT_HTTP = "not an answer of HTTP/1.x"
_TOO_LONG = f"a head of more than {MAX_HEAD_BYTES} bytes"
_NO_BODY = (204, 304)  # RFC 9112 §6.3; a POST's others have one, if of no length


class Message:
    """The response to one POST.

    Attributes:
        status: 0 until the head has come.
        content_type, content_encoding, retry_after: as sent; empty if not.
        body: what has come of it and was not taken yet, in pieces.
        held_bytes: how much that is at most, framing included.
        is_untouched: whether not a byte has come.
        has_extra: whether bytes came after its end.
    """

    has_head = is_complete = has_extra = _is_kept = False
    is_untouched = True
    status = 0
    content_type = content_encoding = retry_after = ""
    _head = b""
    held_bytes = _spent = _interim = 0
    _codings: tuple[bytes, ...] = ()
    _chunks: Chunks | None = None
    _left: int | None = None  # of a counted body
    _parser: httptools.HttpResponseParser

    def __init__(self) -> None:
        self.body: list[bytes] = []

    @property
    def may_continue(self) -> bool:
        """Whether it came whole, nothing came after it, and the connection may carry another."""
        return self.is_complete and self._is_kept and not self.has_extra

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            MalformedError: it is no response, or has more head than anybody sends.
        """
        self.is_untouched = False
        while not self.has_head:
            data = self._take_head(data)
            if not data:
                return
        self.held_bytes += len(data)
        if self.is_complete:
            self.has_extra = True
        elif self._chunks is not None:
            self.has_extra = bool(self._chunks.feed(data, self.body))
            self.is_complete = self._chunks.is_complete
        elif self._left is None:
            self.body.append(data)
        else:
            self._count(data, self._left)

    def _count(self, data: bytes, left: int) -> None:
        if len(data) > left:
            data = data[:left]
            self.has_extra = True
        self.body.append(data)
        self._left = left - len(data)
        self.is_complete = not self._left

    def end(self) -> bool:
        """Heed that the server has ended the connection; return whether it came whole."""
        if self.has_head and self._left is None and self._chunks is None:
            self.is_complete = True
        return self.is_complete

    def take(self) -> bytes:
        """Return what has come of the body since the last time."""
        pieces, self.body, self.held_bytes = self.body, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # ── the head ───────────────────────────────────────────────────────────────────────────

    def _take_head(self, data: bytes) -> bytes:
        """Read a head, if it has come whole; return what follows it."""
        seen = 0
        if self._head:
            seen = max(0, len(self._head) - 3)  # the blank line may have come in two pieces
            data = self._head + data
        end = data.find(b"\r\n\r\n", seen)
        if end < 0:
            return self._wait_for_head(data)
        end += 4
        self._spent += end
        if self._spent > MAX_HEAD_BYTES:
            raise MalformedError(_TOO_LONG)
        self._head = b""
        self._read_head(data[:end])
        return data[end:]

    def _wait_for_head(self, data: bytes) -> bytes:
        if not data.startswith(_PREFIX[: len(data)]):
            raise MalformedError(_NOT_HTTP)
        if self._spent + len(data) > MAX_HEAD_BYTES:
            raise MalformedError(_TOO_LONG)
        self._head = data
        return b""

    def _read_head(self, head: bytes) -> None:
        line = _STATUS_LINE.match(head)
        if line is None:
            raise MalformedError(_NOT_HTTP)
        parser = self._parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
            status = parser.get_status_code()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            raise MalformedError(str(exc)) from None
        finally:
            del self._parser  # which refers to us: no work for the collector
        # Any other coding would reach callers undecoded.
        if self._codings and [coding.lower() for coding in self._codings] != [b"chunked"]:
            raise MalformedError("a transfer coding other than chunked")
        if status >= 200:
            self._is_kept = self._is_kept and line[1] == b"1"
            self._begin_body(status)
            return
        self._interim += 1
        if status == 101 or self._interim > MAX_INTERIM:
            raise MalformedError("heads that nobody asked for")
        self.has_head = False
        self._codings, self._left = (), None
        self.content_type = self.content_encoding = self.retry_after = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Is told by llhttp of each field."""
        if len(name) not in _LENGTHS:
            return
        match name.lower():
            case b"content-length":
                self._left = int(value)  # llhttp has refused what is no number, or two
            case b"transfer-encoding":
                self._codings += (value,)
            case b"content-type":
                self.content_type = value.decode("latin-1")
            case b"content-encoding":
                self.content_encoding = value.decode("latin-1")
            case b"retry-after":
                self.retry_after = value.decode("latin-1")
            case _:
                pass

    def on_headers_complete(self) -> None:
        """Is told by llhttp of the head's end, where it knows whether the connection is kept."""
        self.has_head = True
        self._is_kept = self._parser.should_keep_alive()

    def _begin_body(self, status: int) -> None:
        if not self.has_head:
            raise MalformedError("a head without an end")
        self.status = status
        if status in _NO_BODY:
            self.is_complete = True
        elif self._codings:
            self._chunks = Chunks()
        elif self._left == 0:
            self.is_complete = True
