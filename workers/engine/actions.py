"""What is to be done: values that the head of a route and the handlers of messages return and the engine performs, in order."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from protocol.messages import (
    CloseSequence,
    DropPrefix,
    HandOver,
    KeepPrefix,
    Message,
    OpenSequence,
    Sampled,
    Step,
    StepFailed,
)
from protocol.values import Buffer
from strategy.prefix import Key

Passed = OpenSequence | CloseSequence | KeepPrefix | DropPrefix | HandOver


class Report(msgspec.Struct, frozen=True):
    """Tell the coordinator."""

    message: Message
    buffers: Sequence[Buffer] = ()


class Tell(msgspec.Struct, frozen=True):
    """Tell another worker; where it is this one, hear it."""

    worker: str
    message: Message
    buffers: Sequence[Buffer] = ()


class Forward(msgspec.Struct, frozen=True, eq=False):
    """Take a message, with the keys of the prefixes that it speaks of, to this worker's stage and down the route.

    handed: what a sequence begins with behind those, by span what each stage of a pipeline has of it; on a route of one
    stage alone.
    """

    message: Passed
    keys: tuple[Key, ...] = ()
    handed: Sequence[Any] = ()


class Launch(msgspec.Struct, frozen=True, eq=False):
    """Run a step. tokens: ids (rows, N) int32; None stands for those that the same rows' step before is sampling.

    received: what the stage before gave; None on the first.
    """

    step: Step
    tokens: np.ndarray | None
    received: Any = None


class AnswerHead(msgspec.Struct, frozen=True):
    """Tell the head of the step's route what became of it."""

    message: Sampled | StepFailed


Action = Report | Tell | Forward | Launch | AnswerHead


def split_reports(actions: Iterable[Action]) -> tuple[list[Action], list[Action]]:
    """What is only told the coordinator, and what else is to be done, each in order."""
    parts: tuple[list[Action], list[Action]] = [], []
    for action in actions:
        parts[not isinstance(action, Report)].append(action)
    return parts
