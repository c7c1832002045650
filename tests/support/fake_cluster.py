"""The cluster behind `planning.interface`, played by hand: a test says which plan is in force and what heads report."""

import asyncio
from array import array
from contextlib import aclosing

import msgspec

from cluster.membership.member import Member, WorkerEvent
from cluster.planning.events import EventLog
from cluster.planning.inquiries import Inquiries
from cluster.planning.plan import Loss, ModelFacts, Plan
from cluster.serving.overview import Identity
from cluster.serving.requests import Delta, Finished, GenerationRequest, Routed, TokensPrompt, Waiting
from cluster.serving.service import GenerationService
from cluster.settings import (
    ApiSettings,
    KvCacheSettings,
    ModelSettings,
    RecoverySettings,
    Settings,
    StrategySettings,
    WorkerSettings,
)
from protocol.messages import (
    Cancel,
    Embedded,
    FiguresComputed,
    Generate,
    HeldModel,
    Inspected,
    Join,
    ListModels,
    ModelsListed,
    Tokens,
    Update,
)
from protocol.values import KvSettings, LayerRange, Peer, Route
from strategy.memory import KvGrowth, KvNeeds, WorkerBudget
from strategy.partition import ModelSizes, Stage

CONTEXT_TOKENS = 2000
SHORTAGE = "the full model needs 9 GB on one worker, and the largest, alpha, has 5 GB"
NAMES = ("alpha", "beta", "gamma")
BYTES_PER_TOKEN = 10


def plan_of(
    workers=NAMES,
    *,
    full=("alpha", "beta"),
    epoch=1,
    context_tokens=CONTEXT_TOKENS,
    vocabulary_size=400,
    room=10**9,
    why_not=None,
    embeds=True,
):
    """`full` names those with the full model; why_not: why it cannot be cut; embeds: its hidden states can be had."""
    full = tuple(name for name in full if name in workers)
    needs = KvNeeds(fixed_bytes=0, growth=(KvGrowth(BYTES_PER_TOKEN, None),), snapshots=False)
    pipeline = Route(tuple(workers)) if why_not is None else None
    routes = [Route((name,)) for name in full] + ([pipeline] if pipeline is not None else [])
    return Plan(
        epoch=epoch,
        model=ModelFacts(
            id="tiny",
            digest="d",
            sizes=ModelSizes(layers=(10, 10, 10), embedding=5, head=5, tied=False),
            inspected=Inspected(
                worker="alpha",
                architecture="llama",
                num_layers=3,
                legal_cuts=(1, 2),
                why_not=why_not,
                batches=True,
                last_position_only=True,
                context_tokens=context_tokens,
                embeds=embeds,
            ),
        ),
        stages=tuple(
            Stage(worker=name, layers=LayerRange(at, at + 1), weights_bytes=10, holds_full_model=name in full)
            for at, name in enumerate(workers)
        ),
        pipeline=pipeline,
        why_not=f"the model cannot be split: {why_not}" if why_not is not None else None,
        shortage=None if full else SHORTAGE,
        vocabulary_size=vocabulary_size,
        budgets={name: WorkerBudget(prefix_bytes=0, sequence_bytes=room) for name in workers},
        needs={route: dict.fromkeys(route, needs) for route in routes},
    )


def ready_member(name):
    member = Member(name, memory_limit_bytes=100)
    peer = Peer(endpoint=f"tcp://{name}", public_key="k" * 40)
    join = Join(protocol=1, secret="", name=name, host="here", pid=7, peer=peer, data=peer, memory_limit_bytes=100)
    for event in (WorkerEvent.JOIN, WorkerEvent.LOAD, WorkerEvent.LOADED):
        member.apply(event)
    member.join = join
    return member


class FakeCluster:
    """Serves by `plan` from the beginning (None: nothing is in force). `sent` is every message to a worker."""

    def __init__(self, plan=None):
        self.plan = plan
        self.missing = ()
        self.members = {name: ready_member(name) for name in NAMES}
        self.events = EventLog(clock=lambda: 1_700_000_000.0)
        self.listener = None
        self.sent = []
        self.inquiries = Inquiries(self._ask, self._ask, lambda _: False)

    @property
    def epoch(self):
        return self.plan.epoch if self.plan is not None else 0

    def _ask(self, worker, message):
        """Each worker has a model that is called as itself, and computes nothing."""
        if isinstance(message, ListModels):
            model = HeldModel(digest="d", name=worker, held_bytes=1, num_bytes=1, source="hub")
            self.inquiries.answered(ModelsListed(worker=worker, number=message.number, models=(model,)))
        else:
            self.inquiries.answered(FiguresComputed(worker=worker, number=message.number, stages=()))

    def send(self, worker, message, buffers=()):
        self.sent.append((worker, message, buffers))

    # --- what happens to it

    def end(self, *died, sentence=None, was_silence=False):
        """The plan ends, because `died` did, or for a link."""
        self.plan = None
        self.missing = (*self.missing, *died)
        for name in died:
            self.members[name].apply(WorkerEvent.LOSE)
        sentence = sentence or f"worker {', '.join(died)} was lost"
        cause = "worker" if died else "link"
        self.listener.plan_ended(Loss(workers=died, sentence=sentence, cause=cause, was_silence=was_silence))

    def begin(self, plan):
        """A plan is in force, and its workers are there."""
        self.plan = plan
        for name in plan.workers:
            if not self.members[name].is_ready:
                self.members[name] = ready_member(name)
        self.missing = tuple(name for name in self.missing if name not in plan.workers)
        self.listener.plan_began(plan)

    def replan(self, *died, **changes):
        """The survivors go on at once."""
        epoch = self.epoch + 1
        workers = [name for name in self.plan.workers if name not in died]
        self.end(*died, sentence=None if died else "a link was lost")
        self.begin(plan_of(tuple(workers), epoch=epoch, **changes))

    def report(self, sequence, tokens, reason=None, logprobs=(), proposed=0, accepted=0):
        """A head generated tokens."""
        update = Update(sequence, tuple(tokens), reason, tuple(logprobs), proposed, accepted)
        self.listener.tokens(Tokens(updates=(update,)))

    def embed(self, sequence, numbers):
        """A head has the vector of a sequence."""
        self.listener.embedded(Embedded(sequence=sequence), array("f", numbers).tobytes())

    # --- what the test reads

    def generates(self):
        return [(worker, message) for worker, message, _ in self.sent if isinstance(message, Generate)]

    def prompts(self):
        """The token ids that sequences began with."""
        return [
            list(memoryview(buffers[0]).cast("i")) for _, message, buffers in self.sent if isinstance(message, Generate)
        ]

    def cancelled(self):
        return [(worker, message.sequence) for worker, message, _ in self.sent if isinstance(message, Cancel)]


async def at_once(function, *arguments):
    """In place of a thread."""
    return function(*arguments)


def service_of(
    prompts, cluster, *, max_queue=256, request_timeout_s=None, wait_s=60, measured_use=None, kv="dynamic", **strategy
):
    """Call it inside a running loop. kv: the kind of cache."""
    configured = Settings(
        model=ModelSettings(path="/model"),
        api=ApiSettings(max_queue=max_queue, request_timeout_s=request_timeout_s),
        strategy=StrategySettings(**strategy),
        recovery=RecoverySettings(wait_s=wait_s),
        kv_cache=KvCacheSettings(kv=KvSettings(kind=kv)),
        workers=tuple(WorkerSettings(name=name) for name in NAMES),
    )
    identity = Identity(model_id="tiny", api="http://here", pid=4711, has_chat_template=True)
    now = asyncio.get_running_loop().time
    return GenerationService(cluster, prompts, configured, identity, measured_use, now=now, run_in_thread=at_once)


def tokens_request(count=5, **fields):
    return GenerationRequest(prompt=TokensPrompt(tuple([20] * count)), **fields)


async def settle():
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Client:
    """Reads one request's events in the background."""

    def __init__(self, service, request):
        self.events = []
        self.task = asyncio.create_task(self._read(service, request))

    async def _read(self, service, request):
        async with aclosing(service.generate(request)) as events:
            async for event in events:
                self.events.append(event)

    async def routed(self) -> Routed:
        await settle()
        if not self.events:
            await self.task
        return next(event for event in self.events if isinstance(event, Routed))

    async def leave(self):
        self.task.cancel()
        await asyncio.wait([self.task])

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def text(self):
        return "".join(event.text for event in self.of(Delta))

    @property
    def ids(self):
        return tuple(token for event in self.of(Delta) for token in event.token_ids)

    @property
    def waited_for(self):
        return [event.workers for event in self.of(Waiting)]

    @property
    def finished(self) -> Finished:
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]


def requests_of(service):
    return msgspec.to_builtins(service.status().requests)
