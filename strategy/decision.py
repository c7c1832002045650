"""How one request runs: its strategy, its workers, with or without a KV cache, what that takes, and the sentence that says why.

One function over one frozen snapshot of the cluster, for the request that runs and for the one that only asks. Knows nothing
of sockets, models or what a request says. The rules:

1. A strategy that was asked for wins, or is refused; it is never replaced by another.
2. A request that goes on after a loss keeps the strategy that it began with, where that can still run.
3. Mode never: one worker. Mode always, or a model that fits no single worker: all stages. Else the policy.
4. One worker: of those with the full model and room for the caches, the one that knows the conversation or the beginning of
   the prompt, unless it is clearly busier than another.
5. A strategy is named by what it does: all stages without a cache is distributed-no-cache, whatever it was chosen as.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec

from strategy.cache_use import MeasuredUse
from strategy.memory import KvNeeds, WorkerBudget, largest_excess, sequence_bytes
from strategy.vocabulary import Route

# How many more requests a worker may have than the least busy one and still be worth returning to.
_TOLERATED_LEAD = 2


class Mode(StrEnum):
    """USE_DISTRIBUTED_INFERENCE."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Strategy(StrEnum):
    """The ways of generating, by their public names."""

    SINGLE_DEVICE_CACHED = "single-device-cached"
    DISTRIBUTED_NO_CACHE = "distributed-no-cache"
    DISTRIBUTED_CACHED = "distributed-cached"
    DISTRIBUTED_PREFILL = "distributed-prefill"
    TENSOR_PARALLEL = "tensor-parallel"


_COMES_LATER = {
    Strategy.DISTRIBUTED_PREFILL: "a distributed prefill comes with a later version",
    Strategy.TENSOR_PARALLEL: "tensor parallelism comes with a later version",
}


class NoStrategy(Exception):
    """Nothing that was asked for can run. too_large: for want of memory for its caches; lasting: no other plan could help."""

    def __init__(self, message: str, *, too_large: bool = False, lasting: bool = False):
        super().__init__(message)
        self.too_large = too_large
        self.lasting = lasting


class Thresholds(msgspec.Struct, frozen=True):
    """A request within both limits is `distributed-no-cache`."""

    prompt_tokens: int = 100
    generation_tokens: int = 50


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request. prompt_tokens: after the chat template; max_tokens: how many may be generated.

    mode: in place of the cluster's; strategy: asked for by name; began_with: what it ran by before its plan was lost.
    beginnings: what it may be remembered by, the conversation first, then the beginning of its prompt.
    """

    prompt_tokens: int
    max_tokens: int
    mode: Mode | None = None
    strategy: Strategy | None = None
    began_with: Strategy | None = None
    beginnings: tuple[str | bytes, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of the cluster that a decision looks at.

    pipeline: the route through all stages, or None for the reason `why_not`, which no other plan removes where the model is
    not `splittable`. holders: the workers with the full model and how many requests each has; shortage: why there are none.
    needs and budgets: of caches, by route and worker. measured: when a KV cache pays, None where it always does. visited:
    which worker knows a beginning.
    """

    pipeline: Route | None
    why_not: str | None
    splittable: bool
    holders: Mapping[str, int]
    shortage: str | None
    needs: Mapping[Route, Mapping[str, KvNeeds]]
    budgets: Mapping[str, WorkerBudget]
    measured: MeasuredUse | None
    visited: Mapping[str | bytes, str]
    thresholds: Thresholds
    mode: Mode


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one strategy for one request; why_not: a clause, None where it can run. cached: with a KV cache."""

    strategy: Strategy
    feasible: bool
    why_not: str | None = None
    cached: bool = False
    predicted_ttft_s: float | None = None
    predicted_total_s: float | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How a request runs. bytes_by_worker: what its caches may take; candidates: every strategy, in a fixed order."""

    strategy: Strategy
    route: Route
    cached: bool
    bytes_by_worker: Mapping[str, int]
    reason: str
    candidates: tuple[Verdict, ...]


class _Way(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy as far as it was worked out; of `why_not` and `route` one is None."""

    route: Route | None = None
    cached: bool = False
    bytes_by_worker: Mapping[str, int] = {}
    why_not: str | None = None
    too_large: bool = False
    lasting: bool = False


Ways = Mapping[Strategy, _Way]
Policy = Callable[[Asked, Snapshot, Ways], tuple[Strategy, str]]


def decide(asked: Asked, snapshot: Snapshot, policy: str) -> Decision:
    """How this request runs on this cluster. policy: a key of POLICIES.

    Raises:
        NoStrategy: what was asked for, or everything that the mode allows, cannot run.
    """
    ways = {strategy: _way(strategy, asked, snapshot) for strategy in Strategy}
    strategy, reason = _choose(asked, snapshot, ways, policy)
    way = ways[strategy]
    assert way.route is not None
    if _has_cache(strategy) and not way.cached:
        reason = f"{reason}; a KV cache does not pay here, so without one"
        strategy = Strategy.DISTRIBUTED_NO_CACHE if strategy is Strategy.DISTRIBUTED_CACHED else strategy
    return Decision(
        strategy=strategy,
        route=way.route,
        cached=way.cached,
        bytes_by_worker=way.bytes_by_worker,
        reason=reason,
        candidates=tuple(
            Verdict(strategy=each, feasible=found.why_not is None, why_not=found.why_not, cached=found.cached)
            for each, found in ways.items()
        ),
    )


# --- what each strategy would come to


def _has_cache(strategy: Strategy) -> bool:
    return strategy in (Strategy.SINGLE_DEVICE_CACHED, Strategy.DISTRIBUTED_CACHED)


def _way(strategy: Strategy, asked: Asked, snapshot: Snapshot) -> _Way:
    if strategy in _COMES_LATER:
        return _Way(why_not=_COMES_LATER[strategy], lasting=True)
    if strategy is Strategy.SINGLE_DEVICE_CACHED:
        return _single_device_way(asked, snapshot)
    if snapshot.pipeline is None:
        return _Way(why_not=snapshot.why_not, lasting=not snapshot.splittable)
    cached = strategy is Strategy.DISTRIBUTED_CACHED and _pays(asked, snapshot, together=True)
    return _on(snapshot.pipeline, asked, snapshot, cached=cached)


def _single_device_way(asked: Asked, snapshot: Snapshot) -> _Way:
    """On the best of the workers with room; where there is none, what is missing on the best of all."""
    if not snapshot.holders:
        return _Way(why_not=snapshot.shortage or "no worker holds the full model")
    cached = _pays(asked, snapshot, together=False)
    ways = {
        worker: _on(Route((worker,)), asked, snapshot, cached=cached)
        for worker in sorted(snapshot.holders, key=lambda worker: snapshot.holders[worker])
    }
    possible = {worker: way for worker, way in ways.items() if way.why_not is None}
    if not possible:
        return next(iter(ways.values()))
    return possible[_holder(list(possible), asked, snapshot)]


def _holder(workers: list[str], asked: Asked, snapshot: Snapshot) -> str:
    """Which of `workers`, the least busy first."""
    most = snapshot.holders[workers[0]] + _TOLERATED_LEAD
    for beginning in asked.beginnings:
        worker = snapshot.visited.get(beginning)
        if worker is not None and worker in workers and snapshot.holders[worker] <= most:
            return worker
    return workers[0]


def _pays(asked: Asked, snapshot: Snapshot, *, together: bool) -> bool:
    """Whether a KV cache is worth its while for an answer of so many tokens, by what was measured."""
    if snapshot.measured is None:
        return True
    of_stages = snapshot.measured.distributed
    return (of_stages if together and of_stages else snapshot.measured.single_device).contains(asked.max_tokens)


def _on(route: Route, asked: Asked, snapshot: Snapshot, *, cached: bool) -> _Way:
    if not cached:
        return _Way(route=route)
    needs, num_tokens = snapshot.needs[route], asked.prompt_tokens + asked.max_tokens
    if excess := largest_excess(needs, snapshot.budgets, num_tokens):
        worker, wanted, there = excess
        return _Way(
            why_not=f"the KV cache of {num_tokens} tokens needs {wanted / 1e6:.1f} MB on {worker}, which has "
            f"{there / 1e6:.1f} MB for caches; shorten the prompt, lower max_tokens or raise its memory_limit",
            cached=True,
            too_large=True,
        )
    return _Way(
        route=route,
        cached=True,
        bytes_by_worker={worker: sequence_bytes(need, num_tokens) for worker, need in needs.items()},
    )


# --- which of them


def _choose(asked: Asked, snapshot: Snapshot, ways: Ways, policy: str) -> tuple[Strategy, str]:
    mode = asked.mode or snapshot.mode
    if asked.began_with is not None and ways[asked.began_with].why_not is None:
        return asked.began_with, f"goes on with {asked.began_with}, as it began"
    if asked.strategy is not None:
        return _possible(asked.strategy, ways, f"{asked.strategy} cannot run"), f"{asked.strategy} was asked for"
    if mode is Mode.NEVER:
        single = Strategy.SINGLE_DEVICE_CACHED
        refused = "mode never needs one worker with the full model"
        return _possible(single, ways, refused), "mode never: one device with a KV cache"
    if mode is Mode.ALWAYS or not snapshot.holders:
        return _distributed(asked, snapshot, ways, mode)
    return POLICIES[policy](asked, snapshot, ways)


def _possible(strategy: Strategy, ways: Ways, refused: str) -> Strategy:
    """The strategy itself. Raises NoStrategy, `refused` and why, where it cannot run."""
    way = ways[strategy]
    if way.why_not is not None:
        message = way.why_not if way.too_large else f"{refused}: {way.why_not}"
        raise NoStrategy(message, too_large=way.too_large, lasting=way.lasting)
    return strategy


def _distributed(asked: Asked, snapshot: Snapshot, ways: Ways, mode: Mode) -> tuple[Strategy, str]:
    """With mode always, or for a model that fits no single worker."""
    no_cache = Strategy.DISTRIBUTED_NO_CACHE
    within = _beyond(asked, snapshot.thresholds) is None
    strategy = no_cache if snapshot.holders or within else Strategy.DISTRIBUTED_CACHED
    why = "mode always" if mode is Mode.ALWAYS else "the model fits no single worker"
    how = "without a KV cache" if strategy is no_cache else "each with a KV cache"
    return _possible(strategy, ways, f"{why} needs all stages"), f"{why}: distributed over all stages, {how}"


def _by_thresholds(asked: Asked, snapshot: Snapshot, ways: Ways) -> tuple[Strategy, str]:
    """The documented policy `thresholds`."""
    thresholds = snapshot.thresholds
    beyond = _beyond(asked, thresholds)
    if beyond is None:
        wanted, other = Strategy.DISTRIBUTED_NO_CACHE, Strategy.SINGLE_DEVICE_CACHED
        reason = (
            f"{asked.prompt_tokens} prompt tokens and {asked.max_tokens} to generate are at most "
            f"{thresholds.prompt_tokens} and {thresholds.generation_tokens}: distributed without a KV cache"
        )
    else:
        wanted, other = Strategy.SINGLE_DEVICE_CACHED, Strategy.DISTRIBUTED_CACHED
        reason = f"{beyond}: one device with a KV cache"
    why_not = ways[wanted].why_not
    if why_not is not None and ways[other].why_not is None:
        return other, f"{wanted} cannot run now ({why_not}): {other} instead"
    nearest = other if ways[wanted].lasting else wanted  # what another plan or another length could make possible
    return _possible(nearest, ways, f"{nearest} cannot run"), reason


def _beyond(asked: Asked, thresholds: Thresholds) -> str | None:
    """Which threshold the request exceeds, in words; None when it is within both."""
    if asked.prompt_tokens > thresholds.prompt_tokens:
        return f"{asked.prompt_tokens} prompt tokens are more than {thresholds.prompt_tokens}"
    if asked.max_tokens > thresholds.generation_tokens:
        return f"{asked.max_tokens} tokens to generate are more than {thresholds.generation_tokens}"
    return None


POLICIES: dict[str, Policy] = {"thresholds": _by_thresholds}
