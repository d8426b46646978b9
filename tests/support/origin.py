"""A web server on a loopback port that answers as a test tells it to, well or badly."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn


@dataclass(frozen=True)
class Reply:
    """One answer. ``body`` may be an endless or a slow iterable of chunks."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Origin:
    """The server's address, and the headers of each request it got: names in lower case, and
    ``:path`` for what was asked for, ``:body`` for what was sent along.
    """

    url: str
    requests: list[dict[str, str]] = field(default_factory=list)


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = False
    request_queue_size = 64  # the default of 5 drops what comes all at once


@contextmanager
def serving(answer: Callable[[dict[str, str]], Reply]) -> Iterator[Origin]:
    """Serve until the block ends; ``answer`` gets each request's headers."""
    origin = Origin(url="")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            headers[":path"] = self.path
            headers[":body"] = self.rfile.read(int(headers.get("content-length", 0))).decode()
            origin.requests.append(headers)
            reply = answer(headers)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if isinstance(reply.body, bytes) and reply.status != 304:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            chunks = [reply.body] if isinstance(reply.body, bytes) else reply.body
            try:
                for chunk in chunks:
                    self.wfile.write(chunk)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has had enough

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    origin.url = f"http://127.0.0.1:{server.server_port}/v1/prod/bundle.json"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield origin
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
