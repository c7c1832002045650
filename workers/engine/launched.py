"""A step between its beginning and its end."""

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from protocol.messages import Step
from workers.engine.logprobs import StepLogprobs
from workers.engine.sampled import SampledRows


@dataclass(frozen=True)
class Launched:
    """A step whose computation has begun.

    output: payload; None where nothing follows. awaited: what is there when it is done; sampled: on the last stage, where that
    is asked for; is_first: the first of a sequence. vector: of the sequence that ends with this step. is_stale: it goes on behind guesses
    that were wrong, and is not computed here.
    """

    step: Step
    output: Any = None
    awaited: Any = None
    sampled: SampledRows | None = None
    logprobs: StepLogprobs = field(default_factory=StepLogprobs)
    vector: mx.array | None = None
    is_first: bool = False
    is_stale: bool = False
