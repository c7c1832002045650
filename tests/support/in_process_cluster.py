"""Several engines in one process and one thread, joined without sockets: a whole route that a test can step through."""

import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors
from mlx_lm.utils import load_model

from protocol.codec import Envelope
from protocol.errors import ModelError
from protocol.messages import (
    Cancel,
    Embedded,
    Generate,
    Guessing,
    Inspected,
    InspectModel,
    KnownPrefix,
    Loaded,
    LoadFailed,
    LoadProgress,
    LoadStage,
    Message,
    PrefillProgress,
    PromptLogprobs,
    Reused,
    SequenceFailed,
    StagePlan,
    Tokens,
)
from protocol.transport import InProcessNetwork
from protocol.values import KvSettings, LayerRange, Pooling, Sampling, TokenLogprobs
from strategy.vocabulary import Route
from tests.support.told_timer import ToldTimer
from workers.engine.engine import Engine
from workers.model.inspection import inspect
from workers.model.shelf import ModelShelf

MAX_TURNS = 100_000
MODEL = "the model"
DRAFT = "the draft"
PREFIX_BYTES = 64 << 20


class OneModel:
    """Knows where every model is: in one place. draft: where the one of that name is."""

    def __init__(self, path, draft=None):
        self._path = path
        self._draft = draft

    def model_place(self, digest):
        return self._draft if digest == DRAFT else self._path


def shelf_of(model_path, cache_dir, draft=None):
    """With what was found of the model before: inspecting takes longer than most tests, and is tested elsewhere."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    if (model_path / "config.json").is_file():
        for kept in inspections_of(model_path).iterdir():
            shutil.copy(kept, cache_dir)
    return ModelShelf(OneModel(model_path, draft), cache_dir)


def inspections_of(model_path):
    """The folder with what is found of a model, inspected once in this process."""
    return _inspected(model_path, (model_path / "config.json").read_bytes())


@cache
def _inspected(model_path, _config):
    folder = Path(_inspections().name) / str(uuid.uuid4())
    folder.mkdir()
    with suppress(ModelError):
        inspect(model_path, folder)
    return folder


@cache
def _inspections():
    return tempfile.TemporaryDirectory(prefix="tandem-inspections-")


class Clock:
    """A clock that goes on a little with each look, and as far as a test says."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 1e-5
        return self.now


def heartbeat_of(engine):
    """What an engine's caches take now, not a moment ago."""
    engine._vitals.measure(engine._now(), engine._runner.stages)
    return engine.heartbeat(engine._now())


class InProcessCluster:
    """`num_stages` engines that hold the layers of one model evenly; the `holder`, the first by default, also holds the full
    model, as all do of one that cannot be cut. draft: a model that guesses next tokens; guessing: who else does; timed: how fast the
    stages run is measured, which takes longer than most tests.

    What the heads report is in `tokens`, `vectors`, `logprobs`, `prompt_logprobs`, `finish_reasons`, `failures` and `progress`, by
    sequence.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        num_stages: int,
        cache_dir: Path,
        chunk_tokens: int | None = None,
        prefix_capacity: int = 64,
        disk: bool = False,
        kv: KvSettings | None = None,
        holder: int = 0,
        draft: Path | None = None,
        guessing: Guessing | None = None,
        timed: bool = False,
    ):
        self._kv = kv or KvSettings()
        self._guessing = Guessing(draft=DRAFT) if draft is not None else guessing
        self._prefix_capacity = prefix_capacity
        self._disk = disk
        self.reused: dict[int, int] = {}
        self.network = InProcessNetwork()
        self.clock = Clock()
        self.epoch = 1
        self.lost_links: list[tuple[str, str]] = []
        self.coordinator = self.network.inbox("coordinator", self._receive)
        self.names = tuple(f"worker-{index}" for index in range(num_stages))
        self._holder = holder
        self.engines = {
            name: Engine(
                name,
                self.network.links(name, lambda peer, _, name=name: self.lost_links.append((name, peer))),
                shelf_of(model_path, cache_dir, draft),
                now=self.clock,
                make_timer=None if timed else ToldTimer,
            )
            for name in self.names
        }
        self.peers = {name: self.network.inbox(name, engine.post) for name, engine in self.engines.items()}
        self._others: list[Message] = []
        self._num_sequences = 0
        self._heads: dict[int, str] = {}
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        self.vectors: dict[int, np.ndarray] = {}
        self.finish_reasons: dict[int, str] = {}
        self.failures: dict[int, str] = {}
        self.progress: dict[int, list[int]] = {}
        self.num_reports: Counter[int] = Counter()
        self.proposed: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self.plan = self._planned(chunk_tokens)
        self._load()

    @property
    def holder(self) -> str:
        """Who generates alone."""
        return self.names[self._holder]

    # --- what a coordinator does

    def _planned(self, chunk_tokens: int | None) -> LoadStage:
        self._send(self.names[0], InspectModel(model=MODEL, reply_to=self.coordinator))
        found = self._awaited(Inspected, 1)[0]
        cuts = () if found.why_not else _even_cuts(found.num_layers, found.legal_cuts, len(self.names))
        bounds = list(zip((0, *cuts), (*cuts, found.num_layers), strict=True))
        bounds = bounds * len(self.names) if found.why_not else bounds
        stages = tuple(
            StagePlan(
                worker=name,
                peer=self.peers[name],
                layers=LayerRange(start, end),
                holds_full_model=name == self.holder or found.why_not is not None,
            )
            for name, (start, end) in zip(self.names, bounds, strict=True)
        )
        pipeline = None if found.why_not else Route(self.names)
        return LoadStage(
            model=MODEL,
            reply_to=self.coordinator,
            pipeline=pipeline,
            kv=self._kv,
            prefix_memory_bytes=PREFIX_BYTES,
            prefix_disk_bytes=PREFIX_BYTES if self._disk else 0,
            stages=stages,
            last_position_only=found.last_position_only,
            batches=found.batches,
            prefill_chunk_tokens=chunk_tokens,
            uncached_in_caches=found.uncached_in_caches,
            whole_prompts=found.whole_prompts,
            reads_together=found.reads_together,
            guessing=self._guessing,
        )

    def _load(self) -> None:
        for name in self.names:
            self._send(name, self.plan)
        loaded = self._awaited(Loaded, len(self.names))
        if self._prefix_capacity and not self.plan.whole_prompts:
            snapshots = any(prefix.needs.snapshots for message in loaded for prefix in message.prefixes)
            for route in {Route((self.holder,))} | ({self.plan.pipeline} if self.plan.pipeline else set()):
                known = KnownPrefix(route=route, capacity=self._prefix_capacity, snapshots=snapshots)
                kept = dict(self.stores_of(route.head)[route].known)
                for name in route:
                    there = {key for key, _ in self.stores_of(name)[route].known}
                    kept = {key: length for key, length in kept.items() if key in there}
                lengths = np.array(list(kept.values()), np.int32).tobytes()
                self._send(route.head, known, (b"".join(kept), lengths))
            self.run()

    def replan(self) -> None:
        """A new epoch with the same plan."""
        self.epoch += 1
        self._others.clear()
        self._load()

    def _awaited(self, kind: type[Message], count: int) -> list:
        self.run()
        failed = self.reports_of(LoadFailed)
        assert not failed, failed
        found = self.reports_of(kind)
        assert len(found) == count
        return found

    def _send(self, worker: str, message: Message, buffers: tuple[bytes, ...] = ()) -> None:
        self.network.send(self.peers[worker], self.epoch, message, buffers)

    def generate(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        strategy: str = "distributed-cached",
        sampling: Sampling | None = None,
        end_tokens: tuple[int, ...] = (),
        scope: str = "",
        conversation: str | None = None,
        scores_prompt: bool = False,
        pooling: Pooling | None = None,
        prediction: Sequence[int] = (),
    ) -> int:
        """Start a request; returns its sequence number. pooling: for a vector in `vectors`, in place of tokens."""
        self._num_sequences += 1
        number = self._num_sequences
        sampling = sampling or Sampling()
        is_alone = strategy in ("single-device-cached", "distributed-prefill")
        route = Route((self.holder,) if is_alone else self.names)
        message = Generate(
            sequence=number,
            route=route,
            cached=strategy != "distributed-no-cache",
            max_tokens=max_tokens,
            end_tokens=end_tokens,
            sampling=sampling,
            seed=sampling.seed or 0,
            scope=scope,
            conversation=conversation,
            read_by=Route(self.names) if strategy == "distributed-prefill" else None,
            scores_prompt=scores_prompt,
            pooling=pooling,
            prediction=tuple(prediction),
        )
        self._heads[number] = route.head
        self.tokens[number] = []
        self._send(route.head, message, (np.array(prompt, np.int32).tobytes(),))
        return number

    def cancel(self, sequence: int) -> None:
        """As when a client leaves."""
        self._send(self._heads.get(sequence, self.holder), Cancel(sequence=sequence))

    def post(self, worker: str, message: Message, buffers: tuple[bytes, ...] = ()) -> None:
        """Hand one engine a message that did not come through the network."""
        self.engines[worker].post(Envelope(self.epoch, message, buffers))

    @property
    def load_progress(self) -> list[LoadProgress]:
        """What all workers said while they loaded, in order."""
        return self.reports_of(LoadProgress)

    def reports_of(self, kind: type[Message]) -> list:
        """What workers said of one kind, in order."""
        return [message for message in self._others if isinstance(message, kind)]

    # --- time

    def turn(self) -> bool:
        """Deliver what is under way and let each engine take one turn; whether anything happened."""
        delivered = self.network.run() > 0
        worked = [engine.turn() for engine in self.engines.values()]
        return delivered or any(worked)

    def run(self) -> None:
        """Turn until nothing is left to do."""
        for _ in range(MAX_TURNS):
            if not self.turn():
                return
        raise AssertionError("the cluster does not come to rest")

    # --- what became of it

    def _receive(self, envelope: Envelope) -> None:
        if envelope.epoch < self.epoch and isinstance(envelope.message, Tokens | SequenceFailed | Reused):
            return
        match envelope.message:
            case Tokens(updates=updates):
                for update in updates:
                    assert update.sequence not in self.finish_reasons, "tokens after the end"
                    self.tokens[update.sequence] += update.tokens
                    self.logprobs.setdefault(update.sequence, []).extend(update.logprobs)
                    self.num_reports[update.sequence] += 1
                    self.proposed[update.sequence] += update.proposed
                    self.accepted[update.sequence] += update.accepted
                    if update.finish_reason is not None:
                        self.finish_reasons[update.sequence] = update.finish_reason
            case PromptLogprobs(sequence=sequence, start=start, entries=entries):
                told = self.prompt_logprobs.setdefault(sequence, [])
                assert not self.tokens[sequence], (
                    "the prompt's tokens are told of before the first one that is generated"
                )
                assert start == len(told) + 1, "in order and without a gap"
                told += entries
            case Embedded(sequence=sequence):
                assert sequence not in self.vectors, "a vector after the end"
                self.vectors[sequence] = np.frombuffer(envelope.buffers[0], "<f4")
            case SequenceFailed(sequence=sequence, message=message):
                self.failures[sequence] = message
            case Reused(sequence=sequence, num_tokens=num_tokens):
                self.reused[sequence] = num_tokens
            case PrefillProgress(sequence=sequence, processed=processed):
                self.progress.setdefault(sequence, []).append(processed)
            case message:
                self._others.append(message)

    def stores_of(self, worker: str) -> dict:
        """What a worker keeps of past sequences, by route."""
        executors = self.engines[worker]._runner.stages.executors
        return {route: executor.prefixes for route, executor in executors.items()}

    def settle_disk(self) -> None:
        """Return when everything kept is on disk."""
        for engine in self.engines.values():
            engine._runner.flush()

    def assert_nothing_is_left(self) -> None:
        """No sequence, no cache, no step in flight, on any engine."""
        for engine in self.engines.values():
            stats = heartbeat_of(engine)
            assert (stats.running, stats.kv_bytes) == (0, 0), stats
            assert all(not executor._caches._slots for executor in engine._runner.stages.executors.values())
            assert len(engine._heads.handovers) == 0
            for head in engine._heads:
                assert (len(head), head.num_in_flight, len(head._schedule)) == (0, 0, 0), head


def _even_cuts(num_layers: int, legal: tuple[int, ...], num_stages: int) -> tuple[int, ...]:
    cuts: list[int] = []
    for stage in range(1, num_stages):
        wanted = num_layers * stage / num_stages
        cuts.append(min((cut for cut in legal if cut not in cuts), key=lambda cut: abs(cut - wanted)))
    return tuple(sorted(cuts))


@cache
def _alone(model_path: Path):
    return load_model(model_path)[0]


def alone(
    model_path: Path,
    prompt: list[int],
    max_tokens: int,
    sampling: Sampling | None = None,
    end_tokens: tuple[int, ...] = (),
) -> list[int]:
    """The greedy ids that mlx-lm gives by itself, the end token included."""
    asked = msgspec.json.encode(sampling or Sampling())
    return list(_ids_alone(model_path, tuple(prompt), max_tokens, asked, end_tokens))


@cache
def _ids_alone(model_path: Path, prompt: tuple[int, ...], max_tokens: int, asked: bytes, end_tokens: tuple[int, ...]):
    sampling = msgspec.json.decode(asked, type=Sampling)
    processors = make_logits_processors(
        logit_bias=sampling.logit_bias,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
    )
    found: list[int] = []
    steps = generate_step(
        mx.array(prompt), _alone(model_path), max_tokens=max_tokens, logits_processors=processors or None
    )
    with suppress(StopIteration):
        while len(found) < max_tokens:
            found.append(int(next(steps)[0]))
            if found[-1] in end_tokens:
                break
    return found
