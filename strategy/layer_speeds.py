"""What each layer of a model takes on one worker, so that the speed of a split that was never loaded can be foretold.

Pure: measured by the workers (`workers.model.profile`).
"""

from collections.abc import Sequence

import msgspec

from strategy.vocabulary import LayerRange


class PartSpeed(msgspec.Struct, frozen=True, array_like=True):
    """Seconds that a part of the model takes of a step of one token, and of a prompt's chunk."""

    decode_s: float
    chunk_s: float


class LayerSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """decode_s, chunk_s: of each layer of the whole model, None for one of a kind that this worker never ran; chunk_tokens: of the
    chunk. embedding, head: what a range at that end of the model takes beside its layers, None where it was not measured;
    overhead: what any range takes beside them.
    """

    decode_s: tuple[float | None, ...]
    chunk_s: tuple[float | None, ...]
    chunk_tokens: int
    overhead: PartSpeed
    embedding: PartSpeed | None = None
    head: PartSpeed | None = None

    def of(self, layers: LayerRange) -> PartSpeed | None:
        """What a stage of these layers takes; None where a part of it is not known."""
        ends = [self.embedding] if layers.start == 0 else []
        ends += [self.head] if layers.end == len(self.decode_s) else []
        decode_s, chunk_s = _sum(self.decode_s[slice(*layers)]), _sum(self.chunk_s[slice(*layers)])
        if decode_s is None or chunk_s is None:
            return None
        for part in (self.overhead, *ends):
            if part is None:
                return None
            decode_s, chunk_s = decode_s + part.decode_s, chunk_s + part.chunk_s
        return PartSpeed(decode_s, chunk_s)


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None
