"""A world in which latency drifts, providers fail, and thousands of clients choose at once.

Seeded and deterministic: every policy meets the same arrivals, the same answers' lengths, the
same drift and the same faults, and differs only in where it sends a request. Requests queue for
a slot where they are sent, so a herd makes its own outage.

``python -m bench.latency_world`` (from ``tests``) runs it whole; ``make bench`` prints the table.
"""

import argparse
import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import accumulate
from math import exp, pi, sin
from statistics import fmean, median

from waypost.client._choose import Chooser
from waypost.client._core import EJECT_MODEL_AFTER
from waypost.client._latency import LatencyTracker
from waypost.shared.contracts import (
    Declared,
    Facts,
    Hint,
    Hints,
    Measured,
    Model,
    Policy,
    Route,
    Signed,
)
from waypost.shared.decision.compiled import CompiledPolicy, compile_policy
from waypost.shared.decision.engine import Decision, decide
from waypost.shared.money import Price
from waypost.validator.upstream.breaker import Breaker

REGIONS = ("eu", "us", "ap")
ROUND_TRIP_MS = {("eu", "us"): 90.0, ("us", "ap"): 150.0, ("eu", "ap"): 220.0}
REQUESTS_PER_S = 108.0  # of all clients, on average over the day
# Six models of six providers: time to first token (ms, median), tokens per second, slots.
MODELS = {
    "ash": (280.0, 90.0, 30),
    "birch": (330.0, 80.0, 30),
    "cedar": (360.0, 100.0, 30),
    "fir": (520.0, 70.0, 48),
    "oak": (700.0, 60.0, 48),
    "yew": (1_000.0, 50.0, 48),
}
NOISE = 0.35  # sigma of the lognormal time to first token
DRIFT, DRIFT_TAU_S = 0.30, 300.0  # sigma and memory of the slow change of each upstream
EXPECTED_TOKENS = 40
UNSEEN = range(5, 13)  # the chooser's constants were tuned on seeds 1 to 4
BUSY = 10  # a client's activity is as 1 / (rank + this): a tenth of them make half the requests
FAST_FAIL_MS = 20.0
MAX_QUEUE_MS = 2_000.0  # rather than keep a request waiting for longer, a provider answers 429
ATTEMPTS = 3
HINTS_EVERY_S, HINTS_LAG_S = 30.0, 30.0  # how often the fleet's view is signed; and its way


@dataclass(frozen=True)
class Scale:
    """How much of the world to run."""

    clients: int = 2_000
    seconds: float = 1_200.0
    size: float = 1.0  # of the world: its requests and its slots
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when, whose, and the dice that any upstream would throw for it."""

    at_s: float
    client: int
    tokens: int
    luck: float  # factor on the time to first token


@dataclass(frozen=True)
class Fault:
    """``upstreams`` misbehave from ``start_s`` until ``end_s``."""

    name: str
    upstreams: frozenset[str]
    start_s: float
    end_s: float
    slower: float = 1.0
    down: bool = False
    period_s: float = 0.0  # flapping: down in the first half of each period

    def slows(self, upstream: str, at_s: float) -> float:
        return self.slower if self._holds(upstream, at_s) else 1.0

    def fells(self, upstream: str, at_s: float) -> bool:
        if not (self.down and self._holds(upstream, at_s)):
            return False
        if not self.period_s:
            return True
        return (at_s - self.start_s) % self.period_s < self.period_s / 2

    def _holds(self, upstream: str, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s and upstream in self.upstreams


def faults_of(seconds: float) -> tuple[Fault, ...]:
    """An outage of the fastest provider, a slow one, one that flaps; each a tenth of the time."""
    tenth = seconds / 10

    def everywhere(model: str) -> frozenset[str]:
        return frozenset(f"{model}-{region}" for region in REGIONS)

    return (
        Fault("outage", everywhere("ash"), 2 * tenth, 3 * tenth, down=True),
        Fault("slow", everywhere("birch"), 5 * tenth, 6 * tenth, slower=8.0),
        Fault("flapping", everywhere("cedar"), 8 * tenth, 9 * tenth, down=True, period_s=20.0),
    )


class Upstream:
    """One model in one region: slots that requests hold, and a pace that drifts."""

    def __init__(self, name: str, size: float) -> None:
        self.name = name
        self.model, self.region = name.split("-")
        self.ttft_ms, tokens_per_s, slots = MODELS[self.model]
        self.ms_per_token = 1_000 / tokens_per_s
        self.drift = 0.0
        self._free_s = [0.0] * round(slots * size)  # a heap: when each slot is free again

    def queue_ms(self, at_s: float) -> float:
        return max(0.0, self._free_s[0] - at_s) * 1_000

    def pace(self) -> float:
        return exp(self.drift)

    def serve(self, at_s: float, ttft_ms: float, answer_ms: float) -> float:
        """Hold a slot for one request; return how long it waited for it."""
        start_s = max(at_s, heapq.heappop(self._free_s))
        heapq.heappush(self._free_s, start_s + (ttft_ms + answer_ms) / 1_000)
        return (start_s - at_s) * 1_000


def rtt_ms(one: str, other: str) -> float:
    """Return the round trip between two regions."""
    if one == other:
        return 10.0
    return ROUND_TRIP_MS.get((one, other)) or ROUND_TRIP_MS[other, one]


class World:
    """The upstreams as they are at one moment, and what happens to a request."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.faults = faults_of(scale.seconds)
        self.upstreams = {
            f"{model}-{region}": Upstream(f"{model}-{region}", scale.size)
            for model in MODELS
            for region in REGIONS
        }
        self._draw = random.Random(f"{scale.seed}drift")
        self._drifted_s = 0.0
        for upstream in self.upstreams.values():
            upstream.drift = self._draw.gauss(0, DRIFT)

    def arrivals(self) -> Iterator[Asked]:
        """The requests of one day, which passes in the time that the scale has."""
        draw, scale = random.Random(f"{self.scale.seed}asked"), self.scale
        clients = range(scale.clients)
        activity = list(accumulate(1 / (rank + BUSY) for rank in clients))
        at_s = 0.0
        while True:
            at_s += draw.expovariate(2 * REQUESTS_PER_S * scale.size)
            if at_s >= scale.seconds:
                return
            client = draw.choices(clients, cum_weights=activity)[0]
            noon = {"eu": 0.0, "us": 0.25, "ap": 0.6}[region_of(client)]
            busy = 0.5 + 0.4 * sin(2 * pi * (at_s / scale.seconds - noon))
            if draw.random() < busy:
                tokens = max(1, round(EXPECTED_TOKENS * draw.lognormvariate(-0.08, 0.4)))
                yield Asked(at_s, client, tokens, draw.lognormvariate(0, NOISE))

    def drift_to(self, at_s: float) -> None:
        """Let a second's drift pass for each that has; Ornstein-Uhlenbeck, so it comes back."""
        while self._drifted_s + 1 <= at_s:
            self._drifted_s += 1
            for upstream in self.upstreams.values():
                kick = self._draw.gauss(0, DRIFT * (2 / DRIFT_TAU_S) ** 0.5)
                upstream.drift += kick - upstream.drift / DRIFT_TAU_S

    def is_down(self, name: str, at_s: float) -> bool:
        return any(fault.fells(name, at_s) for fault in self.faults)

    def slower(self, name: str, at_s: float) -> float:
        factor = 1.0
        for fault in self.faults:
            factor *= fault.slows(name, at_s)
        return factor

    def expected_ms(self, name: str, region: str, at_s: float) -> float:
        """What an all-knowing chooser expects: the median now, and the queue as it stands."""
        if self.is_down(name, at_s):
            return float("inf")
        upstream = self.upstreams[name]
        ttft_ms = upstream.ttft_ms * upstream.pace() * self.slower(name, at_s)
        answer_ms = EXPECTED_TOKENS * upstream.ms_per_token
        return rtt_ms(region, upstream.region) + upstream.queue_ms(at_s) + ttft_ms + answer_ms

    def send(self, name: str, asked: Asked, region: str, at_s: float) -> tuple[float, float] | None:
        """Return the time to the first and from there to the last token; ``None``: it failed."""
        if self.is_down(name, at_s):
            return None
        upstream = self.upstreams[name]
        if upstream.queue_ms(at_s) > MAX_QUEUE_MS:
            return None
        ttft_ms = upstream.ttft_ms * upstream.pace() * self.slower(name, at_s) * asked.luck
        answer_ms = asked.tokens * upstream.ms_per_token
        queued_ms = upstream.serve(at_s, ttft_ms, answer_ms)
        return rtt_ms(region, upstream.region) + queued_ms + ttft_ms, answer_ms


def region_of(client: int) -> str:
    return REGIONS[client % len(REGIONS)]


# ── policies ───────────────────────────────────────────────────────────────────────────────────


class Sender:
    """A policy: where a request goes first and after each failure, and what it learns."""

    def __init__(self, world: World) -> None:
        self.world = world

    def order(self, asked: Asked, at_s: float) -> Iterator[str]:
        """Yield whom to try, best first."""
        raise NotImplementedError

    def answered(self, name: str, asked: Asked, ttft_ms: float, answer_ms: float) -> None:
        """Hear of an answer, when it has ended."""

    def failed(self, name: str, asked: Asked, at_s: float) -> None:
        """Hear of a failure, at once."""


class Static(Sender):
    """The order of the price list: what is fastest on paper, in the caller's region."""

    def order(self, asked: Asked, at_s: float) -> Iterator[str]:
        home = region_of(asked.client)
        for model in MODELS:
            yield f"{model}-{home}"


class RoundRobin(Sender):
    """All in turn, as each client counts."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._turn: dict[int, int] = {}
        self._names = list(world.upstreams)

    def order(self, asked: Asked, at_s: float) -> Iterator[str]:
        turn = self._turn.get(asked.client, asked.client)
        for _ in range(ATTEMPTS):
            yield self._names[turn % len(self._names)]
            turn += 1
        self._turn[asked.client] = turn


class LeastLatency(Sender):
    """LiteLLM's latency-based routing, one router for each region as its proxy is deployed.

    The mean of the last ten answers, unmeasured ones first, ties at random; a deployment that
    fails more than half of a minute's requests, of five or more, rests for five seconds.
    """

    SAMPLES, WINDOW_S, COOL_OFF_S = 10, 60.0, 5.0

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._draw = random.Random(f"{world.scale.seed}least")
        self._seen: dict[tuple[str, str], deque[float]] = defaultdict(
            lambda: deque(maxlen=self.SAMPLES)
        )
        self._outcomes: dict[tuple[str, str], deque[tuple[float, bool]]] = defaultdict(deque)
        self._rests_until_s: dict[tuple[str, str], float] = {}

    def order(self, asked: Asked, at_s: float) -> Iterator[str]:
        home = region_of(asked.client)
        tried: set[str] = set()
        while True:
            open_ = [
                name
                for name in self.world.upstreams
                if name not in tried and self._rests_until_s.get((home, name), 0.0) <= at_s
            ]
            if not open_:
                return
            means = {n: fmean(self._seen[home, n] or (0.0,)) for n in open_}
            least = min(means.values())
            name = self._draw.choice([name for name in open_ if means[name] == least])
            tried.add(name)
            yield name

    def answered(self, name: str, asked: Asked, ttft_ms: float, answer_ms: float) -> None:
        home = region_of(asked.client)
        self._seen[home, name].append(ttft_ms + answer_ms)
        self._count((home, name), asked.at_s, True)

    def failed(self, name: str, asked: Asked, at_s: float) -> None:
        self._count((region_of(asked.client), name), at_s, False)

    def _count(self, key: tuple[str, str], at_s: float, good: bool) -> None:
        outcomes = self._outcomes[key]
        outcomes.append((at_s, good))
        while outcomes[0][0] < at_s - self.WINDOW_S:
            outcomes.popleft()
        bad = sum(not good for _, good in outcomes)
        if not good and len(outcomes) >= 5 and bad > len(outcomes) / 2:
            self._rests_until_s[key] = at_s + self.COOL_OFF_S


class Oracle(Sender):
    """Knows every median, queue and fault of the moment; only the dice it does not."""

    def order(self, asked: Asked, at_s: float) -> Iterator[str]:
        home = region_of(asked.client)
        yield min(self.world.upstreams, key=lambda n: self.world.expected_ms(n, home, at_s))


class Ours(Sender):
    """The SDK's own chooser in each client; validators with the shared breaker; fleet hints."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._draw = random.Random(f"{world.scale.seed}ours").random
        self._policy = a_policy()
        self._trackers: dict[int, LatencyTracker] = {}
        self._breakers = {
            (region, name): Breaker() for region in REGIONS for name in world.upstreams
        }
        self._fleet: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._failures: dict[str, int] = defaultdict(int)
        self._hinted: list[tuple[float, CompiledPolicy]] = [(0.0, compile_policy(self._policy))]
        self._choosers: dict[int, tuple[CompiledPolicy, Chooser]] = {}
        self._lag_s = [HINTS_LAG_S * self._draw() for _ in range(world.scale.clients)]

    def order(self, asked: Asked, at_s: float) -> Iterator[str]:
        self._publish_hints(at_s)
        home = region_of(asked.client)
        chooser, facts, decision = self._ready(asked, at_s)
        proposed, second, _ = chooser.pick(decision, facts, at_s)
        tracker = self._trackers[asked.client]
        tracker.start(proposed, asked, at_s)
        breaker = self._breakers[home, proposed]
        if not breaker.admit(at_s):
            # Overridden: the validator knows better, and says so.
            tracker.finish(proposed, asked)
            self._fail(asked.client, proposed, chooser, at_s)
        else:
            yield proposed
        for name in dict.fromkeys((second or proposed, *decision.chain)):
            if name != proposed and self._breakers[home, name].admit(at_s):
                yield name

    def _ready(self, asked: Asked, at_s: float) -> tuple[Chooser, Facts, Decision]:
        compiled = self._policy_at(at_s - self._lag_s[asked.client])
        tracker = self._trackers.get(asked.client)
        if tracker is None:
            tracker = self._trackers[asked.client] = LatencyTracker(
                eject_after=EJECT_MODEL_AFTER, rng=self._draw
            )
        held = self._choosers.get(asked.client)
        if held is None or held[0] is not compiled:
            held = (compiled, Chooser(compiled, tracker, self._draw))
            self._choosers[asked.client] = held
        facts = Facts(
            now=int(at_s),
            signed=Signed(tier="free", region=region_of(asked.client)),
            measured=Measured(input_tokens=40, max_input_tokens=200),
            declared=Declared(expected_output_tokens=EXPECTED_TOKENS),
        )
        return held[1], facts, decide(compiled, facts)

    def _policy_at(self, at_s: float) -> CompiledPolicy:
        current = self._hinted[0][1]
        for since_s, compiled in self._hinted:
            if since_s <= at_s:
                current = compiled
        return current

    def answered(self, name: str, asked: Asked, ttft_ms: float, answer_ms: float) -> None:
        now_s = asked.at_s + (ttft_ms + answer_ms) / 1_000
        breaker = self._breakers[region_of(asked.client), name]
        breaker.succeeded(now_s, after_s=ttft_ms / 1_000, rng=self._draw())
        # What validators see lacks the way between them and the client; here they are neighbours.
        self._fleet[name].append((ttft_ms, answer_ms / asked.tokens))
        chooser, tracker = self._choosers[asked.client][1], self._trackers[asked.client]
        tracker.finish(name, asked)
        tracker.succeed(name)
        chooser.waited(name, ttft_ms, region=region_of(asked.client), now_s=now_s)

    def failed(self, name: str, asked: Asked, at_s: float) -> None:
        home = region_of(asked.client)
        # A 429 says that a limit was reached, not that the provider is ill.
        if self.world.is_down(name, at_s):
            self._breakers[home, name].failed(at_s, rng=self._draw())
        self._failures[name] += 1
        self._trackers[asked.client].finish(name, asked)
        self._fail(asked.client, name, self._choosers[asked.client][1], at_s)

    def _fail(self, client: int, name: str, chooser: Chooser, at_s: float) -> None:
        expected_ms = chooser.expected_ttft_ms(name, region_of(client))
        self._trackers[client].fail(
            name, elapsed_ms=FAST_FAIL_MS, expected_ms=expected_ms, now_s=at_s
        )

    def _publish_hints(self, at_s: float) -> None:
        if at_s < self._hinted[-1][0] + HINTS_EVERY_S:
            return
        models: list[Hint] = []
        last = self._hinted[-1][1]
        for name in self.world.upstreams:
            seen, failures = self._fleet[name], self._failures[name]
            ttft_ms = fmean(ms for ms, _ in seen) if seen else float(last.ttft_ms[name])
            pace_ms = fmean(ms for _, ms in seen) if seen else 1_000 / last.tokens_per_s[name]
            health = 0 if failures > len(seen) else 100
            models.append(
                Hint(
                    model=name,
                    ttft_ms=round(ttft_ms),
                    tokens_per_s=round(1_000 / pace_ms),
                    health=health,
                )
            )
        hints = Hints(channel="prod", version=1, issued_at=0, models=tuple(models))
        self._hinted = [*self._hinted[-3:], (at_s, compile_policy(self._policy, hints))]
        self._fleet.clear()
        self._failures.clear()


def a_policy() -> Policy:
    """All eighteen upstreams, free and equal, in one route that wants them fast."""
    models = tuple(
        Model(
            id=f"{model}-{region}",
            provider=model,
            region=region,
            name=model,
            price=Price(input_nusd_per_mtok=0, output_nusd_per_mtok=0),
            tiers=("free",),
            context_tokens=32_000,
            max_output_tokens=4_096,
            ttft_prior_ms=round(ttft_ms),
            tokens_per_s_prior=round(tokens_per_s),
        )
        for model, (ttft_ms, tokens_per_s, _) in MODELS.items()
        for region in REGIONS
    )
    names = tuple(model.id for model in models)
    return Policy(
        channel="prod",
        version=1,
        issued_at=0,
        tiers=("free",),
        models=models,
        routes=(Route(name="all", models=names, optimize="latency"),),
    )


# ── a run ──────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Outcome:
    """What one policy made of the day."""

    waits_ms: list[tuple[float, float]] = field(default_factory=list)  # when asked, how long
    failed: int = 0
    sent: list[tuple[float, str]] = field(default_factory=list)

    def percentile(self, share: float, start_s: float = 0.0, end_s: float = 1e9) -> float:
        """Return the wait that ``share`` of the requests of this time had at most."""
        waits = sorted(ms for at_s, ms in self.waits_ms if start_s <= at_s < end_s)
        return waits[min(len(waits) - 1, int(share * len(waits)))] if waits else 0.0


def run(kind: Callable[[World], Sender], scale: Scale) -> Outcome:
    """Return how ``kind`` of sender fares in the world of ``scale``."""
    world = World(scale)
    sender, outcome = kind(world), Outcome()
    endings: list[tuple[float, int, Callable[[], object]]] = []
    for number, asked in enumerate(world.arrivals()):
        while endings and endings[0][0] <= asked.at_s:
            heapq.heappop(endings)[2]()
        world.drift_to(asked.at_s)
        region, at_s = region_of(asked.client), asked.at_s
        order = sender.order(asked, at_s)
        for _ in range(ATTEMPTS):
            name = next(order, None)
            if name is None:
                outcome.failed += 1
                break
            outcome.sent.append((at_s, name))
            answer = world.send(name, asked, region, at_s)
            if answer is None:
                at_s += (FAST_FAIL_MS + rtt_ms(region, world.upstreams[name].region)) / 1_000
                sender.failed(name, asked, at_s)
                continue
            ended_s = at_s + sum(answer) / 1_000
            outcome.waits_ms.append((asked.at_s, (ended_s - asked.at_s) * 1_000))

            ending: Callable[[], object] = partial(sender.answered, name, asked, *answer)
            heapq.heappush(endings, (ended_s, number, ending))
            break
        else:
            outcome.failed += 1
    return outcome


def herd(outcome: Outcome, fault: Fault, *, strict: bool = False) -> float:
    """Return the most that any upstream got in the 10 s after ``fault``, in shares of its own.

    Its share is its part of the requests in the minute after that. Who stood in for those that
    failed had more, and is no herd for being relieved over some seconds: counted is what is beyond
    the minute before too, unless ``strict``.
    """

    def rates(start_s: float, end_s: float) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for at_s, name in outcome.sent:
            if start_s <= at_s < end_s:
                found[name] += 1 / (end_s - start_s)
        return found

    before = {} if strict else rates(fault.end_s - 60, fault.end_s)
    after = rates(fault.end_s, fault.end_s + 10)
    usual = rates(fault.end_s + 10, fault.end_s + 70)
    # An upstream with next to no share of its own is measured by a fair one.
    fair = sum(usual.values()) / len(MODELS) / len(REGIONS)

    def own(name: str) -> float:
        return max(usual.get(name, 0.0), before.get(name, 0.0), fair)

    return max((rate / own(name) for name, rate in after.items()), default=0)


POLICIES: dict[str, Callable[[World], Sender]] = {
    "static": Static,
    "round robin": RoundRobin,
    "least latency": LeastLatency,
    "ours": Ours,
    "oracle": Oracle,
}


def rows(scale: Scale | None = None) -> list[tuple[str, str, str]]:
    """Return (what, measured, aim): each policy in the same world, and in its faults."""
    scale = scale or Scale()
    faults = faults_of(scale.seconds)
    outcomes = {name: run(kind, scale) for name, kind in POLICIES.items()}
    oracle = outcomes["oracle"]
    result: list[tuple[str, str, str]] = []
    for name, outcome in outcomes.items():
        p50, p99 = outcome.percentile(0.5), outcome.percentile(0.99)
        result.append(
            (
                f"{name}: p50, p99 of {len(outcome.waits_ms) + outcome.failed:,} requests",
                f"{p50:,.0f}, {p99:,.0f} ms: {p50 / oracle.percentile(0.5):.2f} ×,"
                f" {p99 / oracle.percentile(0.99):.2f} × the oracle's; {outcome.failed} failed",
                "≤ 1.10 ×, ≤ 1.25 ×" if name == "ours" else "",
            )
        )
    for fault in faults:
        during = {
            name: outcome.percentile(0.99, fault.start_s, fault.end_s)
            for name, outcome in outcomes.items()
        }
        aims = {"outage": "least latency ≥ 2 × ours; herd ≤ 1.5"}
        result.append(
            (
                f"{fault.name}: p99, and herd of ours after it",
                ", ".join(f"{name} {ms:,.0f}" for name, ms in during.items())
                + f" ms; herd {herd(outcomes['ours'], fault):.2f}",
                aims.get(fault.name, ""),
            )
        )
    return result


@dataclass(frozen=True)
class Figures:
    """How ours fared in one world. Ratios; herds are of all faults."""

    p50: float
    p99: float
    outage: float  # least latency's p99, in ours
    best: float  # the same, in the oracle's: no policy can do much better
    herd: float
    strict_herd: float


def figures(seed: int) -> Figures:
    """Return what became of the world of ``seed``."""
    scale = Scale(seed=seed)
    least, ours, oracle = (
        run(POLICIES[name], scale) for name in ("least latency", "ours", "oracle")
    )
    faults = faults_of(scale.seconds)

    def in_outage(outcome: Outcome) -> float:
        return outcome.percentile(0.99, faults[0].start_s, faults[0].end_s)

    return Figures(
        p50=ours.percentile(0.5) / oracle.percentile(0.5),
        p99=ours.percentile(0.99) / oracle.percentile(0.99),
        outage=in_outage(least) / in_outage(ours),
        best=in_outage(least) / in_outage(oracle),
        herd=max(herd(ours, fault) for fault in faults),
        strict_herd=max(herd(ours, fault, strict=True) for fault in faults),
    )


def rows_of_many() -> list[tuple[str, str, str]]:
    """Return (what, measured, aim) over worlds that no constant was tuned in: some minutes."""
    with ProcessPoolExecutor() as pool:
        worlds = list(pool.map(figures, UNSEEN))

    def row(what: str, aim: str, values: list[float], worst: float) -> tuple[str, str, str]:
        shown = " ".join(f"{value:.2f}" for value in sorted(values))
        return (what, f"median {median(values):.2f}, worst {worst:.2f} ({shown})", aim)

    p50, p99, outage, best, herds, strict = (
        [getattr(world, field.name) for world in worlds] for field in fields(Figures)
    )
    return [
        row("p50, in the oracle's", "≤ 1.10", p50, max(p50)),
        row("p99, in the oracle's", "≤ 1.25", p99, max(p99)),
        row("least latency's p99 in the outage, in ours", "≥ 2", outage, min(outage)),
        row("the same, in the oracle's", "", best, min(best)),
        row("herd after any fault", "≤ 1.5", herds, max(herds)),
        row("the same, with those that stood in", "", strict, max(strict)),
    ]


def main() -> None:
    """Print the table; ``--seed`` and ``--size`` choose the world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=float, default=1.0)
    given = parser.parse_args()
    for row in rows(Scale(seed=given.seed, size=given.size)):
        print(" | ".join(row))


if __name__ == "__main__":
    main()
