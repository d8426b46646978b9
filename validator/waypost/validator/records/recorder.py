"""Keeps what became of a request, and shows it to whoever counts or traces."""

import logging
from collections.abc import Callable, Sequence

from anyio import to_thread
from msgspec import structs

from waypost.shared.records import DecisionRecord
from waypost.validator.detectors import Detectors
from waypost.validator.dialects.adapter import InboundRequest
from waypost.validator.records.prompts import newest_message, redacted
from waypost.validator.records.sink import RecordSink

__all__ = ["Recorder"]

logger = logging.getLogger(__name__)


class Recorder:
    """Every record goes through here once.

    Attributes:
        sink: on its way to the store.
    """

    def __init__(
        self,
        sink: RecordSink,
        *,
        observers: Sequence[Callable[[DecisionRecord], None]],
        redactor: Detectors | None,
    ) -> None:
        """Args:
        observers: are shown each record, in this order.
        redactor: finds what is taken out of a prompt; ``None``: no prompt is kept.
        """
        self.sink = sink
        self._observers = tuple(observers)
        self._redactor = redactor

    def note(self, record: DecisionRecord) -> None:
        """Keep and count what became of a request."""
        self.sink.put(record)
        self.count(record)

    def count(self, record: DecisionRecord) -> None:
        """Show the observers what became of a request."""
        for observe in self._observers:
            try:
                observe(record)
            except Exception:
                # Whoever cannot count it costs nobody else the record, nor the answer.
                logger.exception("request %s is not counted", record.id)

    async def with_prompt(self, record: DecisionRecord, inbound: InboundRequest) -> DecisionRecord:
        """Return the record with the newest user message, redacted, if the operator wants it."""
        detectors = self._redactor
        if detectors is None:
            return record
        # Off the loop: detectors take milliseconds for a long message.
        prompt = await to_thread.run_sync(lambda: redacted(newest_message(inbound), detectors))
        return structs.replace(record, prompt=prompt)
