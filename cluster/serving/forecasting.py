"""What is known for predictions: what the routes of the plan in force cost, what runs on them, what their caches have, how long
answers become, and how far earlier predictions were off.

Owns that knowledge between requests; the arithmetic is in `strategy`. Where a plan's routes were not measured it knows nothing,
and everything goes as without it.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from statistics import median

from cluster.planning.plan import Plan
from cluster.planning.route_costs import LinkedCosts
from cluster.serving.crowd import Crowd
from cluster.serving.requests import Finished
from strategy.cost import RouteLoad
from strategy.decision import Decision
from strategy.drafting import may_guess
from strategy.layout import beside
from strategy.learning import ENOUGH_TOKENS, AnswerLengths, Learning, Seen
from strategy.occupation import Occupation
from strategy.prediction import Conditions
from strategy.prefix import BLOCK_TOKENS, Key
from strategy.vocabulary import Route
from strategy.wishes import Objective

_MAX_BLOCKS = 4096
# By how many more may come beside a request whose times still teach what to expect, and of those whose prompt's reading does.
_MORE_CAME, _MORE_READ = 1.5, 1.2
# Of how many ran at once, what counts after one request more.
_FADING = 0.95


class Forecasting:
    """See the module."""

    def __init__(self, objective: Objective):
        self._objective = objective
        self._plan: Plan | None = None
        self._costs = LinkedCosts()
        self._occupation = Occupation({})
        self._learning = Learning()
        self._lengths = AnswerLengths()
        self._kept: dict[Route, OrderedDict[Key, None]] = {}
        self._num_decided = 0
        self._most_at_once = 0.0

    def __repr__(self) -> str:
        return f"Forecasting({self._objective}, {self._num_decided} decided, {self._learning})"

    def begin_plan(self, plan: Plan) -> None:
        """A plan is in force."""
        self._plan = plan
        self._learning.renew(plan.costs)
        self._kept = {}

    def conditions(
        self, costs: LinkedCosts, loads: Mapping[Route, RouteLoad], num_running: int, num_waiting: int
    ) -> Conditions:
        """What predictions are made from now. costs: with the links as they are; loads: what runs, by route.

        Where more wait than run, all of them together count more than each by itself.
        """
        if costs is not self._costs:
            self._costs, self._occupation = costs, Occupation(costs.routes)
        self._occupation.changed(loads)
        is_crowded = self._objective is Objective.TOTAL and num_waiting > num_running > 0
        return Conditions(
            costs=costs.routes,
            handed=costs.handed,
            occupation=self._occupation,
            learning=self._learning,
            objective=Objective.THROUGHPUT if is_crowded else self._objective,
            num_decided=self._num_decided,
            streams=max(num_running + max(num_waiting, 1), round(self._most_at_once)),
        )

    @property
    def is_of_use(self) -> bool:
        """Whether anything can be predicted."""
        return self._plan is not None and bool(self._plan.costs)

    def reusable(self, keys: Sequence[Key]) -> dict[Route, int]:
        """By route how many tokens of a prompt its caches should have. keys: of the prompt's blocks."""
        found = {}
        for route, kept in self._kept.items():
            num_blocks = next((count for count, key in enumerate(keys) if key not in kept), len(keys))
            if num_blocks:
                found[route] = num_blocks * BLOCK_TOKENS
        return found

    def expected_tokens(self, names: tuple[str, ...], max_tokens: int) -> int:
        """How many tokens an answer to one of these will likely have."""
        return self._lengths.expected(names, max_tokens)

    def began(self, num_running: int) -> None:
        """A request was sent on its way. num_running: it is one of so many."""
        self._num_decided += 1
        self._most_at_once = max(self._most_at_once * _FADING, num_running)

    def answered(self, decision: Decision, finished: Finished, waited_s: float, crowd: Crowd) -> None:
        """A request that nothing befell has its answer. waited_s: for its turn, which no forecast knows of.

        Where many more came than there were, its times say what is true of them all, not of a request like it; its steps are held
        against those that are predicted beside as many as there were in the mean.
        """
        route, forecast = decision.route, decision.forecast
        if forecast is None:
            return
        if forecast.work.cached_tokens > finished.cached_tokens:
            self._kept.pop(route, None)  # less is there than was thought
        if crowd.most > _MORE_CAME * forecast.num_there:
            return
        if forecast.work.cached_tokens == finished.cached_tokens // BLOCK_TOKENS * BLOCK_TOKENS:
            rate, num_tokens = finished.decode_tokens_per_s, finished.completion_tokens
            seen = Seen(
                finished.ttft_s - waited_s if crowd.most <= _MORE_READ * forecast.num_there else None,
                None if rate is None else _step_s(finished, 1 / rate),
                num_tokens / max(num_tokens - finished.accepted, 1) if finished.proposed else None,
                max(num_tokens - 1, 1),
                not decision.cached or may_guess(crowd.most, route.num_stages),
            )
            times, costs = forecast.times, self._costs.routes.get(route)
            if decision.cached and costs is not None and crowd.mean_decoding is not None:
                times = beside(times, costs, forecast.work, forecast.num_there, crowd.mean_decoding)
            self._learning.saw(forecast.strategy, route, forecast.work.read_tokens, times, seen)

    def ended(self, names: tuple[str, ...], finished: Finished) -> None:
        """An answer is complete."""
        self._lengths.saw(names, finished.completion_tokens, stopped=finished.finish_reason == "stop")

    def keeps(self, route: Route, keys: Sequence[Key]) -> None:
        """The caches of a route have these blocks of a sequence from now on, as far as there is room."""
        if self._plan is None or any(needs.snapshots for needs in self._plan.needs.get(route, {}).values()):
            return  # what cannot be cut fits a prompt that is alike to its last token only
        kept = self._kept.setdefault(route, OrderedDict())
        for key in keys:
            kept[key] = None
            kept.move_to_end(key)
        while len(kept) > _MAX_BLOCKS:
            kept.popitem(last=False)


def _step_s(finished: Finished, mean_s: float) -> float:
    """Of a short answer the middle step: what they met once, as others' prompts, is much of each in the mean. Those with guesses are of
    all kinds.
    """
    is_short = finished.completion_tokens <= ENOUGH_TOKENS and finished.first_gaps_s
    return median(finished.first_gaps_s) if is_short and not finished.proposed else mean_s
