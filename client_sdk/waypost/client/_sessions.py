"""Which model each conversation is with, and how much of its prompt that model has cached.

Providers keep the beginning of a prompt for some minutes and charge a fraction for reading it
again; another model would read all of it anew. Kept here, by this client, for a bounded number
of conversations; what travels is the model and a number of tokens, never a conversation's name.
"""

from collections import OrderedDict
from threading import Lock

from waypost.shared.contracts import Session

__all__ = ["Sessions"]

MOST = 1_024  # conversations; the one that was quiet for longest is forgotten first
KEPT_S = 300.0  # Documented 2025-11: Anthropic 5 minutes, OpenAI 5 to 10 of inactivity.


class Sessions:
    """Conversations by name; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[str, tuple[Session, float]] = OrderedDict()

    def get(self, name: str, *, now_s: float) -> Session | None:
        """Return what is cached of a conversation, as far as that is known and can still be.

        Args:
            now_s: monotonic seconds.
        """
        with self._lock:
            session, at_s = self._known.get(name, (None, 0.0))
        return session if now_s - at_s < KEPT_S else None

    def note(self, name: str, model: str, input_tokens: int, *, now_s: float) -> None:
        """Learn that ``model`` has just read so many tokens of a conversation."""
        with self._lock:
            self._known[name] = (Session(model, input_tokens), now_s)
            self._known.move_to_end(name)
            if len(self._known) > MOST:
                self._known.popitem(last=False)
