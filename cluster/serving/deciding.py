"""From the cluster as it is to the snapshot that `strategy.decision` decides over, and from its refusals to what clients are told.

Owns the memory of where conversations and shared beginnings of prompts went, so that they come back to the worker whose cache
knows them. Decides nothing itself.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from cluster.planning.interface import Cluster
from cluster.planning.plan import Plan
from cluster.serving.admission import NotNow
from cluster.settings import StrategySettings
from protocol.errors import BadRequest, TooLarge
from strategy.cache_use import MeasuredUse
from strategy.decision import Asked, Decision, Mode, NoStrategy, Snapshot, Thresholds, decide
from strategy.vocabulary import Route

_MAX_REMEMBERED = 4096


class Decider:
    """measured_use: when a KV cache pays, None where that is not to be followed or was not measured.

    load: requests by the worker that is their head, as it changes.
    """

    def __init__(
        self, cluster: Cluster, settings: StrategySettings, measured_use: MeasuredUse | None, load: Mapping[str, int]
    ):
        self._cluster = cluster
        self._policy = settings.policy
        self._mode = Mode(settings.use_distributed_inference)
        self._thresholds = Thresholds(settings.prompt_threshold, settings.generation_threshold)
        self._measured_use = measured_use
        self._load = load
        self._visited: OrderedDict[str | bytes, str] = OrderedDict()

    def __repr__(self) -> str:
        return f"Decider({self._policy}, {self._mode}, {len(self._visited)} remembered)"

    def decide(self, asked: Asked, plan: Plan) -> Decision:
        """How a request runs on `plan`.

        Raises:
            NotNow: it cannot, but could once the workers that are missing are back.
            BadRequest, TooLarge: it cannot.
        """
        try:
            return decide(asked, self._snapshot(plan), self._policy)
        except NoStrategy as error:
            if self._cluster.missing and not error.lasting:
                raise NotNow(str(error)) from None
            if error.too_large:
                raise TooLarge(str(error), param="max_tokens") from None
            param = "use_distributed_inference" if asked.strategy is None else "strategy"
            raise BadRequest(str(error), param=param) from None

    def _snapshot(self, plan: Plan) -> Snapshot:
        return Snapshot(
            pipeline=plan.pipeline,
            why_not=plan.why_not,
            splittable=plan.model.inspected.why_not is None,
            holders={worker: self._load[worker] for worker in plan.holders},
            shortage=plan.shortage,
            needs=plan.needs,
            budgets=plan.budgets,
            measured=self._measured_use,
            visited=MappingProxyType(self._visited),
            thresholds=self._thresholds,
            mode=self._mode,
        )

    def remember(self, beginnings: Sequence[str | bytes], route: Route) -> None:
        """A request runs on `route`: what begins like it may come back there."""
        if not route.is_single:
            return
        for beginning in beginnings:
            self._visited[beginning] = route.head
            self._visited.move_to_end(beginning)
        while len(self._visited) > _MAX_REMEMBERED:
            self._visited.popitem(last=False)

    def forget(self, conversation: str) -> None:
        """A conversation was deleted."""
        self._visited.pop(conversation, None)
