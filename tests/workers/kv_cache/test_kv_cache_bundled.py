"""The documented answers of the bundled model do not change with the kind of cache."""

import tomllib
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from workers.kv_cache import KvSettings
from workers.model.split_model import SplitModel

MODELS = Path(__file__).resolve().parents[3] / "models"
DIRECTORY = MODELS / "tandem-demo"
# By kind: the largest difference allowed of any logit (the largest logits are near 30), and how many questions are asked.
KINDS = {
    "static": (KvSettings(kind="static", max_tokens=512), 0.0, 8),
    "paged": (KvSettings(kind="paged"), 0.0, 8),
    "keys-only": (KvSettings(kind="keys-only"), 1e-4, 20),
    "8 bits": (KvSettings(kind="quantized"), 0.5, None),
    "4 bits": (KvSettings(kind="quantized", bits=4), 5.0, 20),
}


@pytest.fixture(scope="module")
def split():
    return SplitModel.load(DIRECTORY)


@pytest.fixture(scope="module")
def conversations():
    """For each documented question the prompt's tokens and the answer's."""
    tokenizer = load_tokenizer(DIRECTORY)
    questions = tomllib.loads((MODELS / "questions.toml").read_text("utf-8"))["question"]
    return [
        (
            tokenizer.apply_chat_template([{"role": "user", "content": item["ask"][0]}], add_generation_prompt=True),
            [*tokenizer.encode(item["answer"], add_special_tokens=False), tokenizer.eos_token_id],
        )
        for item in questions
    ]


def logits_along(split, prompt, answer, stages, kv):
    """After the prompt and after each token of the answer but the last: where every most likely token is the answer's
    next one, greedy generation gives the answer.
    """
    caches = [split.make_cache(layers, kv) for layers in stages]
    found = []
    for ids in (prompt, answer[:-1]):
        carried = None
        for layers, cache in zip(stages, caches, strict=True):
            carried = split.forward(mx.array([ids]), layers=layers, cache=cache, payload=carried)
            split.evaluate(carried, cache)
        found.append(carried)
    return mx.concatenate([found[0][0, -1:], found[1][0]])


@pytest.fixture(scope="module")
def expected(split, conversations):
    whole = [(0, split.num_layers)]
    return [logits_along(split, prompt, answer, whole, None) for prompt, answer in conversations]


@pytest.mark.parametrize("kind", KINDS)
def test_documented_answers_stay_and_logits_stay_within_the_bound(split, conversations, expected, kind):
    kv, bound, count = KINDS[kind]
    layers = split.num_layers
    for number, (prompt, answer) in enumerate(conversations[:count]):
        stages = [(0, layers)] if number % 2 else [(0, 3), (3, layers)]
        found = logits_along(split, prompt, answer, stages, kv)
        assert mx.abs(found - expected[number]).max().item() <= bound
        assert mx.argmax(found, axis=-1).tolist() == answer
