"""Real proxies in front of a validator, each with one connection to it for all callers."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.debian import program

GUIDE = Path(__file__).parents[2] / "docs" / "deploy-cdn.md"

# https://nginx.org/en/docs/http/websocket.html, as of 2026-11-28, with the keepalive of
# https://nginx.org/en/docs/http/ngx_http_upstream_module.html#keepalive.
WEBSOCKET = """
map $http_upgrade $connection_upgrade { default upgrade; '' close; }
upstream backend { server 127.0.0.1:VALIDATOR; keepalive 1; }
server {
    listen 127.0.0.1:PORT;
    location / {
        proxy_pass http://backend;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $connection_upgrade;
    }
}
"""

HAPROXY = """
global
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    http-reuse always
frontend callers
    bind 127.0.0.1:PORT
    default_backend validators
backend validators
    server one 127.0.0.1:VALIDATOR maxconn 1 pool-max-conn 1
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(command: list[str], port: int) -> Iterator[int]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            assert process.poll() is None, f"{command[0]} ended"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                break
            except OSError:
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _guide(port: int, validator: int) -> str:
    """Return the guide's upstream and server for the validator, without TLS."""
    (text,) = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    upstream = re.search(r"upstream waypost_validator \{.*?\n\}", text, re.DOTALL)
    servers = re.findall(r"\nserver \{.*?\n\}", text, re.DOTALL)
    assert upstream is not None
    plain = re.sub(r"\n +ssl_[^\n]*", "", servers[-1])
    whole = f"{upstream[0]}\n{plain}"
    for old, new in (
        ("127.0.0.1:8800", f"127.0.0.1:{validator}"),
        ("keepalive 64;", "keepalive 1;"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port};"),
    ):
        assert whole.count(old) == 1, old
        whole = whole.replace(old, new)
    return whole


def _websocket(port: int, validator: int) -> str:
    return WEBSOCKET.replace("PORT", str(port)).replace("VALIDATOR", str(validator))


def _nginx(configure: Callable[[int, int], str]) -> "Callable[[Path, int], Iterator[int]]":
    def run(folder: Path, validator: int) -> Iterator[int]:
        port = _free_port()
        places = "".join(
            f"{name}_temp_path {folder}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            f"daemon off; {user} worker_processes 1; pid {folder}/pid; error_log {folder}/errors;"
            f"events {{}} http {{ access_log off; {places}\n{configure(port, validator)} }}"
        )
        command = [program("nginx"), "-e", str(folder / "errors")]
        with _running([*command, "-c", str(folder / "nginx.conf")], port) as ready:
            yield ready

    return run


def _haproxy(folder: Path, validator: int) -> Iterator[int]:
    port = _free_port()
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.replace("PORT", str(port)).replace("VALIDATOR", str(validator)))
    with _running([program("haproxy"), "-db", "-f", str(config)], port) as ready:
        yield ready


def _none(_: Path, validator: int) -> Iterator[int]:
    yield validator


PROXIES: Mapping[str, Callable[[Path, int], Iterator[int]]] = {
    "nginx of the guide": _nginx(_guide),
    "nginx for websockets": _nginx(_websocket),
    "HAProxy": _haproxy,
    "none": _none,
}


@contextmanager
def proxied(name: str, folder: Path, validator: int) -> Iterator[int]:
    """Run the proxy ``name`` before the validator at port ``validator``; gives its port."""
    folder.mkdir()
    yield from PROXIES[name](folder, validator)
