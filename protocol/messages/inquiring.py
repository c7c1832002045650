"""What the coordinator asks workers beside all plans, and what they answer: each question has a number, and an answer its question's."""

import msgspec

from protocol.messages.message import Message


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
