"""Which proxy a provider is reached through: its own, the environment's, or none.

The environment is read as curl and Go have it: ``HTTPS_PROXY`` or ``HTTP_PROXY`` by the URL's
scheme, else ``ALL_PROXY``, in small letters first; ``NO_PROXY`` names hosts, domains with all
below them, networks, each also with a port, or ``*``. As in Go, this machine itself is never
reached through the environment's proxy.

Sources: https://everything.curl.dev/usingcurl/proxies/env.html and
https://pkg.go.dev/golang.org/x/net/http/httpproxy, both read 2026-11-28.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct

__all__ = ["Proxy", "ProxyError", "environment_proxy", "parse_proxy"]


class ProxyError(ValueError):
    """What is given as a proxy is none; the message quotes nothing of it but its scheme."""


class Proxy(Struct, frozen=True):
    """A proxy. ``login`` is user and password; it is in no text that this makes."""

    url: str
    login: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"Proxy({self.url})"


def parse_proxy(text: str) -> Proxy:
    """Return the proxy at a URL, with or without a login in it.

    Raises:
        ProxyError: it is no URL of a proxy that we can speak to.
    """
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise ProxyError("it is no URL with a host and a port") from None
    if parts.scheme not in ("http", "https"):
        raise ProxyError(f"a proxy of scheme {parts.scheme} is not spoken to; http and https are")
    if not parts.hostname:
        raise ProxyError("it has no host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else 80
    login = None
    if parts.username is not None:
        login = (unquote(parts.username), unquote(parts.password or ""))
        if not "".join(login).isascii():
            raise ProxyError("its login holds letters beyond ASCII")
    return Proxy(f"{parts.scheme}://{host}:{port or default}", login)


def environment_proxy(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that ``environment`` has for ``url``, if any.

    Raises:
        ProxyError: what it has is none.
    """
    parts = urlsplit(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port
    port = port or (443 if parts.scheme == "https" else 80)
    found = _variable(environment, f"{parts.scheme}_proxy") or _variable(environment, "all_proxy")
    if not found or _is_here(host) or _is_spared(host, port, _variable(environment, "no_proxy")):
        return None
    return parse_proxy(found)


def _variable(environment: Mapping[str, str], name: str) -> str:
    return (environment.get(name) or environment.get(name.upper()) or "").strip()


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_here(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _is_spared(host: str, port: int, no_proxy: str) -> bool:
    entries = (entry.strip().lower() for entry in no_proxy.replace(" ", ",").split(","))
    return any(_matches(host.lower(), port, entry) for entry in entries if entry)


def _matches(host: str, port: int, entry: str) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if address is not None:
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            pass  # no network: a name, or an address with a port
    name, colon, its_port = entry.rpartition(":")
    if not colon or not its_port.isdecimal() or _address(entry) is not None:
        name, its_port = entry, str(port)
    name = name.strip("[]").removeprefix("*").removeprefix(".").rstrip(".")
    if its_port != str(port) or not name:
        return False
    return host == name or (address is None and host.endswith(f".{name}"))
