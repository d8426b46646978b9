"""The newest user message for a record, where the operator wants it, with what is regulated out.

Detectors say whether a text holds something, not where; so whole lines are taken out, and the
whole text where something runs over lines. What no detector knows stays in.
"""

from waypost.shared.decision.reading import Findings, TextReader
from waypost.shared.requests.apis import measure
from waypost.validator.detectors import Detectors, load_detectors
from waypost.validator.detectors.patterns import BUILT_IN
from waypost.validator.dialects.adapter import InboundRequest

__all__ = ["newest_message", "redacted", "redactor"]

MAX_CHARS = 8_000


class _Listener(TextReader):
    """Keeps what a measurement gives it to read."""

    def __init__(self) -> None:
        super().__init__(())
        self.is_idle = False
        self.heard = ""

    def read(self, text: str) -> Findings:
        self.heard = text
        return {}


def newest_message(inbound: InboundRequest) -> str:
    """Return the text of the newest user message, whatever API it came by."""
    listener = _Listener()
    measure(inbound.endpoint, inbound.request, body=inbound.body, reader=listener)
    return listener.heard


def redactor(configured: dict[str, str]) -> Detectors:
    """Return detectors of every kind that is built in or configured."""
    return load_detectors({**dict.fromkeys(BUILT_IN, "redacted"), **configured})


def redacted(text: str, detectors: Detectors) -> str:
    """Return at most 8,000 characters of ``text`` in which the detectors find nothing."""
    if len(text) > MAX_CHARS:
        # Half a number is not recognised, so the last word goes as well.
        text = text[:MAX_CHARS].rsplit(None, 1)[0] + " […]"
    found = detectors.find([text])
    if not found:
        return text
    kept: list[str] = []
    for line in text.split("\n"):
        here = detectors.find([line])
        kept.append(f"[redacted: {', '.join(sorted(here))}]" if here else line)
    result = "\n".join(kept)
    if detectors.find([result]):
        return f"[redacted: {', '.join(sorted(found))}]"
    return result
