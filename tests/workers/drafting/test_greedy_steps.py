"""Steps that were compiled say what the model says one by one."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from workers.drafting.greedy_steps import greedy_steps, share_of_likeliest
from workers.zoo import make_tiny_model

VOCABULARY_SIZE = 200
COUNTS = (4, 1, 3)


def tiny(architecture, folder):
    return load_model(make_tiny_model(architecture, folder / architecture))[0]


def steps_of(model, counts=COUNTS):
    return greedy_steps(model, VOCABULARY_SIZE, lambda: make_prompt_cache(model), counts)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny("llama", tmp_path_factory.mktemp("steps"))


def one_by_one(model, tokens, count):
    """Ids and how likely each is, of a text that is read anew."""
    cache, last, found = make_prompt_cache(model), tokens, []
    for _ in range(count):
        logits = model(mx.array([last]), cache=cache)[:, -1, :VOCABULARY_SIZE]
        found.append((mx.argmax(logits).item(), share_of_likeliest(logits).item()))
        last = [found[-1][0]]
    return found


@pytest.mark.parametrize("num_read", [5, 254, 600])
def test_steps_say_what_the_model_says_one_by_one_also_where_the_caches_grow(model, num_read):
    steps, cache = steps_of(model), make_prompt_cache(model)
    text = [20 + index % 50 for index in range(num_read)]
    mx.eval(model(mx.array([text]), cache=cache))
    unread, found = [61, 62], []
    for count in COUNTS:
        ids, shares = steps.take(unread, count, cache)
        found += zip(ids.tolist(), shares.tolist(), strict=True)
        unread = [found[-1][0]]
    expected = one_by_one(model, [*text, 61, 62], sum(COUNTS))
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [share for _, share in found] == pytest.approx([share for _, share in expected], rel=1e-4)
    assert {entry.offset for entry in cache} == {num_read + 2 + sum(COUNTS) - 1}


def test_caches_that_were_trimmed_are_gone_on_with(model):
    steps, cache = steps_of(model), make_prompt_cache(model)
    mx.eval(model(mx.array([[30, 31, 32]]), cache=cache))
    steps.take([33], 4, cache)
    for entry in cache:
        entry.trim(3)
    expected = [token for token, _ in one_by_one(model, [30, 31, 32, 33, 40], 3)]
    assert steps.take([40], 3, cache)[0].tolist() == expected


@pytest.mark.parametrize("architecture", ["gemma3", "mamba2"])
def test_caches_of_other_kinds_are_not_compiled(architecture, tmp_path):
    assert steps_of(tiny(architecture, tmp_path)) is None


class Failing:
    """Cannot be part of a graph, as often as it is told."""

    def __init__(self, model, error, times):
        self._model, self._error, self._times = model, error, times

    def __call__(self, tokens, cache=None):
        if isinstance(cache[0].offset, mx.array) and self._times:
            self._times -= 1
            raise self._error
        return self._model(tokens, cache=cache)


@pytest.mark.parametrize(
    ("error", "times", "works"),
    [(RuntimeError("half of it"), 2, True), (RuntimeError("no compiler"), 99, False), (TypeError("offset"), 1, False)],
)
def test_what_cannot_be_compiled_is_done_without_and_what_could_not_be_for_a_moment_is_tried_again(
    model, error, times, works
):
    failing = Failing(model, error, times)
    found = greedy_steps(failing, VOCABULARY_SIZE, lambda: make_prompt_cache(model), COUNTS)
    assert (found is not None) is works
