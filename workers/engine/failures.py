"""Who is told what when something could not be done for a message: its failure, and no other's."""

from protocol.errors import TandemError
from protocol.messages import (
    Generate,
    HandedOver,
    HandOver,
    InspectModel,
    LinkLost,
    LoadFailed,
    LoadStage,
    Message,
    PrepareStage,
    ReadingFailed,
    ReadPrompt,
    SequenceFailed,
    Step,
    StepFailed,
)
from workers.engine.actions import Action, AnswerHead, Report, Tell
from workers.model.shelf import Overtaken
from workers.tensor.group import GroupBroken


def failure_of(message: Message, error: Exception, name: str) -> list[Action]:
    """What follows from an error on the worker of that name; nothing for a message that nobody waits for."""
    sentence = f"{name}: {error}"
    if isinstance(error, GroupBroken):
        return [Report(LinkLost(worker=name, peer="its tensor group", why=str(error)))]
    match message:
        case Generate(sequence=sequence):
            return [Report(SequenceFailed(sequence=sequence, message=sentence))]
        case Step(number=number, route=route) if route.workers:
            return [AnswerHead(StepFailed(number=number, route=route, message=sentence))]
        case (
            ReadPrompt(holder=holder, sequence=sequence)
            | HandOver(holder=holder, request=sequence)
            | HandedOver(worker=holder, sequence=sequence)
        ):
            waiting = name if isinstance(message, HandedOver) else holder
            return [Tell(waiting, ReadingFailed(sequence=sequence, message=sentence))]
        case InspectModel() | LoadStage() | PrepareStage() if not isinstance(error, Overtaken):
            said = str(error) if isinstance(error, TandemError) else f"{name} could not use the model: {error}"
            return [Report(LoadFailed(worker=name, message=said))]
    return []
