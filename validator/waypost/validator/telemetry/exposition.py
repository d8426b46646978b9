"""Counts and states in Prometheus's text formats; the names are documented in observability.md."""

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from waypost.shared.money import NUSD_PER_USD
from waypost.validator.telemetry.counts import ADDED_S, TOTAL_S, Counts, Families, Labels

__all__ = ["Gauge", "expose"]

_REQUEST = ("route", "model", "provider", "tier", "verdict")
# Name, what it says, which of a request's numbers, and what one of those is worth.
_COUNTERS: tuple[tuple[str, str, int, float], ...] = (
    ("waypost_requests", "Requests, refusals included.", 0, 1),
    ("waypost_requests_answered", "Requests that were answered.", 1, 1),
    ("waypost_requests_abandoned", "Requests whose caller hung up before the end.", 2, 1),
    ("waypost_requests_failed", "Requests that failed by the providers' fault or ours.", 3, 1),
    ("waypost_requests_rejected", "Requests that a provider found wrong.", 4, 1),
    ("waypost_requests_refused", "Requests that policy, token or budget refused.", 5, 1),
    ("waypost_requests_repeated", "Requests asked again by their caller within 2 min.", 6, 1),
    ("waypost_cost_usd", "What was charged.", 7, 1 / NUSD_PER_USD),
    ("waypost_baseline_cost_usd", "What it had cost without routing.", 8, 1 / NUSD_PER_USD),
    ("waypost_input_tokens", "Tokens in, as billed.", 9, 1),
    ("waypost_cached_input_tokens", "Of those, read from a provider's cache.", 10, 1),
    ("waypost_output_tokens", "Tokens out, as billed.", 11, 1),
    ("waypost_unconfirmed_cost_usd", "Charged without a provider's word.", 12, 1 / NUSD_PER_USD),
)
_HISTOGRAMS = (
    ("added", "waypost_added_seconds", "Time a request spent in the validator.", ADDED_S),
    ("total", "waypost_request_seconds", "Time from arrival to the answer's end.", TOTAL_S),
    ("ttft", "waypost_ttft_seconds", "Time to the first token.", TOTAL_S),
)


class Gauge(Struct, frozen=True):
    """Something as it is now; ``values`` by labels."""

    name: str
    help: str
    labels: Sequence[str]
    values: Sequence[tuple[Labels, float]]


def expose(
    families: Families, counts: Counts, gauges: Iterable[Gauge], *, accept: str
) -> tuple[bytes, str]:
    """Return all metrics, and their media type: OpenMetrics where asked for, else plain text.

    Args:
        families: added up over all processes.
        counts: this process's, for its exemplars, which only OpenMetrics shows.
    """
    try:
        encoder, media_type = choose_encoder(accept)
    except (TypeError, ValueError):  # whatever a caller wrote there
        encoder, media_type = choose_encoder("")
    return encoder(_Shown(families, counts, gauges)), media_type


class _Shown(Collector):
    def __init__(self, families: Families, counts: Counts, gauges: Iterable[Gauge]) -> None:
        self._families = families
        self._counts = counts
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        families = self._families
        for name, text, place, unit in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_REQUEST)
            for labels, numbers in families.get("requests", {}).items():
                counter.add_metric(labels, numbers[place] * unit)
            yield counter
        for family, name, text, bounds in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=("route", "model"))
            for labels, numbers in families.get(family, {}).items():
                buckets = self._buckets(family, labels, numbers, bounds)
                histogram.add_metric(labels, buckets, numbers[-1])
            yield histogram
        yield self._plain(
            "decisions", "waypost_decisions", "Decisions by reason.", ("verdict", "reason")
        )
        yield self._plain(
            "attempts",
            "waypost_attempts",
            "Tries at providers; kind says why.",
            ("model", "provider", "kind", "outcome"),
        )
        yield self._plain(
            "feedback", "waypost_feedback", "Callers' words.", ("route", "model", "rating")
        )
        yield self._plain("lost", "waypost_records_lost", "Records no store took.", ("reason",))
        yield self._plain(
            "expired", "waypost_holds_expired", "Holds charged in full, unsettled.", ()
        )
        for place, name, text, unit in (
            (0, "waypost_shadow_sent", "Tries in the shadow, or why there was none.", 1),
            (1, "waypost_shadow_cost_usd", "What they cost.", 1 / NUSD_PER_USD),
        ):
            yield self._plain("shadows", name, text, ("model", "outcome"), place=place, unit=unit)
        steps = SummaryMetricFamily("waypost_step_seconds", "Time per step.", labels=("step",))
        for labels, numbers in families.get("steps", {}).items():
            steps.add_metric(labels, count_value=int(numbers[0]), sum_value=numbers[1])
        yield steps
        for told in self._gauges:
            gauge = GaugeMetricFamily(told.name, told.help, labels=told.labels)
            for labels, value in told.values:
                gauge.add_metric(labels, value)
            yield gauge

    def _plain(
        self,
        family: str,
        name: str,
        text: str,
        labels: Sequence[str],
        *,
        place: int = 0,
        unit: float = 1,
    ) -> Metric:
        counter = CounterMetricFamily(name, text, labels=labels)
        for values, numbers in self._families.get(family, {}).items():
            counter.add_metric(values, numbers[place] * unit)
        return counter

    def _buckets(
        self, family: str, labels: Labels, numbers: Sequence[float], bounds: Sequence[float]
    ) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        so_far = 0.0
        for place, bound in enumerate([*map(str, bounds), "+Inf"]):
            so_far += numbers[place]
            seen = self._counts.exemplars.get((family, labels, place))
            if seen is None:
                buckets.append((bound, so_far))
            else:
                trace_id, seconds, at = seen
                buckets.append((bound, so_far, Exemplar({"trace_id": trace_id}, seconds, at)))
        return buckets
