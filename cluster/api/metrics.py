"""GET /metrics: what Prometheus reads, from the status and from what the service has measured.

Names are vLLM's where they mean the same, behind `tandem_` in place of its prefix.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from cluster.serving.measures import Distribution, Measures, StrategyMeasures
from cluster.serving.requests import Service
from cluster.serving.status import LinkStatus, Status, WorkerStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
_COUNTS: tuple[tuple[str, str, Callable[[StrategyMeasures], int]], ...] = (
    ("tandem_generation_tokens", "Tokens generated.", attrgetter("num_generated")),
    ("tandem_spec_decode_num_draft_tokens", "Next tokens that were guessed.", attrgetter("num_proposed")),
    ("tandem_spec_decode_num_accepted_tokens", "Of those, tokens that came true.", attrgetter("num_accepted")),
)
_DISTRIBUTIONS: tuple[tuple[str, str, Callable[[StrategyMeasures], Distribution]], ...] = (
    ("tandem_request_queue_time_seconds", "From arrival in the queue until it ran.", attrgetter("queue")),
    ("tandem_time_to_first_token_seconds", "From arrival to the first token.", attrgetter("ttft")),
    ("tandem_inter_token_latency_seconds", "Between two tokens of an answer.", attrgetter("gap")),
    ("tandem_e2e_request_latency_seconds", "From arrival to the last token.", attrgetter("total")),
    ("tandem_prediction_error_ratio", "Of the predicted time of an answer, by what it took.", attrgetter("error")),
    ("tandem_request_prompt_tokens", "Tokens of the prompt of an answered request.", attrgetter("prompt")),
    ("tandem_request_generation_tokens", "Tokens generated for an answered request.", attrgetter("generated")),
)


def exposition(service: Service) -> bytes:
    """Everything, in Prometheus's own format."""
    registry = CollectorRegistry()
    registry.register(_Collected(service))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, service: Service):
        self._service = service

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: it would have to be collected for that."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See the module."""
        status = self._service.status()
        yield from self._of_requests(status)
        yield from _of_workers(status.workers)
        yield from _of_senders(status.workers)
        yield from _of_links(status.links)

    def _of_requests(self, status: Status) -> Iterator[Metric]:
        measures, requests = self._service.measures(), status.requests
        yield GaugeMetricFamily(
            "tandem_up", "Whether a plan is in force.", float(status.state in ("ready", "degraded"))
        )
        yield GaugeMetricFamily("tandem_num_requests_running", "Requests that run.", requests.running)
        yield GaugeMetricFamily("tandem_num_requests_waiting", "Requests that wait.", requests.waiting)
        ended = CounterMetricFamily("tandem_requests", "Requests that ended.", labels=("strategy", "outcome"))
        for (strategy, outcome), count in measures.outcomes.items():
            ended.add_metric((strategy, outcome), count)
        yield ended
        yield from _of_losses(measures, status.epoch)
        yield from _of_strategies(measures.of)
        yield CounterMetricFamily(
            "tandem_prompt_tokens", "Tokens of the prompts of what finished.", measures.prompt_tokens
        )
        yield CounterMetricFamily(
            "tandem_prefix_cache_queries", "Tokens of prompts that went to a cache.", status.cache.prompt_tokens
        )
        yield CounterMetricFamily(
            "tandem_prefix_cache_hits", "Of those, tokens that were there.", status.cache.cached_tokens
        )


def _of_losses(measures: Measures, epoch: int) -> Iterator[Metric]:
    text = "Times that a request went on after a loss, by what was lost; plan: another took its place."
    recoveries = CounterMetricFamily("tandem_recoveries", text, labels=("cause",))
    for cause, count in measures.recoveries.items():
        recoveries.add_metric((cause,), count)
    yield recoveries
    yield CounterMetricFamily("tandem_plans", "Plans since the coordinator began.", epoch & 0xFFFF_FFFF)


def _of_strategies(found: Mapping[str, StrategyMeasures]) -> Iterator[Metric]:
    for name, text, count in _COUNTS:
        counted = CounterMetricFamily(name, text, labels=("strategy",))
        for strategy, measured in found.items():
            counted.add_metric((strategy,), count(measured))
        yield counted
    for name, text, distribution in _DISTRIBUTIONS:
        family = HistogramMetricFamily(name, text, labels=("strategy",))
        for strategy, measured in found.items():
            one = distribution(measured)
            family.add_metric((strategy,), _buckets(one), one.total)
        yield family


def _buckets(found: Distribution) -> list[tuple[str, float]]:
    counts = accumulate(found.counts)
    return [(bound, float(below)) for bound, below in zip((*map(str, found.bounds), "+Inf"), counts, strict=True)]


def _of_workers(workers: Iterable[WorkerStatus]) -> Iterator[Metric]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, text, labels=("worker",))

    up = gauge("tandem_worker_up", "Whether the worker is there.")
    busy = gauge("tandem_stage_busy_ratio", "Share of the last seconds in which a worker computed.")
    weights = gauge("tandem_worker_weights_bytes", "Weights in memory.")
    caches = gauge("tandem_worker_kv_bytes", "Caches of running requests.")
    usage = gauge("tandem_kv_cache_usage_perc", "Of the memory for running requests' caches, what is used.")
    kept = gauge("tandem_worker_prefix_bytes", "Caches kept of past requests.")
    limit = gauge("tandem_worker_memory_limit_bytes", "What a worker may use.")
    for worker in workers:
        memory, budget = worker.memory, worker.cache.kv_budget_bytes
        for family, value in (
            (up, float(worker.state == "ready")),
            (busy, worker.load.busy_share),
            (weights, memory.weights_bytes),
            (caches, memory.kv_bytes),
            (usage, memory.kv_bytes / budget if budget else 0.0),
            (kept, worker.cache.prefix_bytes),
            (limit, memory.limit_bytes),
        ):
            family.add_metric((worker.name,), value)
    yield from (up, busy, weights, caches, usage, kept, limit)


def _of_senders(workers: Iterable[WorkerStatus]) -> Iterator[Metric]:
    text = "From one worker to another or the coordinator, before encryption."
    sent = CounterMetricFamily("tandem_link_sent_bytes", text, labels=("from", "to"))
    for worker in workers:
        for receiver, size in worker.sent_bytes.items():
            sent.add_metric((worker.name, receiver), size)
    yield sent


def _of_links(links: Iterable[LinkStatus]) -> Iterator[Metric]:
    labels = ("from", "to", "kind")
    trip = GaugeMetricFamily("tandem_link_round_trip_seconds", "Of the link in use between two workers.", labels=labels)
    rate = GaugeMetricFamily("tandem_link_bytes_per_second", "What it was measured to carry.", labels=labels)
    for link in links:
        if not link.in_use:
            continue
        named = (link.sender, link.receiver, link.kind)
        if link.round_trip_us is not None:
            trip.add_metric(named, link.round_trip_us / 1e6)
        if link.bytes_per_s is not None:
            rate.add_metric(named, link.bytes_per_s)
    yield from (trip, rate)
