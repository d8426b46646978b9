"""The way to a provider: addresses, proxies, authorities, certificates, HTTP/2."""

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import pytest

from support.certificates import Authority
from support.debian import program
from support.proxy import running_proxy
from support.upstream import Upstream, answering, running_upstream
from support.validator import ENVIRONMENT, running_validator
from waypost.cli.listening import listen
from waypost.validator.config import ConfigError, load_config
from waypost.validator.config.providers import ProviderConfig
from waypost.validator.http.client import ExchangeError, Origin
from waypost.validator.http.transports import dialer
from waypost.validator.http.transports.interface import Transport
from waypost.validator.http.transports.library import LibraryOrigin
from waypost.validator.http.transports.proxies import (
    Proxy,
    ProxyError,
    environment_proxy,
    parse_proxy,
)
from waypost.validator.http.transports.selection import open_transport

pytestmark = pytest.mark.anyio

# ── addresses ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def black_hole() -> Iterator[int]:
    """A port of 127.0.0.2 whose queue is full: connections to it are neither made nor refused."""
    with socket.socket() as full:
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            yield full.getsockname()[1]
        finally:
            for one in waiting:
                one.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    async def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, address) for address in addresses]

    monkeypatch.setattr(dialer, "look_up", getaddrinfo)


async def post(transport: Transport, *, wait_s: float = 5.0) -> bytes:
    until = asyncio.get_running_loop().time() + wait_s
    try:
        with await transport.send(b"{}", until=until) as response:
            return await response.read_all(until=until, at_most=10**6)
    finally:
        await transport.close()


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_a_dead_first_address_costs_a_quarter_of_a_second_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_upstream(answering()) as upstream:
        with black_hole() as dead:
            resolve_to(monkeypatch, ("127.0.0.2", dead), ("127.0.0.1", upstream.port))
            transport = Origin("http://two.test/v1", headers={}, connect_timeout_s=3)
            assert b"Four." in await post(transport)


async def test_the_address_that_answered_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[tuple[str, int]]] = []
    real = aiohappyeyeballs.start_connection

    async def connect(addresses: Any, **how: Any) -> socket.socket:  # noqa: ANN401 - passed on
        tried.append([address[4] for address in addresses])
        return await real(addresses, **how)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", connect)
    async with running_upstream(answering()) as upstream:
        gone, alive = ("127.0.0.3", upstream.port), ("127.0.0.1", upstream.port)
        resolve_to(monkeypatch, gone, alive)
        transport = Origin("http://two.test/v1", headers={}, connect_timeout_s=3)
        until = asyncio.get_running_loop().time() + 5
        for _ in range(2):
            with await transport.send(b"{}", until=until):
                pass  # left early, so the next is a new connection
        await transport.close()

    assert tried == [[gone, alive], [alive, gone]]


async def test_no_address_that_answers_ends_in_the_time_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with black_hole() as dead:
        resolve_to(monkeypatch, ("127.0.0.2", dead))
        with pytest.raises(ExchangeError) as slow:
            await post(Origin("http://a.test/v1", headers={}, connect_timeout_s=0.2))
        with pytest.raises(ExchangeError) as hurried:
            await post(Origin("http://a.test/v1", headers={}, connect_timeout_s=9), wait_s=0.2)

    assert (slow.value.stage, hurried.value.stage) == ("connect", "timeout")


async def test_a_name_server_that_hangs_is_asked_once_and_ends_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    async def hang(*_: object) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(3_600)

    monkeypatch.setattr(dialer, "look_up", hang)
    transport = Origin("http://a.test/v1", headers={}, connect_timeout_s=0.2)
    until = asyncio.get_running_loop().time() + 5
    failures = await asyncio.gather(
        *(transport.send(b"{}", until=until) for _ in range(20)), return_exceptions=True
    )
    await transport.close()

    assert {str(failure)[:8] for failure in failures} == {"connect:"}
    assert asked == 1


@pytest.mark.parametrize("host", ["nobody.invalid", "x" * 64 + ".test", "a..test"])
async def test_a_name_that_does_not_resolve_is_a_failure_to_connect(host: str) -> None:
    with pytest.raises(ExchangeError) as failure:
        await post(Origin(f"http://{host}/v1", headers={}, connect_timeout_s=2))

    assert failure.value.stage == "connect"


# ── proxies ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://api.x.com/v1", {}, None),
        ("https://api.x.com/v1", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://api.x.com/v1", {"https_proxy": "p"}, "http://p:80"),
        ("https://api.x.com/v1", {"HTTP_PROXY": "http://p:3128"}, None),
        ("http://api.x.com/v1", {"HTTP_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://api.x.com/v1", {"ALL_PROXY": "https://p"}, "https://p:443"),
        ("https://api.x.com/v1", {"HTTPS_PROXY": "p:1", "NO_PROXY": "*"}, None),
        ("https://api.x.com/v1", {"HTTPS_PROXY": "p:1", "NO_PROXY": "a.b, x.com"}, None),
        ("https://api.x.com/v1", {"HTTPS_PROXY": "p:1", "no_proxy": ".X.com"}, None),
        ("https://api.x.com/v1", {"HTTPS_PROXY": "p:1", "no_proxy": "*.x.com"}, None),
        ("https://api.x.com/v1", {"HTTPS_PROXY": "p:1", "no_proxy": "x.com:443"}, None),
        ("https://api.x.com/v1", {"HTTPS_PROXY": "p:1", "no_proxy": "x.com:80"}, "http://p:1"),
        ("https://apix.com/v1", {"HTTPS_PROXY": "p:1", "no_proxy": "x.com"}, "http://p:1"),
        ("http://10.1.2.3/v1", {"HTTP_PROXY": "p:1", "no_proxy": "10.0.0.0/8"}, None),
        ("http://10.1.2.3/v1", {"HTTP_PROXY": "p:1", "no_proxy": "10.1.2.3:80"}, None),
        ("http://11.1.2.3/v1", {"HTTP_PROXY": "p:1", "no_proxy": "10.0.0.0/8"}, "http://p:1"),
        ("http://[fd00::1]/v1", {"HTTP_PROXY": "p:1", "no_proxy": "fd00::/8"}, None),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "p:1"}, None),
        ("http://localhost:8000/v1", {"ALL_PROXY": "p:1"}, None),
        ("http://[::1]:8000/v1", {"HTTP_PROXY": "p:1"}, None),
    ],
)
def test_the_environment_says_which_proxy(
    url: str, environment: dict[str, str], proxy: str | None
) -> None:
    found = environment_proxy(url, environment)

    assert (found and found.url) == proxy


def test_a_login_in_a_proxys_url_is_shown_nowhere() -> None:
    proxy = parse_proxy("http://me:p%40ss@[::1]:3128/")

    assert proxy == Proxy("http://[::1]:3128", ("me", "p@ss"))
    assert "p@ss" not in f"{proxy!r}{proxy}"


@pytest.mark.parametrize(
    "text", ["socks5://s3cret@p:1", "http://s3cret@p:x", "http://s3cret@", "http://[s3cret"]
)
def test_a_proxy_that_is_none_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ProxyError) as refusal:
        parse_proxy(text)

    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize("login", [None, "me:wrong", "me:right"])
async def test_a_proxy_wants_its_login(tmp_path: Path, login: str | None) -> None:
    authority = Authority(tmp_path)
    async with (
        running_upstream(answering(), tls=authority.server("127.0.0.1")) as upstream,
        running_proxy(login="me:right") as proxy,
    ):
        config = ProviderConfig(
            base_url=upstream.base_url,
            ca_file=authority.ca_file,
            proxy=proxy.url,
            proxy_auth=None if login is None else "LOGIN",
        )
        transport = open_transport("acme", config, {"LOGIN": login or ""})
        if login == "me:right":
            assert b"Four." in await post(transport)
        else:
            with pytest.raises(ExchangeError) as failure:
                await post(transport)
            assert failure.value.stage == "connect"

    assert proxy.asked == [f"CONNECT 127.0.0.1:{upstream.port} HTTP/1.1"]


async def test_a_plain_provider_is_asked_through_the_proxy_by_its_whole_url() -> None:
    async with running_upstream(answering()) as upstream, running_proxy() as proxy:
        config = ProviderConfig(base_url=upstream.base_url, proxy=proxy.url)
        transport = open_transport("acme", config, {})
        assert b"Four." in await post(transport)

    assert proxy.asked == [f"POST {upstream.base_url} HTTP/1.1"]


async def test_a_proxy_that_says_nothing_is_a_failure_to_connect() -> None:
    async with running_proxy() as proxy:
        proxy.is_silent = True
        config = ProviderConfig(
            base_url="https://10.0.0.1/v1", proxy=proxy.url, connect_timeout_s=0.2
        )
        with pytest.raises(ExchangeError) as failure:
            await post(open_transport("acme", config, {}))

    assert failure.value.stage == "connect"


async def test_proxy_none_turns_the_environment_off() -> None:
    environment = {"HTTPS_PROXY": "http://p:1", "HTTP_PROXY": "http://p:1"}
    of_environment = ProviderConfig(base_url="https://api.x.com/v1")
    of_none = ProviderConfig(base_url="https://api.x.com/v1", proxy="none")

    assert isinstance(open_transport("acme", of_environment, environment), LibraryOrigin)
    assert isinstance(open_transport("acme", of_none, environment), Origin)


# ── authorities and certificates ───────────────────────────────────────────────────────────────


async def test_only_the_given_authority_is_believed(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path, "Ours"), Authority(tmp_path, "Other")
    async with running_upstream(answering(), tls=ours.server("127.0.0.1")) as upstream:
        for authority in (ours, other):
            config = ProviderConfig(base_url=upstream.base_url, ca_file=authority.ca_file)
            transport = open_transport("acme", config, {})
            assert isinstance(transport, Origin)
            if authority is ours:
                assert b"Four." in await post(transport)
            else:
                with pytest.raises(ExchangeError) as failure:
                    await post(transport)
                assert failure.value.stage == "connect"


@pytest.mark.parametrize("has_library", [False, True])
async def test_a_certificate_for_another_host_is_a_failure_to_connect(
    tmp_path: Path, has_library: bool
) -> None:
    authority = Authority(tmp_path)
    async with running_upstream(answering(), tls=authority.server("other.test")) as upstream:
        config = ProviderConfig(
            base_url=upstream.base_url, ca_file=authority.ca_file, http2=has_library
        )
        with pytest.raises(ExchangeError) as failure:
            await post(open_transport("acme", config, {}))

    assert failure.value.stage == "connect"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca_file": "gone.pem"}, "ca_file: .*gone.pem does not exist"),
        ({"ca_file": "empty.pem"}, "holds no certificate in PEM"),
        ({"ca_file": "."}, "ca_file: .* cannot be read"),
        ({"client_cert": "gone.pem"}, "client_cert: .*gone.pem does not exist"),
        ({"client_cert": "own.pem", "client_key": "gone.key"}, "client_key: .* does not exist"),
        ({"client_cert": "own.pem"}, "that belong together"),
        ({"client_cert": "own.pem", "client_key": "other.key"}, "that belong together"),
        ({"client_cert": "own.pem", "client_key": "hidden.key"}, "is encrypted"),
    ],
)
def test_a_file_that_does_not_do_stops_the_start_with_its_mend(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    authority = Authority(tmp_path)
    shutil.copy(authority.issue("own")[0], tmp_path / "own.pem")
    shutil.copy(authority.issue("other")[1], tmp_path / "other.key")
    shutil.copy(authority.issue("own", password=b"x")[1], tmp_path / "hidden.key")
    (tmp_path / "empty.pem").write_bytes(b"")
    config = ProviderConfig.model_validate({"base_url": "https://x.test/v1", **files})

    with pytest.raises(ConfigError, match=f"provider acme: .*{message}"):
        open_transport("acme", config.below(tmp_path), {})


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ({"proxy": "http://me:s3cret@p:1"}, "proxy_auth"),
        ({"proxy": "socks5://s3cret:1"}, "should be none, or the URL of a proxy"),
        ({"proxy": "http://p:1/s3cret"}, "scheme, host and port only"),
        ({"proxy_auth": "LOGIN"}, "set proxy as well"),
        ({"client_key": "s3cret"}, "set client_cert as well"),
        (
            {"base_url": "http://x.test/v1", "http2": True},
            "http2 is for TLS; base_url must begin with",
        ),
        (
            {"base_url": "http://x.test/v1", "ca_file": "s3cret"},
            "ca_file is for TLS; base_url must begin",
        ),
    ],
)
def test_a_wrong_way_is_refused_with_its_line(
    tmp_path: Path, provider: dict[str, object], message: str
) -> None:
    path = tmp_path / "validator.yaml"
    settings = {
        "audience": "https://validator.example",
        "manifest": {"root": "root.json", "admin": True},
        "providers": {"acme": {"base_url": "https://x.test/v1", **provider}},
    }
    path.write_text(json.dumps(settings))

    with pytest.raises(ConfigError, match=message) as refusal:
        load_config(path)

    assert "s3cret" not in str(refusal.value)


async def test_a_login_that_is_not_set_stops_the_start() -> None:
    config = ProviderConfig(base_url="https://x.test/v1", proxy="http://p:1", proxy_auth="LOGIN")

    with pytest.raises(ConfigError, match="user:password in the environment variable LOGIN"):
        open_transport("acme", config, {"LOGIN": "s3cret"})


async def test_a_proxy_of_the_environment_that_is_none_stops_the_start() -> None:
    config = ProviderConfig(base_url="https://x.test/v1")

    with pytest.raises(ConfigError, match="proxy: none"):
        open_transport("acme", config, {"ALL_PROXY": "socks5://p:1"})


# ── HTTP/2 ─────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def behind_http2(folder: Path, upstream: Upstream) -> AsyncGenerator[ProviderConfig]:
    """nginx in front of ``upstream``, that speaks HTTP/2."""
    nginx = program("nginx")
    authority = Authority(folder)
    cert, key = authority.issue("127.0.0.1")
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body;"
        f" proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;"
        f" uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {cert};"
        f" ssl_certificate_key {key}; client_max_body_size 64m; client_body_buffer_size 8m;\n"
        f"location / {{ proxy_pass http://127.0.0.1:{upstream.port}; proxy_http_version 1.1;"
        f" proxy_buffering off; add_header X-Spoken $server_protocol; }} }} }}\n"
    )
    command: list[str | Path] = [
        nginx,
        "-p",
        folder,
        "-e",
        folder / "error.log",
        "-c",
        folder / "nginx.conf",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield ProviderConfig(
            base_url=f"https://127.0.0.1:{port}/v1", ca_file=authority.ca_file, http2=True
        )
    finally:
        process.terminate()
        process.wait(10)


async def test_a_provider_is_spoken_to_by_http2(tmp_path: Path) -> None:
    async with (
        running_upstream(answering("one two three")) as upstream,
        behind_http2(tmp_path, upstream) as config,
    ):
        transport = open_transport("acme", config, {})
        until = asyncio.get_running_loop().time() + 20
        for body in (b'{"stream": true}', b"{" + b" " * 3_000_000 + b"}"):
            with await transport.send(body, until=until) as response:
                assert isinstance(response._response.extensions, dict)  # type: ignore[attr-defined]
                assert response._response.extensions["http_version"] == b"HTTP/2"  # type: ignore[attr-defined]
                answer = await response.read_all(until=until, at_most=10**6)
                assert b"one" in answer
                assert response.content_type.startswith(("text/event-stream", "application/json"))
        await transport.close()

    assert [len(seen.body) for seen in upstream.seen] == [16, 3_000_002]


async def test_leaving_a_stream_of_http2_stops_the_provider(tmp_path: Path) -> None:
    from support.upstream import Exchange

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        while True:
            await exchange.chunk(b"more")
            await asyncio.sleep(0.01)

    async with (
        running_upstream(behave) as upstream,
        behind_http2(tmp_path, upstream) as config,
    ):
        transport = open_transport("acme", config, {})
        until = asyncio.get_running_loop().time() + 20
        with await transport.send(b"{}", until=until) as response:
            assert await response.read(until=until)
        async with asyncio.timeout(10):
            await upstream.hung_up.wait()
        await transport.close()


# ── all of it ──────────────────────────────────────────────────────────────────────────────────


async def test_a_validator_serves_through_a_proxy_with_its_own_certificate(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("validator")
    tls = authority.server("127.0.0.1", asks_clients=True)
    async with (
        running_upstream(answering("Through."), tls=tls) as acme,
        running_upstream() as medcloud,
        running_proxy(login="me:s3cret") as proxy,
        running_validator(
            tmp_path,
            {"acme": acme, "medcloud": medcloud},
            change=lambda providers: providers["acme"].update(
                ca_file=str(authority.ca_file),
                client_cert=str(cert),
                client_key=str(key),
                proxy=proxy.url,
                proxy_auth="PROXY_LOGIN",
            ),
            environment={**ENVIRONMENT, "PROXY_LOGIN": "me:s3cret"},
        ) as validator,
    ):
        response = await validator.chat()

    assert response.status_code == 200
    assert "Through." in response.text
    assert proxy.asked[0].startswith("CONNECT ")
