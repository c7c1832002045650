"""Answers that are kept for a while, so that a client can go on from one by its id, or read it again.

Knows ids, keys and bytes; nothing of what they say.
"""

import threading
from collections.abc import Mapping

import msgspec

MOST_ANSWERS = 256
MOST_BYTES = 16 * 2**20


class KeptAnswer(msgspec.Struct, frozen=True):
    """One answer as JSON, and the items of its conversation by their ids: `inputs` before it, `outputs` of it."""

    answer: bytes
    inputs: Mapping[str, bytes]
    outputs: Mapping[str, bytes]

    @property
    def items(self) -> dict[str, bytes]:
        """What a next answer goes on from."""
        return {**self.inputs, **self.outputs}

    @property
    def num_bytes(self) -> int:
        return len(self.answer) + _num_bytes(self.inputs) + _num_bytes(self.outputs)


class Answered:
    """The answers of everyone, each found only with the key that asked for it; the oldest is forgotten first.

    An app owns one: `build_app` makes it, in memory, and gives each request the `Shelf` of its caller. May be asked on any
    thread.
    """

    def __init__(self, most_answers: int = MOST_ANSWERS, most_bytes: int = MOST_BYTES) -> None:
        self._most_answers, self._most_bytes = most_answers, most_bytes
        self._kept: dict[tuple[str, str], KeptAnswer] = {}  # the oldest first
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Answered({len(self._kept)} answers, {self._num_bytes} bytes)"

    def shelf(self, key: str) -> "Shelf":
        """What is kept for a key."""
        return Shelf(self, key)

    def keep(self, key: str, answer_id: str, kept: KeptAnswer) -> None:
        """What is larger than all that may be kept is not."""
        if kept.num_bytes > self._most_bytes:
            return
        with self._lock:
            self._forget(key, answer_id)
            self._kept[key, answer_id] = kept
            self._num_bytes += kept.num_bytes
            while len(self._kept) > self._most_answers or self._num_bytes > self._most_bytes:
                self._forget(*next(iter(self._kept)))

    def find(self, key: str, answer_id: str) -> KeptAnswer | None:
        with self._lock:
            return self._kept.get((key, answer_id))

    def forget(self, key: str, answer_id: str) -> bool:
        """Whether there was one."""
        with self._lock:
            return self._forget(key, answer_id)

    def item(self, key: str, item_id: str) -> bytes | None:
        """An item of any answer of this key."""
        with self._lock:
            for (owner, _), kept in reversed(self._kept.items()):
                for items in (kept.outputs, kept.inputs):
                    if owner == key and item_id in items:
                        return items[item_id]
        return None

    def _forget(self, key: str, answer_id: str) -> bool:
        kept = self._kept.pop((key, answer_id), None)
        self._num_bytes -= 0 if kept is None else kept.num_bytes
        return kept is not None


class Shelf:
    """The answers of one key."""

    def __init__(self, answered: Answered, key: str) -> None:
        self._answered = answered
        self._key = key

    def __repr__(self) -> str:
        return f"Shelf({self._answered!r})"

    def keep(self, answer_id: str, kept: KeptAnswer) -> None:
        """See `Answered`."""
        self._answered.keep(self._key, answer_id, kept)

    def find(self, answer_id: str) -> KeptAnswer | None:
        return self._answered.find(self._key, answer_id)

    def forget(self, answer_id: str) -> bool:
        return self._answered.forget(self._key, answer_id)

    def item(self, item_id: str) -> bytes | None:
        return self._answered.item(self._key, item_id)


def _num_bytes(items: Mapping[str, bytes]) -> int:
    return sum(map(len, items.values()))
