"""When a target is given a rest, and for whom. Pure: the caller brings the clock and the luck.

The rule: a rest is as wide as its evidence. What fails for one body of one account rests for that
body; what fails for several bodies of one account, for that account; and for everybody only what
fails for two accounts and two bodies, or before anything was sent. So no account takes a model from
the others, and one that is alone still does not run into a wall again and again.

What another validator says of a target is a doubt: one request finds out, others had better go
elsewhere meanwhile, and nobody is turned away for it. A limit that a provider sets (429) says
nothing here: it has its own remedy (``waypost.validator.upstream.key_pool``).
"""

from collections.abc import Callable, Iterator

from waypost.validator.upstream.rests import ANYONE, JITTER, BreakerRules, Circuit
from waypost.validator.upstream.witnesses import Witness, fingerprint

__all__ = ["ANYONE", "JITTER", "Breaker", "BreakerRules", "Witness"]

MOST_NARROW = 512  # accounts and bodies that failed of late; the oldest is forgotten


def _nobody(accounts: frozenset[str]) -> None:
    """Tell nobody."""


class Breaker:
    """One target's breaker, for one event loop. Instants are monotonic seconds."""

    __slots__ = ("_all", "_doubted_by", "_doubted_until", "_narrow", "_open", "_tell", "rules")

    def __init__(
        self,
        rules: BreakerRules | None = None,
        *,
        opened: "set[Breaker] | None" = None,
        tell: Callable[[frozenset[str]], None] = _nobody,
    ) -> None:
        """Args:
        opened: holds this breaker for as long as something of it is not closed.
        tell: called when it opens for all, with the fingerprints of the accounts that met it;
            empty if it could have been any.
        """
        self.rules = rules or BreakerRules()
        self._tell = tell
        self._open: set[Breaker] = set() if opened is None else opened
        self._all = Circuit(self.rules)
        self._narrow: dict[Witness, Circuit] = {}
        self._doubted_until = 0.0
        self._doubted_by: frozenset[str] = frozenset()

    # ── whether to send ────────────────────────────────────────────────────────────────────

    @property
    def is_closed(self) -> bool:
        """Whether nothing is known against the target as such."""
        return self._all.is_closed

    @property
    def asks_who(self) -> bool:
        """Whether it matters whose request it is; mostly not, and a large body takes time."""
        return bool(self._narrow) or self._all.open_until is not None

    @property
    def narrow_rests(self) -> int:
        """For how many accounts, or bodies of theirs, it rests though not for all."""
        return sum(not circuit.is_closed for circuit in self._narrow.values())

    def refuses(self, now: float, who: Witness = ANYONE) -> bool:
        """Whether a request of ``who`` that came now would be turned away."""
        if self._all.refuses(now, who.account):
            return True
        return any(circuit.refuses(now) for circuit in self._of(who))

    def rests_s(self, now: float, who: Witness = ANYONE) -> float:
        """Return how long it still rests for ``who``; 0 when it does not, or waits for a probe."""
        rest_s = self._all.rests_s(now, who.account)
        return max([rest_s, *(circuit.rests_s(now) for circuit in self._of(who))])

    def admit(self, now: float, who: Witness = ANYONE) -> bool:
        """Return whether to send a request now; each that is sent ends in one of the below."""
        if self._all.open_until is None and not self._narrow:
            self._all.is_probing = now < self._doubted_until
            return True
        if self.refuses(now, who):
            return False
        self._all.begins_probe()
        for circuit in self._of(who):
            circuit.begins_probe()
        if self._all.is_closed:
            self._all.is_probing = self.is_doubted(now)
        return True

    def wake(self, now: float, who: Witness = ANYONE) -> bool:
        """Return whether it may be probed, however long its rest, as nothing else can serve."""
        resting = [one for one in (self._all, *self._of(who)) if not one.is_closed]
        return bool(resting) and all([circuit.wake(now) for circuit in resting])

    def _of(self, who: Witness) -> Iterator[Circuit]:
        """Give what is kept for this account, and for this body of it."""
        if self._narrow and who.account is not None:
            for key in (Witness(who.account), who):
                circuit = self._narrow.get(key)
                if circuit is not None:
                    yield circuit

    # ── how it went ────────────────────────────────────────────────────────────────────────

    def began(self, *, after_s: float, who: Witness = ANYONE) -> None:
        """The target begins to answer: who waits for a probe need not wait for its last word."""
        if after_s > self.rules.slow_after_s:
            return
        if self._all.is_probing:
            self._doubted_until = 0.0
        self._all.began()
        for circuit in self._of(who):
            circuit.began()
        self._note()

    def succeeded(
        self, now: float, *, after_s: float, who: Witness = ANYONE, rng: float = 0.0
    ) -> None:
        """The target answered; ``after_s`` is when the answer began."""
        is_slow = after_s > self.rules.slow_after_s
        if self._all.open_until is None:
            self._doubted_until = 0.0
            if not (is_slow or self._narrow):
                self._all.answered(now)
                return
        if self._narrow:
            for key in (Witness(who.account), who):
                circuit = self._narrow.get(key)
                if circuit is not None:
                    alone = Witness(None, who.body) if key.body is None else ANYONE
                    circuit.succeeded(now, is_slow=is_slow, witness=alone, rng=rng)
                    if circuit.is_blank:
                        del self._narrow[key]
        if self._all.succeeded(now, is_slow=is_slow, witness=who, rng=rng):
            self._opened()
        if self._open:
            self._note()

    def failed(
        self, now: float, *, rng: float, who: Witness = ANYONE, is_anyones: bool = False
    ) -> None:
        """The target did not answer, or not as a provider should.

        Args:
            rng: 0 to 1, lengthens the rest by up to a fifth.
            is_anyones: whoever had asked, it would have failed, as nothing was sent.
        """
        if self.is_doubted(now) and (is_anyones or self._is_confirmed_by(who)):
            self._all.rest(now, rng)
            self._opened()
        elif self._all.failed(now, witness=ANYONE if is_anyones else who, rng=rng):
            self._opened()
        elif self._all.is_closed and who.account is not None:
            self._fail_narrowly(now, rng, who)
        else:
            for circuit in self._of(who):
                circuit.is_probing = False
        self._note()

    def _is_confirmed_by(self, who: Witness) -> bool:
        """Whether this failure and what others told of are not all of one account."""
        if who.account is None or not self._doubted_by:
            return True
        return bool(self._doubted_by - {fingerprint(who.account)})

    def _fail_narrowly(self, now: float, rng: float, who: Witness) -> None:
        """Note the failure for this account, by its bodies, and for this body of it."""
        self._all.is_probing = False
        for key, alone in ((Witness(who.account), Witness(None, who.body)), (who, ANYONE)):
            circuit = self._narrow.get(key)
            if circuit is None:
                if len(self._narrow) >= MOST_NARROW:
                    self._narrow.pop(next(iter(self._narrow)))
                circuit = self._narrow[key] = Circuit(self.rules)
            circuit.failed(now, witness=alone, rng=rng)

    def _opened(self) -> None:
        """Tell of a rest for all, which whatever failed for one was part of."""
        self._doubted_until = 0.0
        self._narrow.clear()
        self._tell(self._all.accounts())

    def abandoned(self, who: Witness = ANYONE) -> None:
        """The request ended before it could tell, as when the caller hung up."""
        self._all.is_probing = False
        for circuit in self._of(who):
            circuit.is_probing = False

    def tidy(self, now: float) -> None:
        """Forget rests of single accounts that ended long ago and were never asked about."""
        for key in [key for key, circuit in self._narrow.items() if circuit.is_over(now)]:
            del self._narrow[key]
        self._note()

    def _note(self) -> None:
        if self._all.is_closed and not self.narrow_rests:
            self._open.discard(self)
        else:
            self._open.add(self)

    # ── what others say ────────────────────────────────────────────────────────────────────

    def doubt(self, now: float, accounts: frozenset[str] = frozenset()) -> None:
        """The target was given a rest elsewhere: a failure confirms it, any answer clears it.

        What nobody finds out about is forgotten after a window.

        Args:
            accounts: fingerprints of who met it there; empty if it could have been anybody.
        """
        if self._all.is_closed:
            self._doubted_until, self._doubted_by = now + self.rules.window_s, accounts

    def is_doubted(self, now: float) -> bool:
        """Whether another validator has said so of late, and nobody here knows better yet."""
        return now < self._doubted_until

    def is_being_tested(self, now: float) -> bool:
        """Whether it is doubted and a request is finding out; others had better go elsewhere."""
        return self._all.is_probing and self.is_doubted(now)
