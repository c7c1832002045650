"""Whether a message fits what a worker knows; what does not is that message's failure and no other's."""

from collections.abc import Sequence

from protocol.values import Buffer


class UnfitMessage(Exception):
    """A message names what is not there, or its parts do not go together. Its text is a clause for the log or the user."""


def required_buffer(buffers: Sequence[Buffer], index: int, what: str) -> Buffer:
    """A buffer that must be there. Raises UnfitMessage."""
    if index >= len(buffers):
        raise UnfitMessage(f"{what} is missing")
    return buffers[index]
