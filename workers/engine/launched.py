"""A step between its beginning and its end."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from protocol.messages import Step
from workers.engine.logprobs import StepLogprobs
from workers.engine.sampled import SampledRows


@dataclass(frozen=True)
class Launched:
    """A step whose computation has begun.

    output: payload; None where nothing follows. awaited: what is there when it is done; sampled: on the last stage, where that
    is asked for. vector: of the sequence that ends with this step.
    """

    step: Step
    output: Any
    awaited: Any
    sampled: SampledRows | None
    logprobs: StepLogprobs
    vector: mx.array | None = None
