"""How one request runs: its strategy, its workers, with or without a KV cache, what that takes, and the sentence that says why.

One function over one frozen snapshot of the cluster, for the request that runs and for the one that only asks. Knows nothing
of sockets, models or what a request says. The rules:

1. A strategy that was asked for wins, or is refused; it is never replaced by another.
2. A request that goes on after a loss keeps the strategy that it began with, where that can still run; one whose prompt
   all stages read for one worker can go on there alone.
3. Mode never: one worker. Mode always, or a model that fits no single worker: all stages. Else the policy.
4. One worker: of those with the full model and room for the caches, the one that is predicted to be best; without predictions
   the one that knows the conversation or the beginning of the prompt, unless it is clearly busier than another.
5. Policy measured takes what is predicted to be best. Now and then, where it costs little, it takes what least is known of.
6. A strategy is named by what it does: all stages without a cache is distributed-no-cache, whatever it was chosen as.
7. A prompt of whose own tokens the log probabilities are told is read by those who answer; a long one with a KV cache.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from strategy.memory import KvNeeds, caches_bytes, reserved_tokens, sequence_bytes
from strategy.policies import choose, with_guesses
from strategy.prediction import Forecast, forecast, handover_forecast, likeliest
from strategy.situation import Asked, Snapshot, Strategy, Way, Ways, workers_of
from strategy.vocabulary import Route
from strategy.wishes import Objective

# How many more requests a worker may have than the least busy one and still be worth returning to.
_TOLERATED_LEAD = 2
# Without a KV cache the logits of all of a prompt are there at once, and what is told of it is one message.
MAX_SCORED_UNCACHED = 4096

_TOGETHER = (Strategy.DISTRIBUTED_NO_CACHE, Strategy.DISTRIBUTED_CACHED, Strategy.DISTRIBUTED_PREFILL)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one strategy for one request; why_not: a clause, None where it can run. reason: why another one was chosen, in
    words. workers: who would run it; cached: with a KV cache.
    """

    strategy: Strategy
    feasible: bool
    why_not: str | None = None
    reason: str | None = None
    workers: tuple[str, ...] = ()
    cached: bool = False
    predicted_ttft_s: float | None = None
    predicted_total_s: float | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How a request runs. bytes_by_worker: what its caches may take at most; caches: what they need on each worker, in each of its
    parts; at_once: they are as large as they can become from the beginning; num_tokens: that it begins with; most_tokens: that it can
    come to; forecast: None where nothing was measured; candidates: every
    strategy, the best one first as far as they are predicted, else in a fixed order. read_by: the stages that read its prompt for
    the one worker of its route; None where that does it alone.
    """

    strategy: Strategy
    route: Route
    cached: bool
    bytes_by_worker: Mapping[str, int]
    caches: Mapping[str, tuple[KvNeeds, ...]]
    num_tokens: int
    most_tokens: int
    at_once: bool = False
    reason: str
    forecast: Forecast | None
    candidates: tuple[Verdict, ...]
    read_by: Route | None = None

    def going_on(self, most: int, room: Mapping[str, int]) -> "Decision":
        """As far as to `most` tokens in all, where each worker has that much room for them."""

        def is_too_long(num_tokens: int) -> bool:
            return any(wanted > room[worker] for worker, wanted in self.bytes_of(num_tokens).items())

        if is_too_long(most):
            most = bisect_left(range(self.most_tokens + 1, most), x=True, key=is_too_long) + self.most_tokens
        return msgspec.structs.replace(self, most_tokens=most, bytes_by_worker=self.bytes_of(most))

    def room_for(self, num_tokens: int) -> int:
        """For how many tokens there is to be room where it has so many."""
        return self.most_tokens if self.at_once else reserved_tokens(num_tokens, self.most_tokens)

    def bytes_of(self, num_tokens: int) -> dict[str, int]:
        """What its caches take on each worker with so many tokens in them."""
        return {worker: caches_bytes(caches, num_tokens) for worker, caches in self.caches.items()}

    @property
    def workers(self) -> tuple[str, ...]:
        """All that work on it, those that read its prompt first."""
        return workers_of(self.route, self.read_by)


def decide(asked: Asked, snapshot: Snapshot, policy: str) -> Decision:
    """How this request runs on this cluster. policy: a key of POLICIES.

    Raises:
        NoStrategy: what was asked for, or everything that the mode allows, cannot run.
    """
    ways = _ways(asked, snapshot)
    strategy, reason = choose(asked, snapshot, ways, policy)
    way = ways[strategy]
    assert way.route is not None
    candidates = _candidates(strategy, ways, snapshot)
    if _has_cache(strategy) and not way.cached:
        reason = f"{reason}; a KV cache does not pay here, so without one"
        strategy = Strategy.DISTRIBUTED_NO_CACHE if strategy is Strategy.DISTRIBUTED_CACHED else strategy
    return Decision(
        strategy=strategy,
        route=way.route,
        cached=way.cached,
        bytes_by_worker=way.bytes_by_worker,
        caches=_caches(way, snapshot),
        num_tokens=asked.prompt_tokens + asked.num_generated,
        most_tokens=asked.prompt_tokens + asked.max_tokens,
        at_once=snapshot.at_once,
        reason=reason,
        forecast=way.forecast,
        candidates=candidates,
        read_by=way.read_by,
    )


def _caches(way: Way, snapshot: Snapshot) -> dict[str, tuple[KvNeeds, ...]]:
    if not way.cached or way.route is None:
        return {}
    found: dict[str, tuple[KvNeeds, ...]] = {worker: (needs,) for worker, needs in snapshot.needs[way.route].items()}
    if way.read_by is not None:
        for worker, needs in snapshot.needs[way.read_by].items():
            found[worker] = (*found.get(worker, ()), needs)
    return found


def _candidates(chosen: Strategy, ways: Ways, snapshot: Snapshot) -> tuple[Verdict, ...]:
    objective = Objective.TOTAL if snapshot.conditions is None else snapshot.conditions.objective

    def rank(strategy: Strategy) -> float:
        found = ways[strategy].forecast
        return float("inf") if found is None else found.of(objective)

    return tuple(
        Verdict(
            strategy=strategy,
            feasible=ways[strategy].why_not is None,
            why_not=ways[strategy].why_not,
            reason=ways[strategy].why_not or _why_not_chosen(ways[strategy], ways[chosen], chosen, strategy),
            workers=() if (route := ways[strategy].route) is None else workers_of(route, ways[strategy].read_by),
            cached=ways[strategy].cached,
            predicted_ttft_s=None if (found := ways[strategy].forecast) is None else round(found.ttft_s, 6),
            predicted_total_s=None if found is None else round(found.total_s, 6),
        )
        for strategy in sorted(ways, key=rank)
    )


def _why_not_chosen(way: Way, of_chosen: Way, chosen: Strategy, strategy: Strategy) -> str | None:
    """What speaks for the chosen one instead, in words."""
    own, best = way.forecast, of_chosen.forecast
    if strategy is chosen or own is None or best is None:
        return None
    return (
        f"{own.total_s:.3g} s predicted where {chosen} takes {best.total_s:.3g} s: the first token after {own.ttft_s:.3g} s "
        f"instead of {best.ttft_s:.3g} s, each further one after {own.step_s * 1e3:.3g} ms instead of "
        f"{best.step_s * 1e3:.3g} ms{with_guesses(own)}"
    )


# --- what each strategy would come to


def _has_cache(strategy: Strategy) -> bool:
    return strategy in (Strategy.SINGLE_DEVICE_CACHED, Strategy.DISTRIBUTED_CACHED)


def _ways(asked: Asked, snapshot: Snapshot) -> Ways:
    likely = _likeliest(asked, snapshot)
    ways = {Strategy.TENSOR_PARALLEL: _groups_way(asked, snapshot)}
    cached = _pays(asked, snapshot, together=False)

    def alone(worker: str) -> Way:
        return _on(Strategy.SINGLE_DEVICE_CACHED, Route((worker,)), asked, snapshot, cached=cached)

    ways[Strategy.SINGLE_DEVICE_CACHED] = _holders_way(asked, snapshot, likely, alone)
    if snapshot.pipeline is None:
        uncut = Way(why_not=snapshot.why_not, lasting=not snapshot.splittable)
        ways |= dict.fromkeys(_TOGETHER, uncut)
    else:
        together = _pays(asked, snapshot, together=True)
        for strategy, with_cache in ((Strategy.DISTRIBUTED_NO_CACHE, False), (Strategy.DISTRIBUTED_CACHED, together)):
            ways[strategy] = _on(strategy, snapshot.pipeline, asked, snapshot, cached=with_cache)
        ways[Strategy.DISTRIBUTED_PREFILL] = _prefill_way(
            snapshot.pipeline, asked, snapshot, likely, ways[Strategy.DISTRIBUTED_CACHED]
        )
    return {strategy: ways[strategy] for strategy in Strategy}


def _groups_way(asked: Asked, snapshot: Snapshot) -> Way:
    """By the least busy of the groups, with a KV cache: without one, each sum would be of a whole sequence."""
    groups = snapshot.groups
    if groups.why_none is not None:
        return Way(why_not=groups.why_none, lasting=not groups.are_awaited)
    least = min(groups.routes, key=lambda group: snapshot.group_load.get(group, 0))
    return _on(Strategy.TENSOR_PARALLEL, least, asked, snapshot, cached=True)


def _prefill_way(pipeline: Route, asked: Asked, snapshot: Snapshot, likely: Sequence[str], with_caches: Way) -> Way:
    """All stages read the prompt, a holder of the full model generates; each has room for its part of the sequence.

    Of equally busy holders it is the last stage: nobody asks for what its last layer makes of a prompt but keys and values,
    so that it waits for the others and has time for what they hand over.
    """
    if pipeline.is_single:
        return Way(why_not="reading a prompt together takes at least two workers")
    if asked.embeds:
        return Way(why_not="an embedding is made where its text is read, so that nothing is handed over", lasting=True)
    if snapshot.whole_prompts:
        why_not = "this model's answers depend on how a prompt is cut, so that no part of one is handed over"
        return Way(why_not=why_not, lasting=True)
    if asked.scores_prompt:
        why_not = "how likely a prompt's own tokens are is told by the worker that reads it for itself"
        return Way(why_not=why_not, lasting=True)
    reading = with_caches
    if not reading.cached:  # which then does not pay
        reading = _on(Strategy.DISTRIBUTED_PREFILL, pipeline, asked, snapshot, cached=True)
    if reading.why_not:
        return reading
    return _holders_way(
        asked, snapshot, likely, lambda worker: _read_for(worker, reading, asked, snapshot), last_first=True
    )


def _read_for(worker: str, reading: Way, asked: Asked, snapshot: Snapshot) -> Way:
    strategy, route = Strategy.DISTRIBUTED_PREFILL, Route((worker,))
    alone = _cached_on(route, asked, snapshot)
    if alone.why_not is not None:
        return alone
    num_bytes = {**reading.bytes_by_worker}
    num_bytes[worker] = num_bytes.get(worker, 0) + alone.bytes_by_worker[worker]
    if num_bytes[worker] > (there := snapshot.budgets[worker].sequence_bytes):
        return _too_large(asked, worker, num_bytes[worker], there)
    found = None
    if snapshot.conditions is not None and reading.route is not None:
        found = handover_forecast(strategy, reading.route, route, asked.work(reading.route), snapshot.conditions)
    return msgspec.structs.replace(alone, read_by=reading.route, bytes_by_worker=num_bytes, forecast=found)


def _holders_way(
    asked: Asked, snapshot: Snapshot, likely: Sequence[str], way_on: Callable[[str], Way], *, last_first: bool = False
) -> Way:
    """On the best of the workers with room; where there is none, what is missing on the best of all. likely: whom to predict for;
    last_first: of those that are equally busy without predictions.
    """
    if not snapshot.holders:
        return Way(why_not=snapshot.shortage or "no worker holds the full model")
    predicted = [way for way in map(way_on, likely) if way.why_not is None and way.forecast is not None]
    if predicted and snapshot.conditions is not None:
        objective = snapshot.conditions.objective
        if objective is Objective.THROUGHPUT:  # which is shared between all of them
            objective = Objective.TOTAL
        return min(predicted, key=lambda way: way.forecast.of(objective) if way.forecast else 0.0)
    holders = reversed(list(snapshot.holders)) if last_first else snapshot.holders
    in_order = sorted(holders, key=lambda worker: snapshot.holders[worker])
    least = next((worker for worker in in_order if way_on(worker).why_not is None), None)
    if least is None:
        return way_on(in_order[0])
    visited = (worker for worker in _visited(asked, snapshot, least) if way_on(worker).why_not is None)
    return way_on(next(visited, least))


def _likeliest(asked: Asked, snapshot: Snapshot) -> Sequence[str]:
    """Workers that are worth a prediction."""
    if snapshot.conditions is None:
        return ()
    strategy = Strategy.SINGLE_DEVICE_CACHED
    return likeliest(snapshot.holders, asked.work(), asked.reusable, strategy, snapshot.conditions)


def _visited(asked: Asked, snapshot: Snapshot, least: str) -> Iterator[str]:
    """Workers that know a beginning and are not clearly busier than `least`."""
    most = snapshot.holders[least] + _TOLERATED_LEAD
    for beginning in asked.beginnings:
        worker = snapshot.visited.get(beginning)
        if worker is not None and snapshot.holders.get(worker, most + 1) <= most:
            yield worker


def _pays(asked: Asked, snapshot: Snapshot, *, together: bool) -> bool:
    """Whether a KV cache is worth its while for an answer of so many tokens, by what was measured."""
    if snapshot.measured is None or _is_long_to_score(asked):
        return True
    of_stages = snapshot.measured.distributed
    return (of_stages if together and of_stages else snapshot.measured.single_device).contains(asked.max_tokens)


def _is_long_to_score(asked: Asked) -> bool:
    return asked.scores_prompt and asked.prompt_tokens > MAX_SCORED_UNCACHED


def _on(strategy: Strategy, route: Route, asked: Asked, snapshot: Snapshot, *, cached: bool) -> Way:
    found = None
    if snapshot.conditions is not None:
        found = forecast(strategy, route, asked.work(route), snapshot.conditions, cached=cached)
    if not cached and _is_long_to_score(asked):
        why_not = (
            f"how likely the tokens of a prompt of more than {MAX_SCORED_UNCACHED} are is told with a KV cache only"
        )
        return Way(why_not=why_not, lasting=True)
    if not cached:
        return Way(route=route, forecast=found)
    way = _cached_on(route, asked, snapshot)
    return msgspec.structs.replace(way, forecast=found) if way.why_not is None else way


def _cached_on(route: Route, asked: Asked, snapshot: Snapshot) -> Way:
    """Without a prediction."""
    needs, num_tokens = snapshot.needs[route], asked.prompt_tokens + asked.max_tokens
    num_bytes = {worker: sequence_bytes(need, num_tokens) for worker, need in needs.items()}
    for worker, wanted in num_bytes.items():
        if wanted > (there := snapshot.budgets[worker].sequence_bytes):
            return _too_large(asked, worker, wanted, there)
    return Way(
        route=route,
        cached=True,
        bytes_by_worker=num_bytes,
    )


def _too_large(asked: Asked, worker: str, wanted: int, there: int) -> Way:
    return Way(
        why_not=f"the KV cache of {asked.prompt_tokens + asked.max_tokens} tokens needs {wanted / 1e6:.1f} MB on {worker}, "
        f"which has {there / 1e6:.1f} MB for caches; shorten the prompt, lower max_tokens or raise its memory_limit",
        cached=True,
        too_large=True,
    )
