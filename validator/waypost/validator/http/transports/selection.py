"""Which transport a provider is reached by, and all that is read for it, once, at start."""

from collections.abc import Mapping
from importlib.util import find_spec

from waypost.validator.config.providers import ProviderConfig
from waypost.validator.config.value_types import ConfigError
from waypost.validator.http.client import Origin
from waypost.validator.http.transports.interface import Transport
from waypost.validator.http.transports.proxies import (
    Proxy,
    ProxyError,
    environment_proxy,
    parse_proxy,
)
from waypost.validator.http.transports.tls import tls_context

__all__ = ["open_transport"]

_HEADERS = {
    "Accept": "*/*",
    # Bytes pass through untouched, so they had better not be compressed.
    "Accept-Encoding": "identity",
    "User-Agent": "waypost",
}


def open_transport(name: str, config: ProviderConfig, environment: Mapping[str, str]) -> Transport:
    """Return what requests to provider ``name`` are sent with: ours, or the library's.

    The library's is for a proxy, a client certificate or HTTP/2.

    Raises:
        ConfigError: a file, a proxy or what is installed does not do; the message has the mend.
    """
    who = f"provider {name}"
    proxy = _proxy(who, config, environment)
    tls = None
    if config.ca_file is not None or config.client_cert is not None:
        tls = tls_context(
            who,
            ca_file=config.ca_file,
            client_cert=config.client_cert,
            client_key=config.client_key,
        )
    if proxy is None and config.client_cert is None and not config.http2:
        return Origin(
            config.base_url,
            headers=_HEADERS,
            connect_timeout_s=config.connect_timeout_s,
            tls=tls,
        )
    if config.http2:
        _check_http2(who)
    # Imported where it is wanted: few are behind a proxy.
    from waypost.validator.http.transports.library import LibraryOrigin

    return LibraryOrigin(
        config.base_url,
        headers=_HEADERS,
        connect_timeout_s=config.connect_timeout_s,
        tls=tls or tls_context(who, ca_file=None, client_cert=None, client_key=None),
        proxy=proxy,
        http2=config.http2,
    )


def _proxy(who: str, config: ProviderConfig, environment: Mapping[str, str]) -> Proxy | None:
    if config.proxy == "none":
        return None
    if config.proxy is None:
        try:
            return environment_proxy(config.base_url, environment)
        except ProxyError as exc:
            raise ConfigError(
                f"{who}: the proxy in the environment cannot be used: {exc}; name another, or"
                " set proxy: none"
            ) from None
    try:
        proxy = parse_proxy(config.proxy)
    except ProxyError as exc:
        raise ConfigError(f"{who}: proxy cannot be used: {exc}") from None
    if config.proxy_auth is None:
        return proxy
    return Proxy(proxy.url, _login(who, config.proxy_auth, environment))


def _login(who: str, variable: str, environment: Mapping[str, str]) -> tuple[str, str]:
    user, colon, password = environment.get(variable, "").strip().partition(":")
    if not colon or not (user + password).isascii():
        raise ConfigError(
            f"{who}: proxy_auth needs user:password in the environment variable {variable}; set it"
        )
    return user, password


def _check_http2(who: str) -> None:
    if find_spec("h2") is None:
        raise ConfigError(f"{who}: http2 needs the extra: pip install 'waypost[http2]'")
