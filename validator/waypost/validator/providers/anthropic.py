"""Anthropic's dialect."""

__all__ = ["NATIVE", "VERSION", "headers"]

NATIVE = {"messages": "/messages"}
VERSION: str | None = "2023-06-01"


def headers(api_key: str | None) -> dict[str, str]:
    """See ``Dialect``."""
    always = {"content-type": "application/json"}
    return always if api_key is None else {**always, "x-api-key": api_key}
