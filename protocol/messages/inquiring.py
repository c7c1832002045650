"""What the coordinator asks workers beside all requests, and what they answer: each question has a number, and an answer its
question's.
"""

import msgspec

from protocol.messages.message import Message
from protocol.values import LayerRange


class HeldModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a host's disk. name: for people, empty where it is known by its digest alone; held_bytes: of its files, those
    that are there; num_bytes: of all of them, None where that is not known; source: how it came there.
    """

    digest: str
    name: str
    held_bytes: int
    num_bytes: int | None
    source: str

    @property
    def is_complete(self) -> bool:
        return self.held_bytes == self.num_bytes


class ListModels(Message, frozen=True, kw_only=True):
    """Which models are on the disk of the worker's host?"""

    number: int


class ModelsListed(Message, frozen=True, kw_only=True):
    """These."""

    worker: str
    number: int
    models: tuple[HeldModel, ...]


class StageFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What some layers make of a fixed input, see `workers.model.figures`: sums, a row for each position. is_exact: computed in
    32 bits throughout.
    """

    layers: LayerRange
    rows: tuple[tuple[float, ...], ...]
    is_exact: bool


class ComputeFigures(Message, frozen=True, kw_only=True):
    """What do the worker's layers of the plan in force make of the fixed input?"""

    number: int


class FiguresComputed(Message, frozen=True, kw_only=True):
    """This, for each range of layers that a route has here."""

    worker: str
    number: int
    stages: tuple[StageFigures, ...]
