"""Which real providers can be used, and which of their models play the demo's parts."""

from collections.abc import Mapping
from http import HTTPStatus

import httpx
import msgspec
from msgspec import Struct

from waypost.demo.upstream import Relay
from waypost.shared.errors import WaypostError

__all__ = ["Live", "LiveError", "find_live"]

OPENAI = "https://api.openai.com/v1"
# Documented as OpenAI compatible, except for the list of models, which wants its own headers.
ANTHROPIC = "https://api.anthropic.com/v1"
ANTHROPIC_VERSION = "2023-06-01"

# The first that the account has, newest match first, for the cheap part and the capable one.
# Models that think before they answer are left out: short limits leave them nothing to say.
OPENAI_MODELS = (("gpt-4.1-nano", "gpt-4o-mini"), ("gpt-4.1-mini", "gpt-4o"))
ANTHROPIC_MODELS = (("claude-haiku", "claude-3-5-haiku"), ("claude-sonnet", "claude-opus"))

TIMEOUT_S = 15.0


class LiveError(WaypostError):
    """No real provider can be used; the message says what to set or what it answered."""

    code = "live_unavailable"


class Live(Struct, frozen=True, kw_only=True):
    """One real provider.

    Attributes:
        cheap: its name for the model that plays the inexpensive ones; ``capable`` likewise.
        max_tokens_field: what it calls the answer's limit.
    """

    host: str
    relay: Relay
    cheap: str
    capable: str
    max_tokens_field: str = "max_tokens"


def find_live(environment: Mapping[str, str], *, http: httpx.Client) -> dict[str, Live]:
    """Return what is to play each of the demo's providers; ``""`` stands for all the others.

    Each provider is asked for its models, so that a wrong key is found before anything starts.

    Raises:
        LiveError: no key, or a provider does not answer or does not take it.
    """
    base_url = environment.get("WAYPOST_LIVE_BASE_URL", "").rstrip("/")
    if base_url:
        key = environment.get("WAYPOST_LIVE_API_KEY", "")
        wanted = environment.get("WAYPOST_LIVE_MODEL", "")
        return {"": _live(http, base_url, key, wanted=((wanted,), (wanted,)))}
    found: dict[str, Live] = {}
    if key := environment.get("OPENAI_API_KEY", ""):
        found["openai"] = _live(
            http, OPENAI, key, wanted=OPENAI_MODELS, max_tokens_field="max_completion_tokens"
        )
    if key := environment.get("ANTHROPIC_API_KEY", ""):
        headers = {"x-api-key": key, "anthropic-version": ANTHROPIC_VERSION}
        found["anthropic"] = _live(http, ANTHROPIC, key, wanted=ANTHROPIC_MODELS, headers=headers)
    if not found:
        raise LiveError(
            "--live needs OPENAI_API_KEY, ANTHROPIC_API_KEY, or WAYPOST_LIVE_BASE_URL "
            "(with WAYPOST_LIVE_API_KEY) of any OpenAI-compatible server",
            code="live_not_configured",
        )
    return {"": next(iter(found.values())), **found}


def _live(
    http: httpx.Client,
    base_url: str,
    key: str,
    *,
    wanted: tuple[tuple[str, ...], tuple[str, ...]],
    max_tokens_field: str = "max_tokens",
    headers: Mapping[str, str] | None = None,
) -> Live:
    host = httpx.URL(base_url).host
    own = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = http.get(
            f"{base_url}/models", headers={**own, **(headers or {})}, timeout=TIMEOUT_S
        )
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise LiveError(f"{base_url} cannot be reached: {type(exc).__name__}") from exc
    if answer.status_code != HTTPStatus.OK:
        raise LiveError(f"{base_url}/models answers {answer.status_code}; check URL and key")
    try:
        listed = msgspec.json.decode(answer.content, type=_Models).data
    except msgspec.DecodeError:
        raise LiveError(f"{base_url}/models does not answer as OpenAI's API does") from None
    names = [model.id for model in listed]
    cheap, capable = (_first(names, prefixes) for prefixes in wanted)
    if cheap is None or capable is None:
        raise LiveError(f"{host} offers none of {', '.join(sum(wanted, ()))}")
    return Live(
        host=host,
        relay=Relay(base_url=base_url, api_key=key),
        cheap=cheap,
        capable=capable,
        max_tokens_field=max_tokens_field,
    )


def _first(names: list[str], prefixes: tuple[str, ...]) -> str | None:
    for prefix in prefixes:
        # The plain name before its dated copies, if there is one.
        matches = [name for name in names if name.startswith(prefix)]
        if matches:
            return prefix if prefix in matches else matches[0]
    return None


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]
