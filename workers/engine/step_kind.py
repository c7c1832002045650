"""What kind of work a step is: told apart here and nowhere else."""

import enum

from protocol.messages import Step


class StepKind(enum.Enum):
    """prefill: a chunk of a prompt; decode: a token for each row of a slot; recompute: a whole sequence, uncached."""

    PREFILL = "prefill"
    DECODE = "decode"
    RECOMPUTE = "recompute"


def kind_of(step: Step) -> StepKind:
    """The kind of a step."""
    if step.slot is not None:
        return StepKind.DECODE
    return StepKind.PREFILL if step.cached else StepKind.RECOMPUTE
