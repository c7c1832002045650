"""Which strategy a request takes, of those that could run: the rules of `strategy.decision`, and the policies of mode auto."""

from collections.abc import Callable, Mapping, Sequence

from strategy.layout import StreamLayout, layout_of
from strategy.prediction import Conditions, Forecast
from strategy.situation import Asked, NoStrategy, Snapshot, Strategy, Thresholds, Ways
from strategy.wishes import Mode, Objective

# Each so many requests one goes where least is known, if that is predicted to be within this of the best.
_EXPLORE_EVERY = 32
_EXPLORE_WITHIN = 1.25
# What is predicted to be nearly as good as the best is as good, and of such the one that has the least to go wrong is taken.
_AS_GOOD = 1.03
_PREFERRED = (
    Strategy.SINGLE_DEVICE_CACHED,
    Strategy.DISTRIBUTED_CACHED,
    Strategy.DISTRIBUTED_PREFILL,
    Strategy.DISTRIBUTED_NO_CACHE,
    Strategy.TENSOR_PARALLEL,
)

# Another way for all streams than the one that most of them take is begun with for no less.
_WORTH_A_CHANGE = 1.3
_LAYOUTS = {
    Strategy.SINGLE_DEVICE_CACHED: StreamLayout.REPLICAS,
    Strategy.DISTRIBUTED_PREFILL: StreamLayout.REPLICAS,
    Strategy.DISTRIBUTED_CACHED: StreamLayout.PIPELINE,
    Strategy.DISTRIBUTED_NO_CACHE: StreamLayout.PIPELINE,
    Strategy.TENSOR_PARALLEL: StreamLayout.GROUP,
}

Policy = Callable[[Asked, Snapshot, Ways], tuple[Strategy, str]]


def choose(asked: Asked, snapshot: Snapshot, ways: Ways, policy: str) -> tuple[Strategy, str]:
    """The strategy and the reason, for people. policy: a key of POLICIES. Raises NoStrategy."""
    mode = asked.mode or snapshot.mode
    if asked.began_with is not None and ways[asked.began_with].why_not is None:
        return asked.began_with, f"goes on with {asked.began_with}, as it began"
    alone = Strategy.SINGLE_DEVICE_CACHED
    if asked.began_with is Strategy.DISTRIBUTED_PREFILL and ways[alone].why_not is None:
        return alone, f"goes on with {alone}, since {asked.began_with} cannot ({ways[asked.began_with].why_not})"
    if asked.strategy is not None:
        return _possible(asked.strategy, ways, f"{asked.strategy} cannot run"), f"{asked.strategy} was asked for"
    if mode is Mode.NEVER:
        refused = "mode never needs one worker with the full model"
        return _possible(alone, ways, refused), "mode never: one device with a KV cache"
    if mode is Mode.ALWAYS or not snapshot.holders:
        return _distributed(asked, snapshot, ways, mode, policy)
    return POLICIES[policy](asked, snapshot, ways)


def _possible(strategy: Strategy, ways: Ways, refused: str) -> Strategy:
    """The strategy itself. Raises NoStrategy, `refused` and why, where it cannot run."""
    way = ways[strategy]
    if way.why_not is not None:
        message = way.why_not if way.too_large else f"{refused}: {way.why_not}"
        raise NoStrategy(message, too_large=way.too_large, lasting=way.lasting)
    return strategy


def _distributed(asked: Asked, snapshot: Snapshot, ways: Ways, mode: Mode, policy: str) -> tuple[Strategy, str]:
    """With mode always, or for a model that fits no single worker."""
    why = "mode always" if mode is Mode.ALWAYS else "the model fits no single worker"
    if snapshot.pipeline is None and snapshot.groups.routes:
        strategy = _possible(Strategy.TENSOR_PARALLEL, ways, f"{why} needs a group")
        return strategy, f"{why}: the workers of a group together, since no pipeline is there"
    if policy == "measured":
        all_stages = {each: ways[each] for each in (Strategy.DISTRIBUTED_NO_CACHE, Strategy.DISTRIBUTED_CACHED)}
        if predicted := _predicted(all_stages if mode is Mode.ALWAYS else ways):
            strategy, reason = _best(snapshot, predicted)
            return strategy, f"{why}: {reason}"
    no_cache = Strategy.DISTRIBUTED_NO_CACHE
    within = _beyond(asked, snapshot.thresholds) is None
    is_wanted = (snapshot.holders or within) and not (asked.scores_prompt and ways[no_cache].why_not)
    strategy = no_cache if is_wanted else Strategy.DISTRIBUTED_CACHED
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


def _by_measured(asked: Asked, snapshot: Snapshot, ways: Ways) -> tuple[Strategy, str]:
    """What is predicted to be best; until costs are known, as by thresholds."""
    predicted = _predicted(ways)
    if not predicted:
        strategy, reason = _by_thresholds(asked, snapshot, ways)
        return strategy, f"{reason} (nothing was measured yet)"
    return _best(snapshot, predicted)


def _predicted(ways: Ways) -> dict[Strategy, Forecast]:
    return {each: way.forecast for each, way in ways.items() if way.why_not is None and way.forecast is not None}


def _best(snapshot: Snapshot, predicted: Mapping[Strategy, Forecast]) -> tuple[Strategy, str]:
    assert snapshot.conditions is not None
    objective = snapshot.conditions.objective
    ranked = sorted(predicted, key=lambda strategy: predicted[strategy].of(objective))
    least = predicted[ranked[0]].of(objective)
    if objective is Objective.THROUGHPUT:
        return _best_for_all(snapshot.conditions, predicted, ranked)
    best = _preferred(ranked, lambda strategy: predicted[strategy].of(objective))
    others = [each for each in ranked if each is not best]
    if snapshot.conditions.num_decided % _EXPLORE_EVERY == _EXPLORE_EVERY - 1:
        most = _EXPLORE_WITHIN * least
        near = [each for each in ranked if predicted[each].of(objective) <= most]
        least_known = min(near, key=lambda strategy: predicted[strategy].num_seen)
        if least_known is not best:
            return least_known, f"{least_known} is tried again: {_seconds(predicted[least_known])}"
    beside = f", {others[0]} {_seconds(predicted[others[0]])}" if others else ""
    aim = ", for the first token" if objective is Objective.TTFT else ""
    return best, f"{best} is predicted to take {_seconds(predicted[best])}{beside}{aim}"


def _best_for_all(
    conditions: Conditions, predicted: Mapping[Strategy, Forecast], ranked: Sequence[Strategy]
) -> tuple[Strategy, str]:
    """With which all streams end soonest, if each takes it; that which they take already, unless another one is clearly better.

    Streams that run stay where they are, and two layouts at once hold each other up.
    """

    def whole_s(strategy: Strategy) -> float:
        return predicted[strategy].of(Objective.THROUGHPUT)

    least = whole_s(ranked[0])
    best = _preferred(ranked, whole_s)
    in_use = layout_of(conditions.occupation.most_used)
    if usual := [each for each in ranked if _LAYOUTS[each] is in_use and whole_s(each) <= _WORTH_A_CHANGE * least]:
        best = _preferred(usual, whole_s)
    others = [each for each in ranked if each is not best]
    beside = f", {others[0]} in {whole_s(others[0]):.3g} s" if others else ""
    streams = "1 stream" if conditions.streams == 1 else f"{conditions.streams} streams"
    return best, f"{best} is predicted to answer {streams} like this in {whole_s(best):.3g} s{beside}, for throughput"


def _preferred(ranked: Sequence[Strategy], seconds: Callable[[Strategy], float]) -> Strategy:
    """Of those that are about as good as the first one."""
    most = _AS_GOOD * seconds(ranked[0])
    return min((each for each in ranked if seconds(each) <= most), key=_PREFERRED.index)


def _seconds(found: Forecast) -> str:
    return f"{found.total_s:.3g} s ({found.ttft_s:.3g} s to the first token{with_guesses(found)})"


def with_guesses(found: Forecast) -> str:
    """What guesses have to do with it, in words, behind others."""
    return "" if found.tokens is None else f"; with guesses, {found.tokens:.3g} tokens a step"


def _beyond(asked: Asked, thresholds: Thresholds) -> str | None:
    """Which threshold the request exceeds, in words; None when it is within both."""
    if asked.prompt_tokens > thresholds.prompt_tokens:
        return f"{asked.prompt_tokens} prompt tokens are more than {thresholds.prompt_tokens}"
    if asked.max_tokens > thresholds.generation_tokens:
        return f"{asked.max_tokens} tokens to generate are more than {thresholds.generation_tokens}"
    return None


POLICIES: dict[str, Policy] = {"thresholds": _by_thresholds, "measured": _by_measured}
