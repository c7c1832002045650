"""The vectors that mlx-lm's own model gives, to compare embeddings with."""

from functools import cache

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def vector_alone(model_path, prompt, pooling="last"):
    """Of unit length: what mlx-lm's model without its projection to logits makes of a prompt at once, pooled."""
    states = _states(model_path, tuple(prompt))
    vector = {"last": states[-1], "mean": states.mean(axis=0), "cls": states[0]}[pooling]
    return unit(vector)


def unit(vector):
    """Of length 1, as answers have them."""
    return vector / np.linalg.norm(vector)


def assert_near(vector, wanted):
    np.testing.assert_allclose(unit(vector), wanted, rtol=0, atol=1e-5)


@cache
def _model(model_path):
    return load_model(model_path)[0]


@cache
def _states(model_path, prompt):
    model = _model(model_path)
    body = next(getattr(model, name) for name in ("model", "backbone") if hasattr(model, name))
    states = body(mx.array([prompt]), cache=make_prompt_cache(model))
    return np.array(states[0].astype(mx.float32))
