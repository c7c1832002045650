"""The documented policy, boundary by boundary."""

import pytest

from strategy.selector import Feasibility, Lengths, Mode, NoStrategy, Strategy, Thresholds, select

ANY = Feasibility({}, fits_one_worker=True)
TOO_BIG = Feasibility({Strategy.SINGLE_DEVICE_CACHED: "the full model needs 9 GB"}, fits_one_worker=False)


def choose(prompt: int, generate: int, feasibility: Feasibility = ANY, mode: Mode = Mode.AUTO, strategy=None):
    lengths = Lengths(prompt, generate)
    return select(lengths, feasibility, mode=mode, thresholds=Thresholds(), strategy=strategy)


@pytest.mark.parametrize(
    ("prompt", "generate", "expected"),
    [
        (1, 1, Strategy.DISTRIBUTED_NO_CACHE),
        (100, 50, Strategy.DISTRIBUTED_NO_CACHE),
        (101, 50, Strategy.SINGLE_DEVICE_CACHED),
        (100, 51, Strategy.SINGLE_DEVICE_CACHED),
        (101, 51, Strategy.SINGLE_DEVICE_CACHED),
    ],
)
def test_both_thresholds_are_inclusive(prompt, generate, expected):
    assert choose(prompt, generate).strategy is expected


def test_reason_names_the_threshold_that_was_exceeded():
    assert choose(182, 10).reason == "182 prompt tokens are more than 100: one device with a KV cache"
    assert choose(10, 51).reason == "51 tokens to generate are more than 50: one device with a KV cache"


def test_thresholds_are_settings():
    choice = select(Lengths(11, 5), ANY, mode=Mode.AUTO, thresholds=Thresholds(10, 50))
    assert choice.strategy is Strategy.SINGLE_DEVICE_CACHED


@pytest.mark.parametrize("lengths", [(1, 1), (5000, 5000)])
def test_always_is_distributed_and_never_is_single_device(lengths):
    assert choose(*lengths, mode=Mode.ALWAYS).strategy is Strategy.DISTRIBUTED_NO_CACHE
    assert choose(*lengths, mode=Mode.NEVER).strategy is Strategy.SINGLE_DEVICE_CACHED


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.ALWAYS])
def test_model_that_fits_no_worker_is_distributed_whatever_the_lengths(mode):
    assert choose(5, 5, TOO_BIG, mode).strategy is Strategy.DISTRIBUTED_NO_CACHE
    assert choose(500, 500, TOO_BIG, mode).strategy is Strategy.DISTRIBUTED_CACHED


def test_never_with_a_model_that_fits_nowhere_is_the_callers_error_with_the_figures():
    with pytest.raises(NoStrategy, match="9 GB") as caught:
        choose(5, 5, TOO_BIG, Mode.NEVER)
    assert caught.value.by_choice


def test_explicit_strategy_wins_over_mode_and_lengths():
    choice = choose(5000, 5000, mode=Mode.NEVER, strategy=Strategy.DISTRIBUTED_CACHED)
    assert choice.strategy is Strategy.DISTRIBUTED_CACHED


def test_explicit_strategy_that_cannot_run_is_refused_not_replaced():
    with pytest.raises(NoStrategy, match="single-device-cached cannot run: the full model needs 9 GB"):
        choose(5, 5, TOO_BIG, strategy=Strategy.SINGLE_DEVICE_CACHED)


def test_auto_falls_back_and_says_so_when_the_wanted_strategy_is_lost():
    gone = {Strategy.DISTRIBUTED_NO_CACHE: "worker-1 is lost", Strategy.DISTRIBUTED_CACHED: "worker-1 is lost"}
    choice = choose(5, 5, Feasibility(gone, fits_one_worker=True))
    assert choice.strategy is Strategy.SINGLE_DEVICE_CACHED
    assert "worker-1 is lost" in choice.reason


def test_always_never_falls_back_to_a_single_device():
    gone = {Strategy.DISTRIBUTED_NO_CACHE: "worker-1 is lost", Strategy.DISTRIBUTED_CACHED: "worker-1 is lost"}
    with pytest.raises(NoStrategy) as caught:
        choose(5, 5, Feasibility(gone, fits_one_worker=True), Mode.ALWAYS)
    assert not caught.value.by_choice
