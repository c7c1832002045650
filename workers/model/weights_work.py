"""What is left to fetch of a model: which pieces may be asked of whom, what came, and whether it is what was wanted.

Shared by the threads of one fetch; asks nobody itself. A piece may be asked for once its hash is known. A host that
says that it lacks one is not asked for that again, and one that gives nothing but wrong ones for nothing.
"""

import threading
from collections import Counter, deque
from collections.abc import Sequence

from protocol.values import Buffer
from protocol.weight_pieces import HASH_BYTES, MOST_HASHES, AskHashes, piece_hash
from workers.model.sparse_model import SparseModel

_Piece = tuple[int, int]

# Hashing is work for the host that has the model: so few bytes are hashed ahead that the pieces follow at once.
_HASHED_AHEAD_BYTES = 64 << 20
_HASHED_AT_ONCE_BYTES = 16 << 20
_MOST_WRONG = 8


class Work:
    """See the module. missing: the pieces that are wanted, by file and piece."""

    def __init__(self, digest: str, folder: SparseModel, missing: Sequence[_Piece]):
        self.digest = digest
        self._folder = folder
        self._changed = threading.Condition()
        self._unhashed = deque(missing)
        self._ready: deque[_Piece] = deque()
        self._hashes: dict[_Piece, bytes] = {}
        self._left = set(missing)
        self._refused = _Shortcomings()
        self._error: BaseException | None = None
        self._has_ended = False
        self.num_bytes = 0  # of what came and was right
        self.wanted_bytes = sum(map(self._num_bytes, missing))

    def __repr__(self) -> str:
        return f"Work({len(self._left)} pieces left)"

    @property
    def is_over(self) -> bool:
        """Nothing is left to do, or it was given up."""
        return not self._left or self._has_ended or self._error is not None

    def _num_bytes(self, piece: _Piece) -> int:
        return self._folder.spans[piece[0]][piece[1]].num_bytes

    def wait(self, timeout_s: float) -> bool:
        """Whether it is over, within that time. Raises what a thread of it raised."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_over, timeout_s)
            if self._error is not None:
                raise self._error
            return self.is_over

    def fail(self, error: BaseException) -> None:
        """A thread cannot go on."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def end(self) -> None:
        """Threads are to end."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    # --- hashes

    def next_hashes(self) -> AskHashes | None:
        """Whose hashes to ask for next, once few are known ahead; None where all are known or it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_over or sum(map(self._num_bytes, self._ready)) < _HASHED_AHEAD_BYTES)
            if self.is_over or not self._unhashed:
                return None
            file, num_bytes = self._unhashed[0][0], 0
            pieces: list[int] = []
            for piece in self._unhashed:
                num_bytes += self._num_bytes(piece)
                if piece[0] != file or len(pieces) == MOST_HASHES or (pieces and num_bytes > _HASHED_AT_ONCE_BYTES):
                    break
                pieces.append(piece[1])
            return AskHashes(self.digest, file, tuple(pieces))

    def take_hashes(self, ask: AskHashes, answer: Buffer) -> bool:
        """What a host says they are; whether it knew all of them."""
        with self._changed:
            found = [bytes(answer[at : at + HASH_BYTES]) for at in range(0, len(answer), HASH_BYTES)]
            if len(found) != len(ask.pieces):
                return False
            for number, known in zip(ask.pieces, found, strict=True):
                piece = self._unhashed.popleft()
                assert piece == (ask.file, number)
                if any(known):
                    self._hashes[piece] = known
                    self._ready.append(piece)
                else:
                    self._unhashed.append(piece)
            self._changed.notify_all()
            return all(map(any, found))

    def wait_hashes(self, timeout_s: float) -> bool:
        """Whether all are known; else only after a while."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over or not self._unhashed, timeout_s)

    # --- pieces

    def take(self, source: str) -> _Piece | None:
        """A piece to ask that host for, None where there is none now."""
        with self._changed:
            if self.is_over or self._refused.wrong[source] >= _MOST_WRONG:
                return None
            for _ in range(len(self._ready)):
                piece = self._ready.popleft()
                if (piece, source) not in self._refused.lacking:
                    self._changed.notify_all()
                    return piece
                self._ready.append(piece)
            return None

    def give_back(self, piece: _Piece) -> None:
        """It was asked for and did not come."""
        with self._changed:
            if piece in self._left:
                self._ready.appendleft(piece)

    def came(self, piece: _Piece, source: str, data: Buffer | None) -> None:
        """What a host gave; None where it does not have it. Raises OSError where it cannot be written."""
        is_right = data is not None and len(data) == self._num_bytes(piece) and piece_hash(data) == self._hashes[piece]
        if is_right and data is not None:
            self._folder.put(*piece, data, self._hashes[piece])
        with self._changed:
            if is_right:
                self._left.discard(piece)
                self.num_bytes += self._num_bytes(piece)
            else:
                self._ready.append(piece)
            self._refused.note(piece, source, is_right=is_right, lacks=data is None)
            self._changed.notify_all()

    @property
    def num_wrong(self) -> int:
        """How many pieces came that were not what they should be."""
        return self._refused.num_wrong

    @property
    def why(self) -> str:
        """Why nothing comes any more, as a clause."""
        if any(self._refused.wrong.values()):
            return "what comes is not what it should be"
        return "no host has the rest" if self._refused.lacking else "no host that has it answers"


class _Shortcomings:
    """lacking: pieces that a host has not; wrong: how often in a row what it gave was not what it should be; num_wrong: how often that was so of any."""

    def __init__(self) -> None:
        self.lacking: set[tuple[_Piece, str]] = set()
        self.wrong: Counter[str] = Counter()
        self.num_wrong = 0

    def __repr__(self) -> str:
        return f"_Shortcomings({len(self.lacking)} lacking, {self.wrong})"

    def note(self, piece: _Piece, source: str, *, is_right: bool, lacks: bool) -> None:
        """What came of asking."""
        if lacks:
            self.lacking.add((piece, source))
            return
        self.wrong[source] = 0 if is_right else self.wrong[source] + 1
        self.num_wrong += not is_right
