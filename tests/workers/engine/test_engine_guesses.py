"""Whoever guesses next tokens, and however well: the ids are those that come without guesses."""

import random

import pytest

from protocol.messages import Guessing
from protocol.values import KvSettings, Sampling
from strategy.drafting import DraftLength
from strategy.scheduling import Schedule
from tests.support.drafts import drafts_of, nearly
from tests.support.in_process_cluster import InProcessCluster, heartbeat_of

CACHED = ("single-device-cached", "distributed-cached")
STRATEGIES = ("distributed-no-cache", *CACHED)
SAMPLINGS = {
    "greedy": Sampling(),
    "free": Sampling(temperature=1.0, seed=3),
    "top-p": Sampling(temperature=0.8, top_p=0.9, seed=4, logprobs=2),
    "top-k": Sampling(temperature=1.3, top_k=8, seed=5),
    "penalties": Sampling(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.4, seed=6, logprobs=0),
    "biases": Sampling(logit_bias={40: 2.0, 41: -3.0}, presence_penalty=0.5),
    "least": Sampling(min_tokens=6),
}
NUM_TOKENS = 24
NUM_LAYERS = 3  # one for each of three stages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("guesses")


@pytest.fixture(scope="module")
def pair(folder):
    return drafts_of("llama", folder / "llama", num_hidden_layers=NUM_LAYERS)


class Plain(InProcessCluster):
    """Answers without guesses, each worked out once."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._asked = {}

    def answered(self, prompt, count=NUM_TOKENS, **asked):
        about = repr((prompt, count, asked))
        if about not in self._asked:
            self._asked[about] = answered(self, prompt, count, **asked)
        return self._asked[about]


@pytest.fixture(scope="module")
def plain(pair, folder):
    return Plain(pair[0], num_stages=2, cache_dir=folder / "plain", chunk_tokens=16)


@pytest.fixture(scope="module", params=["right", "half", "wrong"])
def guessed(request, pair, folder):
    model, drafts = pair
    place = folder / request.param
    return InProcessCluster(model, num_stages=2, cache_dir=place, chunk_tokens=16, draft=drafts[request.param])


def prompt_of(seed, length=19):
    rng = random.Random(seed)
    return [rng.randrange(20, 200) for _ in range(length)]


def answered(cluster, prompt, count=NUM_TOKENS, **asked):
    number = cluster.generate(list(prompt), count, **asked)
    cluster.run()
    assert number not in cluster.failures, cluster.failures[number]
    return number


def assert_as_plain(plain, guessed, prompt, count=NUM_TOKENS, **asked):
    """Returns the number of the answer with guesses."""
    expected, number = plain.answered(prompt, count, **asked), answered(guessed, prompt, count, **asked)
    assert guessed.tokens[number] == plain.tokens[expected]
    assert guessed.finish_reasons[number] == plain.finish_reasons[expected]
    told, wanted = guessed.logprobs[number], plain.logprobs[expected]
    assert [each.logprob for each in told] == pytest.approx([each.logprob for each in wanted], abs=1e-4)
    assert [[token for token, _ in each.top] for each in told] == [[token for token, _ in each.top] for each in wanted]
    return number


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ids_are_those_of_plain_decoding(plain, guessed, strategy, sampling):
    assert_as_plain(plain, guessed, prompt_of(11), strategy=strategy, sampling=sampling)
    guessed.assert_nothing_is_left()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answer_ends_with_its_end_token_wherever_in_a_step_that_stands(plain, guessed, strategy):
    found = plain.tokens[plain.answered(prompt_of(2), strategy=strategy)]
    for place in (1, 2, 5, 11):
        end = found[place]
        number = assert_as_plain(plain, guessed, prompt_of(2), strategy=strategy, end_tokens=(end,))
        assert guessed.tokens[number] == found[: found.index(end) + 1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_is_guessed_beyond_the_end(plain, guessed, count):
    for strategy in STRATEGIES:
        number = assert_as_plain(plain, guessed, prompt_of(3), count, strategy=strategy)
        assert guessed.proposed[number] < count


def side_by_side(cluster, strategy):
    """What three say that begin alone, come together in a batch, and are alone again."""
    lengths = {1: 60, 2: 12, 3: 30}
    numbers = [cluster.generate(prompt_of(11), lengths[1], strategy=strategy)]
    for _ in range(25):
        cluster.turn()
    numbers += [cluster.generate(prompt_of(n, 9 * n), lengths[n], strategy=strategy) for n in (2, 3)]
    cluster.run()
    return [cluster.tokens[number] for number in numbers]


@pytest.fixture(scope="module")
def plain_side_by_side(plain):
    return {strategy: side_by_side(plain, strategy) for strategy in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_side_by_side_do_not_notice(plain_side_by_side, guessed, strategy):
    assert side_by_side(guessed, strategy) == plain_side_by_side[strategy]
    guessed.assert_nothing_is_left()


@pytest.mark.parametrize("strategy", CACHED)
def test_what_a_guessed_answer_leaves_is_what_it_said(plain, guessed, strategy):
    """The next question of a conversation begins with the caches of the last answer."""
    prompt = prompt_of(4, 70)
    number = answered(guessed, prompt, strategy=strategy, conversation="c")
    following = [*prompt, *guessed.tokens[number], *prompt_of(5, 5)]
    again = answered(guessed, following, strategy=strategy, conversation="c")
    assert guessed.reused[again] >= len(prompt)
    expected = plain.answered(following, strategy=strategy, scope="another")
    assert guessed.tokens[again] == plain.tokens[expected]


def test_request_that_leaves_with_guesses_on_their_way_leaves_nothing(guessed):
    for strategy in STRATEGIES:
        for turns in range(6, 14, 2):
            number = guessed.generate(prompt_of(turns), 50, strategy=strategy)
            for _ in range(turns):
                guessed.turn()
            guessed.cancel(number)
            guessed.run()
    guessed.assert_nothing_is_left()


def test_caches_of_the_draft_are_among_what_a_worker_says_of_its_own(pair, folder):
    kv_bytes = []
    for draft in (None, pair[0]):
        cluster = InProcessCluster(pair[0], num_stages=1, cache_dir=folder / "bytes", draft=draft)
        cluster.generate(prompt_of(6), 40, strategy="single-device-cached")
        while len(cluster.tokens[1]) < 20:
            cluster.turn()
        (engine,) = cluster.engines.values()
        kv_bytes.append(heartbeat_of(engine).kv_bytes)
        cluster.run()
        cluster.assert_nothing_is_left()
    assert kv_bytes[1] == 2 * kv_bytes[0] > 0


def test_plan_that_ends_with_guesses_on_their_way_is_followed_by_the_same_answer(plain, guessed):
    for strategy in STRATEGIES:
        expected = plain.tokens[plain.answered(prompt_of(6), 40, strategy=strategy)]
        number = guessed.generate(prompt_of(6), 40, strategy=strategy)
        while len(guessed.tokens[number]) < 5:
            guessed.turn()
        guessed.replan()
        so_far = list(guessed.tokens[number])
        again = answered(guessed, [*prompt_of(6), *so_far], 40 - len(so_far), strategy=strategy)
        assert so_far + guessed.tokens[again] == expected


def test_right_guesses_make_several_tokens_a_step_and_wrong_ones_none(pair, folder):
    model, drafts = pair
    steps = {}
    for name in ("right", "wrong"):
        cluster = InProcessCluster(model, num_stages=2, cache_dir=folder / f"{name} again", draft=drafts[name])
        for strategy in STRATEGIES:
            number = answered(cluster, prompt_of(7), 40, strategy=strategy)
            steps[name, strategy] = cluster.num_reports[number], cluster.proposed[number], cluster.accepted[number]
    for strategy in STRATEGIES:
        reports, proposed, accepted = steps["right", strategy]
        assert reports <= 20
        assert accepted == proposed >= 40 - reports
        reports, proposed, accepted = steps["wrong", strategy]
        assert reports == 40 - accepted
        assert accepted < min(proposed, 5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prediction_is_looked_up(plain, pair, folder, strategy):
    cluster = InProcessCluster(pair[0], num_stages=2, cache_dir=folder / strategy, guessing=Guessing())
    expected = plain.answered(prompt_of(8), 40, strategy=strategy)
    said = plain.tokens[expected]
    number = answered(cluster, prompt_of(8), 40, strategy=strategy, prediction=[*said[:20], 7, 7, *said[20:]])
    assert cluster.tokens[number] == said
    assert cluster.accepted[number] >= 15
    cluster.assert_nothing_is_left()
    without = answered(cluster, prompt_of(8), 40, strategy=strategy)
    assert cluster.proposed[without] == 0


def test_draft_is_asked_where_a_prediction_says_nothing(plain, pair, folder):
    cluster = InProcessCluster(pair[0], num_stages=2, cache_dir=folder / "both", draft=pair[0])
    said = plain.tokens[plain.answered(prompt_of(8), 40, strategy="distributed-cached")]
    number = answered(cluster, prompt_of(8), 40, strategy="distributed-cached", prediction=[7, *said[:9], 7, 7, 7])
    assert cluster.tokens[number] == said
    assert cluster.accepted[number] >= 15


KINDS = {
    "static": KvSettings(kind="static", max_tokens=256),
    "rotating": KvSettings(kind="rotating", max_tokens=24, keep=0),
    "quantized": KvSettings(kind="quantized", group_size=32),
    "keys-only": KvSettings(kind="keys-only"),
    "paged": KvSettings(kind="paged"),
}


@pytest.fixture(scope="module")
def wide(folder):
    # Which can be quantized.
    return drafts_of("llama", folder / "wide", num_hidden_layers=2, num_attention_heads=2, head_dim=32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cache_goes_back(wide, folder, kind):
    model, drafts = wide
    options = {"num_stages": 2, "cache_dir": folder / kind, "kv": KINDS[kind]}
    plain, guessed = Plain(model, **options), InProcessCluster(model, **options, draft=drafts["half"])
    for strategy in CACHED:
        number = assert_as_plain(plain, guessed, prompt_of(10), 40, strategy=strategy)
        assert guessed.proposed[number] > guessed.accepted[number]


def test_nothing_is_guessed_where_longer_passes_see_less(wide, folder):
    kv = KvSettings(kind="rotating", max_tokens=24, keep=2)
    cluster = InProcessCluster(wide[0], num_stages=2, cache_dir=folder / "kept", kv=kv, draft=wide[0])
    proposed = [cluster.proposed[answered(cluster, prompt_of(10), 40, strategy=strategy)] for strategy in STRATEGIES]
    assert [count > 0 for count in proposed] == [True, False, False]


@pytest.fixture(scope="module")
def three_stages(pair, folder):
    """With a draft that is often right; nothing counts that is guessed behind a wrong guess."""
    draft = nearly(pair[0], folder / "near", noise=0.04)
    return InProcessCluster(pair[0], num_stages=3, cache_dir=folder / "three", chunk_tokens=16, draft=draft)


@pytest.fixture
def stale(monkeypatch):
    """Steps that turned out to be stale, of answers for which guesses go on however often they are wrong."""
    monkeypatch.setattr(DraftLength, "best", lambda _self, _known, due, most, *_: max(min(4 - due, most), 0))
    monkeypatch.setattr(DraftLength, "further", lambda _self, _known, most: min(4, most))
    found, is_stale = [], Schedule.is_stale
    monkeypatch.setattr(Schedule, "is_stale", lambda self, step: is_stale(self, step) and not found.append(step))
    return found


@pytest.mark.parametrize("name", ["greedy", "top-p", "penalties", "least"])
def test_ids_are_those_of_plain_decoding_while_guesses_go_on_behind_guesses(plain, three_stages, stale, name):
    number = assert_as_plain(plain, three_stages, prompt_of(11), sampling=SAMPLINGS[name])
    assert stale
    assert three_stages.accepted[number] > 0
    three_stages.assert_nothing_is_left()


def test_request_may_leave_or_lose_its_plan_while_guesses_go_on(plain, three_stages, stale):
    asked = {"sampling": SAMPLINGS["top-p"]}
    expected = plain.tokens[plain.answered(prompt_of(11), **asked)]
    for turns in range(10, 14):
        number = three_stages.generate(prompt_of(11), NUM_TOKENS, **asked)
        for _ in range(turns):
            three_stages.turn()
        if turns % 2:
            three_stages.cancel(number)
            three_stages.run()
        else:
            three_stages.replan()
        so_far = three_stages.tokens[number]
        assert so_far == expected[: len(so_far)]
        again = answered(three_stages, [*prompt_of(11), *so_far], NUM_TOKENS - len(so_far), **asked)
        assert so_far + three_stages.tokens[again] == expected
    assert stale
    three_stages.assert_nothing_is_left()


ARCHITECTURES = {
    "gemma3": {"num_hidden_layers": 3},  # sliding windows beside full attention
    "mamba2": {"num_hidden_layers": 2},  # state spaces
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_caches_that_cannot_forget_a_token_go_back_too(folder, architecture):
    model, drafts = drafts_of(architecture, folder / architecture, **ARCHITECTURES[architecture])
    plain = Plain(model, num_stages=2, cache_dir=folder / "caches")
    guessed = InProcessCluster(model, num_stages=2, cache_dir=folder / "caches", draft=drafts["half"])
    total = 0
    for strategy in STRATEGIES:
        for sampling in (Sampling(), Sampling(temperature=0.9, seed=2)):
            number = assert_as_plain(plain, guessed, prompt_of(9, 33), 40, strategy=strategy, sampling=sampling)
            total += guessed.proposed[number] - guessed.accepted[number]
    assert total > 0
    guessed.assert_nothing_is_left()
