"""Which strategy a request takes, and the sentence that says why.

Knows lengths, thresholds, the mode and which strategies the cluster could run now; knows nothing of workers' names,
sockets or models. The rules are those of the documented policy `thresholds`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


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
    TENSOR_PARALLEL = "tensor-parallel"


class NoStrategy(Exception):
    """No strategy can serve the request. `by_choice`: the caller asked for what cannot be had; else it may pass."""

    def __init__(self, message: str, *, by_choice: bool):
        super().__init__(message)
        self.by_choice = by_choice


@dataclass(frozen=True)
class Feasibility:
    """Why each strategy cannot run now, as a sentence; strategies that can run are absent.

    fits_one_worker: some worker of the plan holds the full model, whether or not that worker lives at the moment.
    """

    why_not: Mapping[Strategy, str]
    fits_one_worker: bool

    def allows(self, strategy: Strategy) -> bool:
        return strategy not in self.why_not


@dataclass(frozen=True)
class Thresholds:
    """A request within both limits is `distributed-no-cache`."""

    prompt_tokens: int = 100
    generation_tokens: int = 50


@dataclass(frozen=True)
class Lengths:
    """prompt_tokens: after the chat template; max_tokens: how many may be generated."""

    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Choice:
    """The strategy taken and the reason, a sentence that a user understands."""

    strategy: Strategy
    reason: str


def select(
    lengths: Lengths,
    feasibility: Feasibility,
    *,
    mode: Mode,
    thresholds: Thresholds,
    strategy: Strategy | None = None,
) -> Choice:
    """Choose the strategy for one request; an explicit `strategy` wins over `mode`.

    Raises:
        NoStrategy: what was asked for, or everything that the mode allows, cannot run.
    """
    if strategy is not None:
        return _asked_for(strategy, feasibility)
    if mode is Mode.NEVER:
        return _single_device(feasibility)
    if mode is Mode.ALWAYS or not feasibility.fits_one_worker:
        return _distributed(lengths, feasibility, thresholds, mode)
    return _by_length(lengths, feasibility, thresholds)


def _asked_for(strategy: Strategy, feasibility: Feasibility) -> Choice:
    if not feasibility.allows(strategy):
        raise NoStrategy(f"{strategy} cannot run: {feasibility.why_not[strategy]}", by_choice=True)
    return Choice(strategy, f"{strategy} was asked for")


def _single_device(feasibility: Feasibility) -> Choice:
    single = Strategy.SINGLE_DEVICE_CACHED
    if not feasibility.allows(single):
        raise NoStrategy(
            f"mode never needs one worker with the full model: {feasibility.why_not[single]}",
            by_choice=not feasibility.fits_one_worker,
        )
    return Choice(single, "mode never: one device with a KV cache")


def _distributed(lengths: Lengths, feasibility: Feasibility, thresholds: Thresholds, mode: Mode) -> Choice:
    """With mode always, or for a model that fits no single worker."""
    fits = feasibility.fits_one_worker
    within = _beyond(lengths, thresholds) is None
    preferred = Strategy.DISTRIBUTED_NO_CACHE if fits or within else Strategy.DISTRIBUTED_CACHED
    why = "mode always" if mode is Mode.ALWAYS else "the model fits no single worker"
    for strategy in (preferred, Strategy.DISTRIBUTED_NO_CACHE):
        if feasibility.allows(strategy):
            how = "without a KV cache" if strategy is Strategy.DISTRIBUTED_NO_CACHE else "each with a KV cache"
            return Choice(strategy, f"{why}: distributed over all stages, {how}")
    raise NoStrategy(feasibility.why_not[preferred], by_choice=False)


def _by_length(lengths: Lengths, feasibility: Feasibility, thresholds: Thresholds) -> Choice:
    beyond = _beyond(lengths, thresholds)
    if beyond is None:
        wanted, other = Strategy.DISTRIBUTED_NO_CACHE, Strategy.SINGLE_DEVICE_CACHED
        reason = (
            f"{lengths.prompt_tokens} prompt tokens and {lengths.max_tokens} to generate are at most "
            f"{thresholds.prompt_tokens} and {thresholds.generation_tokens}: distributed without a KV cache"
        )
    else:
        wanted, other = Strategy.SINGLE_DEVICE_CACHED, Strategy.DISTRIBUTED_CACHED
        reason = f"{beyond}: one device with a KV cache"
    if feasibility.allows(wanted):
        return Choice(wanted, reason)
    for fallback in (other, Strategy.DISTRIBUTED_NO_CACHE):
        if feasibility.allows(fallback):
            return Choice(fallback, f"{wanted} cannot run now ({feasibility.why_not[wanted]}): {fallback} instead")
    raise NoStrategy(feasibility.why_not[wanted], by_choice=False)


def _beyond(lengths: Lengths, thresholds: Thresholds) -> str | None:
    """Which threshold the request exceeds, in words; None when it is within both."""
    if lengths.prompt_tokens > thresholds.prompt_tokens:
        return f"{lengths.prompt_tokens} prompt tokens are more than {thresholds.prompt_tokens}"
    if lengths.max_tokens > thresholds.generation_tokens:
        return f"{lengths.max_tokens} tokens to generate are more than {thresholds.generation_tokens}"
    return None
