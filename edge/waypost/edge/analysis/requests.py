"""Facts as a request that someone can send, to see with their own eyes. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime
from shlex import quote

import msgspec

from waypost.shared.contracts import AUTO, Facts, Proposal
from waypost.shared.requests.measure import BYTES_PER_TOKEN, IMAGE_TOKENS, TOKENS_PER_MESSAGE
from waypost.shared.wire.headers import FACTS, PROPOSAL, format_facts, format_proposal

__all__ = ["as_curl"]

PATHS = {
    "chat.completions": "/v1/decide",  # decides as for a chat, and spends nothing
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
LONG = 200  # text longer than this is made by the shell
FILL = "\ue000"  # where it goes; in no prompt of ours


def as_curl(facts: Facts, proposal: Proposal | None) -> str:
    """Return a shell command that asks a validator about such a request.

    What a command cannot bring about, as the time of day, is said in comments above it.
    """
    token = ["waypost token mint --sub you --account trial --tier", quote(facts.signed.tier)]
    token += [f"--tenant {quote(facts.signed.tenant)}"] if facts.signed.tenant else []
    token += [f"--region {quote(facts.signed.region)}"] if facts.signed.region else []
    headers = [quote("Content-Type: application/json")]
    said = format_facts(facts.declared)
    headers += [quote(f"{FACTS}: {said}")] if said else []
    headers += [quote(f"{PROPOSAL}: {format_proposal(proposal)}")] if proposal else []
    lines = [
        f'curl "$WAYPOST_URL{PATHS.get(facts.measured.endpoint, "/v1/decide")}"',
        f'-H "Authorization: Bearer $({" ".join(token)})"',
        *(f"-H {header}" for header in headers),
        f"-d {_body(facts)}",
    ]
    return "\n".join([*(f"# {remark}" for remark in _remarks(facts)), " \\\n  ".join(lines)])


def _body(facts: Facts) -> str:
    measured = facts.measured
    chars = measured.input_tokens - TOKENS_PER_MESSAGE * measured.messages
    chars -= IMAGE_TOKENS * ("vision" in measured.needs)
    words = "".join(f"{word}, " for word in measured.keywords)
    left = max(0, chars * BYTES_PER_TOKEN - len(words.encode()))
    text = words + ("x" * left if left <= LONG else FILL)
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    if "vision" in measured.needs:
        parts.append({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}})
    if "audio" in measured.needs:
        parts.append({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})
    body: dict[str, object] = {
        "model": AUTO,
        "messages": [{"role": "user", "content": text if len(parts) == 1 else parts}],
    }
    if measured.max_output_tokens is not None:
        body["max_tokens"] = measured.max_output_tokens
    if "json" in measured.needs:
        body["response_format"] = {"type": "json_object"}
    if "tools" in measured.needs:
        body["tools"] = [{"type": "function", "function": {"name": "look_up"}}]
    filler = f"'\"$(head -c {left} /dev/zero | tr '\\0' x)\"'"
    return quote(msgspec.json.encode(body).decode()).replace(FILL, filler)


def _remarks(facts: Facts) -> Iterator[str]:
    measured = facts.measured
    if measured.messages != 1:
        yield f"in a conversation of {measured.messages} messages"
    if measured.input_bytes:
        yield f"of {measured.input_bytes} bytes"
    for name in ("complexity", "semantic", "language"):
        value = getattr(measured, name)
        if value:
            yield f"whose newest message has {name} {value}"
    if measured.patterns:
        yield f"whose newest message matches {' and '.join(measured.patterns)}"
    if facts.signed.cohort:
        yield f"from a caller of cohort {facts.signed.cohort}"
    if measured.out_of_service:
        yield f"while out of service: {', '.join(measured.out_of_service)}"
    if measured.untranslatable:
        yield f"which the providers of {', '.join(measured.untranslatable)} cannot express"
    if measured.affordable_nusd is not None:
        yield f"with {measured.affordable_nusd} nano-dollars left to spend"
    yield f"at {datetime.fromtimestamp(facts.now, UTC):%Y-%m-%dT%H:%M:%SZ}"
