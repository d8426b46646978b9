"""Amazon's object store, as moto's server plays it, and its key service, on loopback ports."""

import json
import logging
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from moto.server import ThreadedMotoServer


@contextmanager
def object_store() -> Iterator[str]:
    """Serve S3, empty, for the block; boto3 clients made inside go there. Gives its origin."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        origin = f"http://{host}:{port}"
        httpx.post(f"{origin}/moto-api/reset").raise_for_status()
        with _account(origin):
            yield origin
    finally:
        server.stop()


@contextmanager
def key_service() -> Iterator[EllipticCurvePrivateKey]:
    """Serve KMS for the block, with the one key that is given.

    Signs digests, as KMS does and securesystemslib asks for; moto's hashes them once more.
    """
    key = generate_private_key(SECP256R1())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["X-Amz-Target"] == "TrentService.Sign"
            assert asked["MessageType"] == "DIGEST"
            signature = key.sign(b64decode(asked["Message"]), ECDSA(Prehashed(SHA256())))
            answer = {"KeyId": asked["KeyId"], "Signature": b64encode(signature).decode()}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with _account(f"http://127.0.0.1:{server.server_port}"):
            yield key
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _account(origin: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", origin)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield
