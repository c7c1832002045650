"""The plan in force as a frozen value: what every worker holds, the routes there are, and the memory of each.

Planning makes it once for an epoch; serving and status read it. Knows nothing of sockets, states or requests.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

from protocol.messages import Guessing, Inspected
from protocol.values import Route
from strategy.cost import RouteCosts
from strategy.group_sums import GroupSums
from strategy.grouping import Groups
from strategy.layer_speeds import LayerSpeeds
from strategy.memory import KvNeeds, WorkerBudget
from strategy.partition import ModelSizes, Stage


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the model. id: its name for people; digest: its name between processes; guessing: as in LoadStage; draft: who that is, for
    people, None where nobody guesses by himself; draft_bytes: what a draft model takes on a worker.
    """

    id: str
    digest: str
    sizes: ModelSizes
    inspected: Inspected
    guessing: Guessing | None = None
    draft: str | None = None
    draft_bytes: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """stages: every worker of the plan, in layer order. pipeline: the route through all that have layers; None for the reason
    `why_not`. groups: workers that compute the whole model together.
    shortage: why no worker holds the full model, None where one does.
    vocabulary_size: of the loaded weights. budgets: each worker's memory beyond its weights. needs: what a sequence's
    caches take, by route and worker, those of a draft model included, and drafts: those alone, by worker. costs: of the routes that were measured, with links of which nothing is known yet (see
    `cluster.planning.route_costs`); layer_speeds: by worker; sums: what the ranks of groups exchange.
    """

    epoch: int
    model: ModelFacts
    stages: tuple[Stage, ...]
    pipeline: Route | None
    why_not: str | None = None
    shortage: str | None = None
    groups: Groups = Groups()
    vocabulary_size: int
    budgets: Mapping[str, WorkerBudget]
    needs: Mapping[Route, Mapping[str, KvNeeds]]
    drafts: Mapping[str, KvNeeds] = {}
    costs: Mapping[Route, RouteCosts] = {}
    layer_speeds: Mapping[str, LayerSpeeds] = {}
    sums: Mapping[Route, GroupSums] = {}

    @property
    def workers(self) -> tuple[str, ...]:
        return tuple(stage.worker for stage in self.stages)

    @property
    def holders(self) -> tuple[str, ...]:
        """Workers that can serve a request alone."""
        return tuple(stage.worker for stage in self.stages if stage.holds_full_model)


LossCause = Literal["worker", "link", "plan"]


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Why a plan ended. workers: who died in it; none for a lost link, or where a better plan takes its place.

    cause: what was lost, a worker or a link; plan, where nothing was. was_silence: of whoever died nothing was heard any more, which may
    be so of a healthy worker on a machine that is overloaded.
    """

    workers: tuple[str, ...]
    sentence: str
    cause: LossCause = "worker"
    was_silence: bool = False
