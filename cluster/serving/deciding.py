"""From the cluster as it is to the snapshot that `strategy.decision` decides over, and from its refusals to what clients are told.

Owns the memory of where conversations and shared beginnings of prompts went, so that they come back to the worker whose cache
knows them, and what is known for predictions. Decides nothing itself.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from cluster.planning.interface import Cluster
from cluster.planning.plan import Plan
from cluster.planning.route_costs import PresentCosts
from cluster.serving.admission import Admission, NotNow
from cluster.serving.crowd import Crowd
from cluster.serving.forecasting import Forecasting
from cluster.serving.live_request import LiveRequest
from cluster.serving.requests import Finished
from cluster.serving.status import Outlook, RouteOutlook, StrategyOutlook
from cluster.settings import StrategySettings
from protocol.errors import BadRequest, ContextTooLong
from strategy.cache_use import MeasuredUse
from strategy.cost import RouteLoad
from strategy.decision import Decision, Verdict, decide
from strategy.occupation import Occupation
from strategy.prediction import Conditions, forecast
from strategy.situation import Asked, NoStrategy, Snapshot, Strategy, Thresholds
from strategy.vocabulary import Route
from strategy.wishes import Mode

_MAX_REMEMBERED = 4096
# What is predicted of a plan is so for a request like this.
_TYPICAL = Asked(prompt_tokens=1024, max_tokens=128)


class Decider:
    """measured_use: when a KV cache pays, None where that is not to be followed or was not measured.

    admission: who runs and waits; loads: what runs now, by route. at_once: caches are as large as they can become from the beginning.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: StrategySettings,
        measured_use: MeasuredUse | None,
        admission: Admission,
        loads: Callable[[], Mapping[Route, RouteLoad]],
        *,
        at_once: bool,
    ):
        self._cluster = cluster
        self._policy = settings.policy
        self._mode = Mode(settings.use_distributed_inference)
        self._thresholds = Thresholds(settings.prompt_threshold, settings.generation_threshold)
        self._measured_use = measured_use
        self._admission = admission
        self._loads = loads
        self._at_once = at_once
        self._costs = PresentCosts()
        self._forecasting = Forecasting(settings.objective)
        self._visited: OrderedDict[str | bytes, str] = OrderedDict()

    def __repr__(self) -> str:
        return f"Decider({self._policy}, {self._mode}, {len(self._visited)} remembered)"

    def begin_plan(self, plan: Plan) -> None:
        """A plan is in force."""
        self._forecasting.begin_plan(plan)

    def asked(self, live: LiveRequest, plan: Plan) -> Asked:
        """What a request is decided by. Raises what `LiveRequest.asked` raises."""
        asked = live.asked(plan, at_once=self._at_once)
        if not self._forecasting.is_of_use or asked.embeds:
            return asked
        return msgspec.structs.replace(
            asked,
            expected_tokens=self._forecasting.expected_tokens(live.names, asked.max_tokens),
            reusable={} if asked.scores_prompt else self._forecasting.reusable(live.keys),
        )

    def decide(self, asked: Asked, plan: Plan) -> Decision:
        """How a request runs on `plan`.

        Raises:
            NotNow: it cannot, but could once the workers that are missing are back.
            BadRequest, ContextTooLong: it cannot.
        """
        try:
            return decide(asked, self._snapshot(plan), self._policy)
        except NoStrategy as error:
            if self._cluster.missing and not error.lasting:
                raise NotNow(str(error)) from None
            if error.too_large:
                raise ContextTooLong(str(error), param="max_tokens") from None
            param = "use_distributed_inference" if asked.strategy is None else "strategy"
            raise BadRequest(str(error), param=param) from None

    def decide_for(self, live: LiveRequest, asked: Asked, plan: Plan) -> Decision:
        """How a request runs; one that says nothing of its length as one of the usual length, and then as far as there can be memory
        where that runs. Raises as `decide`.
        """
        decision = self.decide(asked, plan)
        if live.request.max_tokens is not None or self._at_once:
            return decision
        room = {worker: plan.budgets[worker].sequence_bytes for worker in decision.caches}
        return decision.going_on(asked.prompt_tokens + live.max_tokens, room)

    def most_tokens(self, asked: Asked, plan: Plan) -> int:
        """For how many tokens to generate, fewer than asked, there can be memory on `plan`; 0 where there is none for the prompt."""

        def is_too_many(max_tokens: int) -> bool:
            try:
                self.decide(msgspec.structs.replace(asked, max_tokens=max_tokens, expected_tokens=None), plan)
            except (NotNow, BadRequest):
                return True
            return False

        return bisect_left(range(1, asked.max_tokens + 1), x=True, key=is_too_many)

    def _snapshot(self, plan: Plan) -> Snapshot:
        return Snapshot(
            pipeline=plan.pipeline,
            why_not=plan.why_not,
            splittable=plan.model.inspected.why_not is None,
            whole_prompts=plan.model.inspected.whole_prompts,
            holders={worker: self._admission.load[worker] for worker in plan.holders},
            shortage=plan.shortage,
            groups=plan.groups,
            group_load={route: self._admission.load[route.head] for route in plan.groups.routes},
            needs=plan.needs,
            budgets=plan.budgets,
            at_once=self._at_once,
            measured=self._measured_use,
            visited=MappingProxyType(self._visited),
            thresholds=self._thresholds,
            mode=self._mode,
            conditions=self._conditions(plan),
        )

    def _conditions(self, plan: Plan) -> Conditions | None:
        if not self._forecasting.is_of_use:
            return None
        costs = self._costs.of(plan, self._cluster.members)
        return self._forecasting.conditions(
            costs, self._loads_to_come(), self._num_running, self._admission.num_waiting
        )

    def _loads_to_come(self) -> Mapping[Route, RouteLoad]:
        """What runs, by route, and what is to begin in this moment: several requests may be decided before the first of them begins."""
        loads = {**self._loads()}
        for decision in self._admission.coming:
            reads = decision.read_by or decision.route
            for route in dict.fromkeys((reads, decision.route)):
                before = loads.get(route, RouteLoad())
                loads[route] = before.joined(decision.num_tokens, cached=decision.cached, is_read=route == reads)
        return loads

    @property
    def _num_running(self) -> int:
        return sum(self._admission.load.values())

    def outlook(self) -> Outlook | None:
        """What a typical request would take on the plan in force if nothing else ran; None where nothing was measured."""
        plan = self._cluster.plan
        conditions = None if plan is None else self._conditions(plan)
        if plan is None or conditions is None:
            return None
        idle = msgspec.structs.replace(
            conditions, occupation=Occupation(conditions.costs), found={}, wholes={}, streams=1
        )
        snapshot = msgspec.structs.replace(self._snapshot(plan), conditions=idle)
        try:
            candidates = decide(_TYPICAL, snapshot, "measured").candidates
        except NoStrategy:
            return None
        return Outlook(
            prompt_tokens=_TYPICAL.prompt_tokens,
            max_tokens=_TYPICAL.max_tokens,
            strategies=tuple(found for each in candidates if (found := _outlook(each)) is not None),
            routes=_by_route(idle),
        )

    def began(self, live: LiveRequest, decision: Decision) -> None:
        """A request runs: what begins like it may come back there."""
        route = decision.route
        self._forecasting.began(self._num_running)
        if live.request.pooling is not None:
            return  # nothing is kept of it
        if decision.cached and self._forecasting.is_of_use:
            self._forecasting.keeps(route, live.keys)
        if not route.is_single:
            return
        for beginning in live.beginnings:
            self._visited[beginning] = route.head
            self._visited.move_to_end(beginning)
        while len(self._visited) > _MAX_REMEMBERED:
            self._visited.popitem(last=False)

    def answered(
        self, live: LiveRequest, decision: Decision, finished: Finished, waited_s: float, crowd: Crowd
    ) -> None:
        """A request has its answer. waited_s: for its turn. A vector says nothing of how answers come."""
        if live.request.pooling is not None:
            return
        if finished.completion_tokens:
            self._forecasting.ended(live.names, finished)
        if live.is_first(decision):
            self._forecasting.answered(decision, finished, waited_s, crowd)

    def forget(self, conversation: str) -> None:
        """A conversation was deleted."""
        self._visited.pop(conversation, None)


def _outlook(candidate: Verdict) -> StrategyOutlook | None:
    ttft_s, total_s = candidate.predicted_ttft_s, candidate.predicted_total_s
    if not candidate.feasible or ttft_s is None or total_s is None:
        return None
    return StrategyOutlook(
        strategy=candidate.strategy,
        workers=candidate.workers,
        ttft_s=ttft_s,
        decode_tokens_per_s=round((_TYPICAL.max_tokens - 1) / max(total_s - ttft_s, 1e-9), 1),
    )


def _by_route(idle: Conditions) -> tuple[RouteOutlook, ...]:
    found = [each for route in idle.costs if (each := _route_outlook(route, idle)) is not None]
    return tuple(sorted(found, key=lambda each: (-each.decode_tokens_per_s, each.workers)))


def _route_outlook(route: Route, idle: Conditions) -> RouteOutlook | None:
    strategy = _generating(route)
    found = forecast(strategy, route, _TYPICAL.work(route), idle, cached=True)
    if found is None:
        return None
    return RouteOutlook(
        strategy=strategy,
        workers=route.workers,
        prefill_tokens_per_s=round(_TYPICAL.prompt_tokens / max(found.ttft_s, 1e-9), 1),
        decode_tokens_per_s=round(1 / max(found.step_s, 1e-9), 1),
    )


def _generating(route: Route) -> Strategy:
    """The strategy by which a route generates with a KV cache."""
    if route.is_shared:
        return Strategy.TENSOR_PARALLEL
    return Strategy.SINGLE_DEVICE_CACHED if route.is_single else Strategy.DISTRIBUTED_CACHED
