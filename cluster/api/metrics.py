"""GET /metrics: what Prometheus reads, from the status and from what the service has measured.

Names are vLLM's where they mean the same, behind `tandem_` in place of its prefix.
"""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from cluster.serving.measures import Distribution
from cluster.serving.requests import Service
from cluster.serving.status import LinkStatus, Status, WorkerStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST


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
        yield CounterMetricFamily("tandem_recoveries", "Times that a request went on after a loss.", requests.resumed)
        yield CounterMetricFamily("tandem_plans", "Plans since the coordinator began.", status.epoch & 0xFFFF_FFFF)
        yield CounterMetricFamily(
            "tandem_prompt_tokens", "Tokens of the prompts of what finished.", measures.prompt_tokens
        )
        yield CounterMetricFamily("tandem_generation_tokens", "Tokens generated for it.", measures.generated_tokens)
        yield CounterMetricFamily(
            "tandem_prefix_cache_queries", "Tokens of prompts that went to a cache.", status.cache.prompt_tokens
        )
        yield CounterMetricFamily(
            "tandem_prefix_cache_hits", "Of those, tokens that were there.", status.cache.cached_tokens
        )
        yield _histogram("tandem_time_to_first_token_seconds", "From arrival to the first token.", measures.ttft)
        yield _histogram("tandem_inter_token_latency_seconds", "Between two tokens of an answer.", measures.gap)
        yield _histogram("tandem_e2e_request_latency_seconds", "From arrival to the last token.", measures.total)
        yield _histogram(
            "tandem_prediction_error_ratio", "Of the predicted time of an answer, by what it took.", measures.error
        )


def _histogram(name: str, text: str, found: Distribution) -> Metric:
    buckets, below = [], 0
    for bound, count in zip((*map(str, found.bounds), "+Inf"), found.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=found.total)


def _of_workers(workers: Iterable[WorkerStatus]) -> Iterator[Metric]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, text, labels=("worker",))

    up = gauge("tandem_worker_up", "Whether the worker is there.")
    busy = gauge("tandem_stage_busy_ratio", "Share of the last seconds in which a worker computed.")
    weights = gauge("tandem_worker_weights_bytes", "Weights in memory.")
    caches = gauge("tandem_worker_kv_bytes", "Caches of running requests.")
    usage = gauge("tandem_kv_cache_usage_ratio", "Of the memory for running requests' caches, what is used.")
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
