"""What the projection to logits is given: mlx-lm's own hidden states, from any stage that has the last layer."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from protocol.errors import ModelError
from protocol.values import LayerRange
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

IDS = [[7, 3, 250, 19, 66, 5]]
# How the projection is made: a linear layer, the embedding, either of them quantized, a weight that the model multiplies by, and
# what else is done to logits and before the projection. Some hand on more than hidden states.
CASES = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama 4bit": {"bits": 4},
    "qwen2 4bit tied": {"bits": 4, "tie_word_embeddings": True},
    "seed_oss tied": {"tie_word_embeddings": True},
    "cohere2": {},
    "gemma2": {},
    "gemma4_text": {},
    "hunyuan": {},
    "rwkv7": {},
    "nemotron_h": {},
    "gpt2": {},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    paths = {}

    def path(case):
        if case not in paths:
            directory = tmp_path_factory.mktemp("models") / case.replace(" ", "-")
            paths[case] = make_tiny_model(case.partition(" ")[0], directory, **CASES.get(case, {}))
        return paths[case]

    return path


def of_mlx_lm(path):
    model = load_model(path)[0]
    body = next(getattr(model, name) for name in ("model", "backbone") if hasattr(model, name))
    return body(mx.array(IDS), cache=make_prompt_cache(model))


def staged(split, cut, *, last_positions=None):
    """Of two stages, of which the last has the layers from `cut` on."""
    tokens, payload = mx.array(IDS, mx.int32), None
    if cut:
        first = LayerRange(0, cut)
        payload = split.forward(tokens, layers=first, cache=split.make_cache(first))
    last = LayerRange(cut, split.num_layers)
    return split.hidden_states(
        tokens, layers=last, cache=split.make_cache(last), payload=payload, last_positions=last_positions
    )


def near(found, wanted):
    return found.shape == wanted.shape and mx.allclose(found, wanted, rtol=0, atol=1e-5).item()


@pytest.mark.parametrize("case", CASES)
def test_stages_show_mlx_lm_s_own_hidden_states(made, case):
    wanted = of_mlx_lm(made(case))
    split = SplitModel.load(made(case))
    assert near(staged(split, 0), wanted)
    assert near(staged(split, 1), wanted)
    assert near(staged(split, 0, last_positions=1), wanted[:, -1:])
    assert near(staged(split, 1, last_positions=1), wanted[:, -1:])


def test_logits_are_what_they_are_without_anybody_looking(made):
    split, alone = SplitModel.load(made("llama tied")), load_model(made("llama tied"))[0]
    tokens, whole = mx.array(IDS, mx.int32), LayerRange(0, split.num_layers)
    before = split.forward(tokens, layers=whole, cache=None)
    split.hidden_states(tokens, layers=whole, cache=None)
    for logits in (before, split.forward(tokens, layers=whole, cache=None)):
        assert mx.array_equal(logits, alone(tokens)).item()


def test_model_that_shows_nothing_is_refused(made):
    with pytest.raises(ModelError, match="does not show its hidden states"):
        staged(SplitModel.load(made("talkie")), 0)
