"""What `decide` chooses where all routes share the same two workers and streams run on some of them, beside what would have been best.

Each worker has the full model, both together a pipeline, so whatever runs on one route holds up all others. How long each choice
takes is what `SimulatedWorkers` says; the policy `thresholds` and the modes `always` and `never` are asked as well.
"""

import math
import random
from collections.abc import Iterator, Mapping

import msgspec

from benchmarks.support.many_nodes import snapshot
from benchmarks.support.simulated_loads import running
from benchmarks.support.simulated_workers import Placed, SimulatedWorkers
from strategy.chunking import ChunkCost
from strategy.cost import RouteCosts, RouteLoad
from strategy.decision import decide
from strategy.situation import Asked
from strategy.stage_speed import Hop, StageSpeed
from strategy.vocabulary import Route
from strategy.wishes import Mode

NUM_STREAMS = 4
FIRST, SECOND, PIPELINE = Route(("a",)), Route(("b",)), Route(("a", "b"))
# Of the streams, how many run on each route.
PLACES: dict[str, dict[Route, int]] = {
    "one worker": {FIRST: 4},
    "both workers": {FIRST: 3, SECOND: 1},
    "all stages": {PIPELINE: 4},
    "one worker and all stages": {FIRST: 2, PIPELINE: 2},
    "everywhere": {FIRST: 2, SECOND: 1, PIPELINE: 1},
}
CHOOSERS = ("measured", "thresholds", "always", "never")
_PROMPTS, _ANSWERS = (16, 128, 512, 1024), (8, 64, 128)
_HANDED = Hop(1.5e-4, 1e6)


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """One request beside streams. seconds: until its answer is complete, by rule; best_s: by the best of all ways."""

    place: str
    prompt_tokens: int
    generated_tokens: int
    seconds: dict[str, float]
    best_s: float

    def regret(self, rule: str) -> float:
        return self.seconds[rule] / self.best_s - 1


class _Way(msgspec.Struct, frozen=True):
    route: Route
    read_by: Route | None
    cached: bool


_WAYS = tuple(
    _Way(route, read_by, cached)
    for route, read_by, cached in (
        *((route, None, True) for route in (FIRST, SECOND, PIPELINE)),
        *((route, PIPELINE, True) for route in (FIRST, SECOND)),
        (PIPELINE, None, False),
    )
)


def beside(seed: int, num_clusters: int) -> Iterator[Beside]:
    """A request beside each of the `PLACES` of streams, on so many random pairs of workers."""
    draw = random.Random(seed)
    for _ in range(num_clusters):
        costs = _routes(draw)
        for place, streams in PLACES.items():
            yield _beside(costs, place, streams, draw)


def _routes(draw: random.Random) -> dict[Route, RouteCosts]:
    """The second worker is up to three times as slow, and has fewer layers for that; further rows are cheap or dear."""
    slow, step_s, row_share = draw.uniform(1, 3), draw.uniform(0.003, 0.02), draw.uniform(0.05, 0.6)
    token_s, share, hop = step_s * draw.uniform(0.05, 0.3), slow / (1 + slow), Hop(draw.uniform(1e-4, 1e-3), 1e9)

    def stage(scale: float) -> StageSpeed:
        return StageSpeed(
            decode=((1, step_s * scale), (8, step_s * scale * (1 + 7 * row_share))),
            decode_context_s=step_s * scale / 20_000,
            chunk=ChunkCost(0.5 * step_s * scale, token_s * scale),
            chunk_context_s=token_s * scale / 10_000,
            payload_bytes=2000,
        )

    stages = {FIRST: (stage(1),), SECOND: (stage(slow),), PIPELINE: (stage(share), stage(slow * (1 - share)))}
    return {
        route: RouteCosts(route=route, stages=each, hops=(hop,) * 2 if len(each) > 1 else (Hop(0.0, math.inf),))
        for route, each in stages.items()
    }


def _beside(costs: dict[Route, RouteCosts], place: str, streams: Mapping[Route, int], draw: random.Random) -> Beside:
    asked = Asked(prompt_tokens=draw.choice(_PROMPTS), max_tokens=draw.choice(_ANSWERS))
    context = draw.randrange(50, 1500)
    seconds = {way: _seconds(costs, way, asked, streams, context) for way in _WAYS}
    loads = {route: RouteLoad(decoding=number, context=context) for route, number in streams.items()}
    now = snapshot(costs, loads, PIPELINE, ("a", "b"), {(PIPELINE, name): _HANDED for name in ("a", "b")})
    by_rule = {}
    for rule in CHOOSERS:
        mode = Mode(rule) if rule in tuple(Mode) else None
        policy = "thresholds" if rule != "measured" else rule
        found = decide(msgspec.structs.replace(asked, mode=mode), now, policy)
        by_rule[rule] = seconds[_Way(found.route, found.read_by, found.cached)]
    return Beside(
        place=place,
        prompt_tokens=asked.prompt_tokens,
        generated_tokens=asked.max_tokens,
        seconds=by_rule,
        best_s=min(seconds.values()),
    )


def _seconds(
    costs: dict[Route, RouteCosts], way: _Way, asked: Asked, streams: Mapping[Route, int], context: int
) -> float:
    own = Placed(
        route=way.route,
        arrives_s=0.5,
        prompt_tokens=asked.prompt_tokens,
        generated_tokens=asked.max_tokens,
        cached=way.cached,
        read_by=None if way.read_by is None else (way.read_by, _HANDED),
    )
    others = [stream for route, number in streams.items() for stream in running(route, number, context)]
    return SimulatedWorkers(costs, [own, *others]).tokens_at(0)[-1] - own.arrives_s
