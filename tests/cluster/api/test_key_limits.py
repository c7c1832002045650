"""What a key may take, in time that is an argument."""

import pytest

from cluster.api.key_limits import KeyUse, TokenWindow
from cluster.serving.tally import Tally
from cluster.settings import KeySettings
from protocol.errors import RateLimited


class Answered:
    """An answer of so many tokens, as a tally looks at it."""

    def __init__(self, prompt_tokens=0, num_generated=0):
        self.prompt_tokens, self.num_generated = prompt_tokens, num_generated


def use_of(**limits) -> KeyUse:
    return KeyUse(KeySettings(name="ann", key="k", **limits))


def ran(use: KeyUse, begin: float, end: float, *, prompt_tokens: int, num_generated: int) -> None:
    tally = Tally()
    use.enter(tally, begin)
    tally.began(Answered(prompt_tokens, num_generated), "single-device-cached")
    use.leave(tally, end)


def refused(use: KeyUse, now: float) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        use.enter(Tally(), now)
    assert (caught.value.status, caught.value.error_type) == (429, "rate_limit_error")
    return caught.value


def test_one_more_than_may_run_is_refused_and_let_in_when_one_has_ended():
    use, tallies = use_of(max_running=2), [Tally() for _ in range(3)]
    use.enter(tallies[0], 0.0)
    use.enter(tallies[1], 0.0)
    error = refused(use, 0.0)
    assert str(error) == "2 requests of the key ann run, as many as may; try again in 1 s"
    use.leave(tallies[0], 1.0)
    use.enter(tallies[2], 1.0)
    refused(use, 1.0)


def test_place_is_promised_by_how_long_requests_take():
    use = use_of(max_running=1)
    for round_ in range(20):
        ran(use, 100.0 * round_, 100.0 * round_ + 30.0, prompt_tokens=0, num_generated=0)
    use.enter(Tally(), 3000.0)
    assert refused(use, 3000.0).retry_after_s == 30


def test_tokens_of_prompts_and_answers_count_until_they_are_a_minute_old():
    use = use_of(tokens_per_minute=100)
    ran(use, 10.0, 11.0, prompt_tokens=60, num_generated=39)
    ran(use, 20.0, 20.0, prompt_tokens=1, num_generated=0)  # one was left
    error = refused(use, 30.0)
    assert error.retry_after_s == 41  # when the 99 of the time from 10 to 11 begin to be older than a minute
    assert str(error) == "the key ann has used its 100 tokens of this minute; try again in 41 s"
    refused(use, 70.0)
    use.enter(Tally(), 71.0)


def test_who_comes_back_when_told_is_let_in():
    for begin, end in ((0.0, 0.0), (0.0, 59.5), (3.3, 4.1), (0.0, 200.0)):
        use = use_of(tokens_per_minute=10)
        ran(use, begin, end, prompt_tokens=1000, num_generated=500)
        use.enter(Tally(), end + refused(use, end).retry_after_s)


def test_answer_that_still_grows_counts_with_what_it_has():
    use, growing, answer = use_of(tokens_per_minute=100), Tally(), Answered(prompt_tokens=5)
    use.enter(growing, 0.0)
    growing.began(answer, "single-device-cached")
    answer.num_generated = 94
    ran(use, 1.0, 1.0, prompt_tokens=0, num_generated=0)
    answer.num_generated = 95
    refused(use, 2.0)


def test_of_an_answer_of_many_minutes_the_last_one_counts():
    use, growing, answer = use_of(tokens_per_minute=100), Tally(), Answered()
    use.enter(growing, 0.0)
    growing.began(answer, "single-device-cached")
    answer.num_generated = 900  # in ten minutes, 90 in the last
    ran(use, 600.0, 600.0, prompt_tokens=0, num_generated=0)
    answer.num_generated = 911
    refused(use, 600.5)


def test_window_stays_small_however_many_requests_there_are():
    window = TokenWindow()
    for number in range(10_000):
        window.add(1, number / 50, number / 50)
    assert len(window._took) <= 62
    assert 2950 <= window.within(199.98) <= 3050


def test_key_without_limits_takes_any_number():
    use = use_of()
    for _ in range(1000):
        use.enter(Tally(), 0.0)
