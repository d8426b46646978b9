"""Tells the operator's own URL what a command that nobody watches has met.

What is told goes to the log as well, so that a URL that does not answer loses nothing.
"""

from typing import Any

from msgspec import json

__all__ = ["tell"]

TIMEOUT_S = 10.0


def tell(url: str, event: dict[str, Any]) -> bool:
    """Return whether ``url`` took the event, as JSON by POST. Never raises."""
    import httpx

    try:
        answer = httpx.post(
            url,
            content=json.encode(event),
            headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_S,
        )
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return answer.is_success
