"""Fetches what some layers need of a model from the hosts that have it, into a sparse folder of this host.

First the small files and the headers, which must be the model of the wanted digest, then exactly the tensors that are needed and
not there yet. Each host has several connections, each with a thread that asks for a few pieces ahead; whoever is fast gets more of
them. The hashes of pieces come from one host, over a connection of their own, ahead of the pieces: so a host whose copy is damaged,
or another one, is noticed. A piece that is not what its hash says is asked for again, elsewhere where there is an elsewhere.
A host that falls silent is asked anew, by another way if there is one. Blocks the thread that calls it, which is told how much
came and may say that nobody wants it any more.
"""

import contextlib
import itertools
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from protocol.errors import ModelError
from protocol.transport.asking import IN_FLIGHT
from protocol.values import Buffer, LayerRange, Peer
from protocol.weight_pieces import (
    PIECE_BYTES,
    Ask,
    AskManifest,
    AskPiece,
    Manifest,
    check_manifest,
    header_spans,
)
from workers.model.shelf import FetchProgressed, Overtaken
from workers.model.sparse_model import FLUSH_BYTES, SparseModel, Write, lock, saying_what_the_disk_lacks
from workers.model.weights_source import GIVEN
from workers.model.weights_work import Work

log = logging.getLogger(__name__)

NUM_CONNECTIONS = 4
# Pieces that one connection waits for; less than an answerer allows.
_DEPTH = min(3, IN_FLIGHT)
_FIRST_ANSWER_S, ANSWER_S = 2.0, 10.0
_TELL_EVERY_S = 0.5
_AGAIN_S = 0.5
# Whoever has just joined is let in by the others within a second or two; a host that restarts takes a little longer.
PATIENCE_S = 30.0
_SPARE_BYTES = 64 << 20  # of the disk


class Silent(Exception):
    """A host does not answer, or not what it was asked."""


class SourceConnection(Protocol):
    """To one answerer; `protocol.transport.asking.ZmqAsker`."""

    def ask(self, number: int, asked: bytes) -> None: ...

    def receive(self, timeout_s: float) -> tuple[int, list[Buffer]] | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What fetching needs from outside. connect: to a host that may have the model, raises Silent where there is no way; lost: told of one that fell silent; is_overtaken:
    whether nobody wants the result any more; patience_s: for how long nothing may come; answer_s: until a host counts as silent; write: how bytes come to the disk; free_bytes: of the disk at a path.
    """

    connect: Callable[[Peer], SourceConnection]
    lost: Callable[[Peer], object]
    needed: Callable[[Path, Sequence[LayerRange]], frozenset[str] | None]
    is_overtaken: Callable[[], bool] = lambda: False
    write: Write | None = None
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    patience_s: float = PATIENCE_S
    answer_s: float = ANSWER_S


class WeightsFetcher:
    """See the module. root: the folder of what was fetched, a folder in it for each digest; own_key: by which other hosts know
    this worker, which asks itself for nothing.
    """

    def __init__(self, root: Path, outside: Outside, own_key: str = ""):
        self._own_key = own_key
        self._root = root
        self._outside = outside
        self._had: set[tuple[str, tuple[LayerRange, ...]]] = (
            set()
        )  # so that a new epoch with the same layers costs nothing

    def __repr__(self) -> str:
        return f"WeightsFetcher({str(self._root)!r})"

    def find(self, digest: str) -> Path | None:
        """Where the model of that digest is, of which a part may have been fetched."""
        path = self._root / digest
        return path if _is_name(digest) and SparseModel.open(path) is not None else None

    def __call__(
        self, digest: str, ranges: Sequence[LayerRange], sources: Sequence[Peer], progress: FetchProgressed
    ) -> Path:
        """The directory of a model, with all that these ranges need; without any, with its small files and headers.

        Raises:
            ModelError: no host has it, a host has another one, or the disk takes no more.
            Overtaken: see there.
        """
        if not _is_name(digest):
            raise ModelError("the coordinator names a model by no digest; start it with the same version")
        path = self._root / digest
        if (digest, tuple(ranges)) in self._had and self.find(digest) is not None:
            return path
        sources = [source for source in sources if source.answer_port and source.public_key != self._own_key]
        with saying_what_the_disk_lacks(path), self._alone(path, progress):
            folder = self._open(path, digest, sources)
            if damaged := folder.forget_damaged():
                log.warning("%d pieces are not what they were when they came; they are fetched again", damaged)
            needed = self._outside.needed(path, ranges) if ranges else frozenset()
            missing = folder.missing(needed) if ranges else []
            if missing:
                self._check_room(folder, missing)
                self._fetch(digest, folder, missing, sources, progress)
        self._had.add((digest, tuple(ranges)))
        return path

    @contextlib.contextmanager
    def _alone(self, path: Path, progress: FetchProgressed) -> Iterator[None]:
        """Once no other worker of this host writes there."""
        while True:
            with lock(path) as is_alone:
                if is_alone:
                    yield
                    return
            self._go_on(progress, 0, 0)
            time.sleep(_TELL_EVERY_S)  # another process; nothing tells when it is done

    def _go_on(self, progress: FetchProgressed, fetched: int, wanted: int) -> None:
        if self._outside.is_overtaken():
            raise Overtaken("something newer is wanted of this worker")
        progress(fetched, wanted)

    # --- the beginning of a folder

    def _open(self, path: Path, digest: str, sources: Sequence[Peer]) -> SparseModel:
        options = {} if self._outside.write is None else {"write": self._outside.write}
        known = SparseModel.open(path, **options)
        if known is not None:
            return known
        manifest, first = self._first_of(digest, sources)
        return SparseModel.begin(path, digest, manifest, first, **options)

    def _first_of(self, digest: str, sources: Sequence[Peer]) -> tuple[Manifest, list[bytes]]:
        """Manifest, small files and headers, of the first host that gives them."""
        until = time.monotonic() + self._outside.patience_s
        while True:
            for source in sources:
                if self._outside.is_overtaken():
                    raise Overtaken("something newer is wanted of this worker")
                with contextlib.suppress(Silent):
                    return self._first_from(digest, source)
            if not sources or time.monotonic() >= until:
                raise ModelError(
                    "this machine does not have the model, and no other one that answers can give it; "
                    "put it into models/ of the checkout and join again"
                )
            time.sleep(_AGAIN_S)  # until this worker is known to be a member

    def _first_from(self, digest: str, source: Peer) -> tuple[Manifest, list[bytes]]:
        """Raises Silent; ModelError for a manifest that is none."""
        with contextlib.closing(self._outside.connect(source)) as connection:
            try:
                manifest = msgspec.msgpack.decode(bytes(one(connection, AskManifest(digest))), type=Manifest)
            except ValueError:
                raise Silent("no manifest") from None
            check_manifest(manifest)
            first = []
            for number, file in enumerate(manifest.files):
                pieces = range(len(header_spans(file)))
                parts = [bytes(one(connection, AskPiece(digest, number, piece))) for piece in pieces]
                begun = b"".join(parts)
                if len(begun) != (file.header_bytes or file.num_bytes):
                    raise Silent("another length")
                first.append(begun)
        return manifest, first

    def _check_room(self, folder: SparseModel, missing: Sequence[tuple[int, int]]) -> None:
        wanted = sum(folder.spans[file][piece].num_bytes for file, piece in missing)
        free = self._outside.free_bytes(folder.path)
        if wanted + _SPARE_BYTES > free:
            raise ModelError(
                f"the disk of {folder.path} has {free / 1e9:.2f} GB free, and this part of the model takes {wanted / 1e9:.2f} GB "
                "and a little room: make room there, or set TANDEM_HOME to another disk, and join again"
            )

    # --- the tensors

    def _fetch(
        self,
        digest: str,
        folder: SparseModel,
        missing: Sequence[tuple[int, int]],
        sources: Sequence[Peer],
        progress: FetchProgressed,
    ) -> None:
        work = Work(digest, folder, missing)
        try:
            with _threads(work, self._tasks(work, sources)):
                self._watch(work, folder, progress)
        finally:
            folder.save()
        progress(work.num_bytes, work.wanted_bytes)
        log.info("fetched %d bytes of the model", work.num_bytes)
        if work.num_wrong:
            log.warning("%d pieces that came were not what they should be, and were asked for again", work.num_wrong)

    def _watch(self, work: Work, folder: SparseModel, progress: FetchProgressed) -> None:
        """Until everything came."""
        came, came_at = 0, time.monotonic()
        while not work.wait(_TELL_EVERY_S):
            if work.num_bytes != came:
                came, came_at = work.num_bytes, time.monotonic()
            if time.monotonic() - came_at > self._outside.patience_s:
                raise ModelError(
                    f"the model cannot be fetched any further ({work.why}): "
                    "see that its hosts are reachable and their copies whole, and join again"
                )
            folder.save(FLUSH_BYTES)
            self._go_on(progress, came, work.wanted_bytes)

    def _tasks(self, work: Work, sources: Sequence[Peer]) -> list[Callable[[], None]]:
        tasks: list[Callable[[], None]] = [partial(self._ask_hashes, work, sources)]
        for source in sources:
            tasks += [partial(self._ask_pieces, work, source)] * NUM_CONNECTIONS
        return tasks

    def _ask_hashes(self, work: Work, sources: Sequence[Peer]) -> None:
        """Of all pieces, a few at a time; from the first host that has them."""
        for source in itertools.cycle(sources):
            with contextlib.suppress(Silent), contextlib.closing(self._outside.connect(source)) as connection:
                while (ask := work.next_hashes()) is not None:
                    if not work.take_hashes(ask, one(connection, ask, self._outside.answer_s)):
                        break
            if work.is_over or work.wait_hashes(_AGAIN_S):
                return

    def _ask_pieces(self, work: Work, source: Peer) -> None:
        """From one host, until nothing is left."""
        while not work.is_over:
            try:
                with contextlib.closing(self._outside.connect(source)) as connection:
                    _pump(work, source.public_key, connection, self._outside.answer_s)
            except Silent:
                self._outside.lost(source)
                work.wait(_AGAIN_S)


def _pump(work: Work, source: str, connection: SourceConnection, answer_s: float) -> None:
    """Raises Silent when what was asked for does not come."""
    asked: dict[int, tuple[int, int]] = {}
    numbers = itertools.count(1)
    heard_at = time.monotonic()
    try:
        while not work.is_over:
            while len(asked) < _DEPTH and (piece := work.take(source)) is not None:
                number = next(numbers)
                asked[number] = piece
                connection.ask(number, msgspec.msgpack.encode(AskPiece(work.digest, *piece)))
            if not asked:
                work.wait(_TELL_EVERY_S / 10)
                heard_at = time.monotonic()
                continue
            answer = connection.receive(_TELL_EVERY_S)
            if answer is None:
                if time.monotonic() - heard_at > answer_s:
                    raise Silent("a host that has it fell silent")
                continue
            heard_at = time.monotonic()
            if (piece := asked.pop(answer[0], None)) is not None:
                work.came(piece, source, _given(answer[1]))
    finally:
        for piece in asked.values():
            work.give_back(piece)


def one(connection: SourceConnection, ask: Ask, timeout_s: float = _FIRST_ANSWER_S) -> Buffer:
    """The answer to one question on a connection that waits for no other. Raises Silent."""
    connection.ask(0, msgspec.msgpack.encode(ask))
    answer = connection.receive(timeout_s)
    data = None if answer is None else _given(answer[1])
    if data is None:
        raise Silent("a host does not have it, or does not answer")
    return data


def _given(frames: Sequence[Buffer]) -> Buffer | None:
    """What an answer gives; None for "I do not have that"."""
    is_given = len(frames) == 2 and frames[0] == GIVEN and len(frames[1]) <= PIECE_BYTES
    return frames[1] if is_given else None


@contextlib.contextmanager
def _threads(work: Work, tasks: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Run tasks meanwhile; what one raises ends the work and is raised here."""

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001  the boundary of a thread: the caller raises it
            work.fail(error)

    threads = [threading.Thread(target=run, args=(task,), name="fetch", daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        work.end()
        for thread in threads:
            thread.join()


def _is_name(digest: str) -> bool:
    return len(digest) == 32 and set(digest) <= set("0123456789abcdef")
