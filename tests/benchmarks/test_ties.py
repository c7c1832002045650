"""Two answers that part where rounding decides are told from one that is wrong."""

import pytest

from benchmarks.support import ties

PROMPT = tuple(range(20, 60))


@pytest.fixture(scope="module")
def greedy():
    """The model's own answer, and the token that comes second at its first place."""
    import mlx.core as mx

    logits = ties._model()(mx.array([PROMPT]))[0, -1, :]
    second, first = mx.argsort(logits)[-2:].tolist()
    return first, second, float(logits[first] - logits[second])


def test_token_that_is_less_likely_is_no_tie(greedy):
    first, second, _ = greedy
    assert not ties.rounding_decides(PROMPT, (first,), (second,))
    assert not ties.rounding_decides(PROMPT, (first,), (first,))
    assert not ties.rounding_decides(PROMPT, (first,), ())


def test_token_that_is_as_likely_as_rounding_is_large_is_one(greedy, monkeypatch):
    first, second, gap = greedy
    monkeypatch.setattr(ties, "ROUNDING", gap)
    assert ties.rounding_decides(PROMPT, (first,), (second,))
