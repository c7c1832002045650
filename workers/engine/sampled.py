"""What a step on the last stage samples, until it is known, and what is said of it then."""

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from protocol.values import TokenLogprobs
from workers.engine.sampling import TokenSampler


@dataclass
class SampledRows:
    """The tokens of a step that are being sampled, in row order, and by whom."""

    tokens: mx.array
    samplers: tuple[TokenSampler, ...]
    _ids: list[int] | None = None

    def ids(self) -> list[int]:
        """Waits for them; whoever sampled one knows it then."""
        if self._ids is None:
            self._ids = np.array(self.tokens).tolist()
            for sampler, token in zip(self.samplers, self._ids, strict=True):
                sampler.accept(token)
        return self._ids

    @property
    def failed(self) -> tuple[tuple[int, str], ...]:
        """Places of those whose sequences cannot go on, and why."""
        constraints = [sampler.constraint for sampler in self.samplers]
        return tuple((place, why.failure) for place, why in enumerate(constraints) if why is not None and why.failure)


class Told(NamedTuple):
    """What the last stage says of a step, as of `Sampled`."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    scored: tuple[tuple[TokenLogprobs, ...], ...] = ()
    failed: tuple[tuple[int, str], ...] = ()
