"""What a decision is made of: one request, the cluster as it is at that moment, and what each strategy would come to.

Frozen values and their words; nothing is decided here.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from strategy.cache_use import MeasuredUse
from strategy.cost import RequestWork
from strategy.grouping import Groups
from strategy.memory import KvNeeds, WorkerBudget
from strategy.prediction import Conditions, Forecast
from strategy.vocabulary import Route
from strategy.wishes import Mode


class Strategy(StrEnum):
    """The ways of generating, by their public names."""

    SINGLE_DEVICE_CACHED = "single-device-cached"
    DISTRIBUTED_NO_CACHE = "distributed-no-cache"
    DISTRIBUTED_CACHED = "distributed-cached"
    DISTRIBUTED_PREFILL = "distributed-prefill"
    TENSOR_PARALLEL = "tensor-parallel"


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
    """One request. prompt_tokens: after the chat template; max_tokens: how many may be generated; num_generated: how many of them were.

    mode: in place of the cluster's; strategy: asked for by name; began_with: what it ran by before its plan was lost.
    beginnings: what it may be remembered by, the conversation first, then the beginning of its prompt. expected_tokens: how many
    will likely be generated, max_tokens where None; reusable: tokens of its prompt that a route's caches have. scores_prompt: the
    log probabilities of the prompt's own tokens are told; embeds: the prompt becomes a vector, nothing is generated.
    """

    prompt_tokens: int
    max_tokens: int
    num_generated: int = 0
    expected_tokens: int | None = None
    reusable: Mapping[Route, int] = {}
    mode: Mode | None = None
    strategy: Strategy | None = None
    began_with: Strategy | None = None
    beginnings: tuple[str | bytes, ...] = ()
    scores_prompt: bool = False
    embeds: bool = False

    def work(self, route: Route | None = None) -> RequestWork:
        """What it comes to on a route; on one that knows nothing of it, without a route."""
        known = self.reusable.get(route, 0) if route is not None and self.reusable else 0
        return RequestWork(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=min(known, self.prompt_tokens - 1),
            generated_tokens=self.max_tokens if self.expected_tokens is None else self.expected_tokens,
        )


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of the cluster that a decision looks at.

    pipeline: the route through all stages, or None for the reason `why_not`, which no other plan removes where the model is
    not `splittable`. whole_prompts: its answers depend on how a prompt is cut into passes. holders: the workers with the full model and how many requests each has; shortage: why there are none.
    groups: workers that compute the whole model together; group_load: how many requests each has.
    needs and budgets: of caches, by route and worker; at_once: caches are as large as they can become from the beginning. measured: when a KV cache pays, None where it always does. visited:
    which worker knows a beginning. conditions: what predictions are made from, None where nothing was measured.
    """

    pipeline: Route | None
    why_not: str | None
    splittable: bool
    whole_prompts: bool = False
    holders: Mapping[str, int]
    shortage: str | None
    groups: Groups = Groups()
    group_load: Mapping[Route, int] = {}
    needs: Mapping[Route, Mapping[str, KvNeeds]]
    budgets: Mapping[str, WorkerBudget]
    at_once: bool = False
    measured: MeasuredUse | None
    visited: Mapping[str | bytes, str]
    thresholds: Thresholds
    mode: Mode
    conditions: Conditions | None = None


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One strategy as far as it was worked out; of `why_not` and `route` one is None. read_by: as of `Decision`; forecast: of what it would
    take.
    """

    route: Route | None = None
    read_by: Route | None = None
    cached: bool = False
    bytes_by_worker: Mapping[str, int] = {}
    why_not: str | None = None
    too_large: bool = False
    lasting: bool = False
    forecast: Forecast | None = None


Ways = Mapping[Strategy, Way]


def workers_of(route: Route, read_by: Route | None) -> tuple[str, ...]:
    """All that work on a request, those that read its prompt first."""
    return tuple(dict.fromkeys((*(read_by or ()), *route)))
