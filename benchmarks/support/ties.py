"""Whether an answer is another one only because rounding decided: a token was as likely as the one in its place.

Float32 rounds a step's sums otherwise when other rows are in it. Where two tokens are closer to each other than that, or
what is drawn lies that close to where one token's share ends, the same request may get either. So the bundled model is
asked again, here, for the place where two answers part: does noise of the size of rounding on its logits change which
token the very same sampling gives?
"""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model

from benchmarks.support import machine
from cluster.config import BUNDLED_MODEL
from protocol.values import Sampling
from workers.engine.sampling import TokenSampler

# Of logits of about ten, what sums of some hundred products in float32 differ by when they are added up otherwise.
ROUNDING = 1e-5
_TRIALS = 64
_BIAS = -100.0


@functools.cache
def _model() -> Any:
    return load_model(machine.CHECKOUT / BUNDLED_MODEL)[0]


def rounding_decides(
    prompt: Sequence[int],
    right: Sequence[int],
    other: Sequence[int],
    *,
    temperature: float = 0.0,
    seed: int | None = None,
    end_tokens: Sequence[int] = (),
) -> bool:
    """Whether two answers to a prompt part at a token for which rounding decides. end_tokens: those that are made impossible."""
    at = next((index for index, (one, two) in enumerate(zip(right, other, strict=False)) if one != two), None)
    if at is None:
        return False
    ids = [*prompt, *right[:at]]
    logits = _model()(mx.array([ids]))[:, -1, :]
    sampling = Sampling(temperature=temperature, seed=seed, logit_bias=dict.fromkeys(end_tokens, _BIAS) or None)
    mx.random.seed(0)
    noises = [mx.random.normal(logits.shape, scale=ROUNDING) for _ in range(_TRIALS)]
    mx.eval(logits, noises)
    sampler = TokenSampler(sampling, seed or 0, tuple(ids))
    found = {int(sampler.sample(logits + noise, len(ids)).item()) for noise in noises}
    return right[at] in found and len(found) > 1
