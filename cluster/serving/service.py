"""What the API asks of the cluster: generate, explain, status. Implements `requests.Service` and `interface.Listener`.

A request is a loop: it gets a place on the plan in force, runs there, and where its route is lost gets a place again, until
its answer is complete. What it is sent with, who may run, how it runs and what is shown of it all have owners of their own;
here they are put together.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from cluster.planning.interface import Cluster
from cluster.planning.plan import Loss, Plan
from cluster.planning.watched_steps import Hear
from cluster.serving.admission import Admission, NotNow, Place
from cluster.serving.answer import Answer, Report
from cluster.serving.counts import Counts
from cluster.serving.deadline import Deadline
from cluster.serving.deciding import Decider
from cluster.serving.embedding import Embedder
from cluster.serving.encoding import Encoding, RunInThread
from cluster.serving.health import Health
from cluster.serving.ledger import Entry, Ledger
from cluster.serving.lifecycle import RequestEvent, RequestState
from cluster.serving.live_request import LiveRequest
from cluster.serving.measures import Measures, StrategyMeasures
from cluster.serving.overview import Identity, Overview
from cluster.serving.placed_request import PlacedRequest
from cluster.serving.pooled_answer import PooledAnswer
from cluster.serving.requests import (
    EmbeddingRequest,
    Embeddings,
    Event,
    Explanation,
    Finished,
    GenerationRequest,
    ModelInfo,
)
from cluster.serving.runs import Paused, RouteLost, Run, Runs
from cluster.serving.scores import scores_of
from cluster.serving.status import HealthReport, HostModels, Status, WorkerFigures, health_report
from cluster.serving.waiting import Waits, until_placed
from cluster.settings import Settings
from protocol.errors import ApiError, ContextTooLong, Unavailable
from protocol.messages import (
    Embedded,
    ForgetConversation,
    PrefillProgress,
    PromptLogprobs,
    Reused,
    SequenceFailed,
    Tokens,
    Update,
)
from protocol.values import Buffer
from strategy.cache_use import MeasuredUse
from strategy.decision import Decision
from strategy.situation import Asked

if TYPE_CHECKING:  # see `answer`
    from cluster.serving.prompts import Prompts

MAX_RUNNING = 292  # of which one client holds 256 at most
# Of whose prompt only the tokens are asked for may ask for more than the model can read, though not for the work of hours.
_COUNTED_CONTEXTS = 16
# When the cluster stops: what was said and not read for so long is not waited for.
_UNREAD_S = 0.5


class GenerationService:
    """See the module. now: seconds of a monotonic clock; run_in_thread: awaits a function that takes a while."""

    def __init__(
        self,
        cluster: Cluster,
        prompts: "Prompts",
        settings: Settings,
        identity: Identity,
        measured_use: MeasuredUse | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        run_in_thread: RunInThread = asyncio.to_thread,
    ):
        """measured_use: when a KV cache pays, where `kv_cache.adaptive` asks to follow that and it was measured."""
        self._cluster = cluster
        self._prompts = prompts
        self._waits = Waits(settings.recovery.wait_s, settings.api.request_timeout_s)
        self._now = now
        self._encoding = Encoding(prompts, run_in_thread)
        self._ledger = Ledger(Counts(), lambda: cluster.missing, now)
        self._health = Health()
        self._runs = Runs(cluster)
        self._admission = Admission(max_running=MAX_RUNNING, max_waiting=settings.api.max_queue)
        at_once = settings.kv_cache.kv.kind == "static"
        self._decider = Decider(
            cluster, settings.strategy, measured_use, self._admission, self._runs.loads, at_once=at_once
        )
        self._overview = Overview(cluster, identity, settings.strategy, self._ledger.counts, now)
        cluster.listener = self
        if cluster.plan is not None:
            self.plan_began(cluster.plan)

    def __repr__(self) -> str:
        return f"GenerationService({self._runs}, {self._admission})"

    def check_mode(self, plan: Plan) -> None:
        """See Overview."""
        self._overview.check_mode(plan)

    # --- the API's side

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """See `requests.Service`."""
        live = await self._taken_in(request)
        entry = self._ledger.enter(live, self._enter(live))
        try:
            while live.state is not RequestState.FINISHED:
                place = self._place(entry)
                async with contextlib.aclosing(self._until_placed(live, place)) as waiting:
                    async for event in waiting:
                        yield event
                is_first = live.state is RequestState.WAITING
                with self._running(entry, place) as run:  # no generator of its own: one more costs every token
                    if is_first:
                        self._measured(live).queue.observe(run.began_at - place.entered_at)
                        yield live.routed()
                    while not live.answer.is_finished:
                        for event in self._grown(live, place, run, await run.take()):
                            yield event
        except ApiError as error:
            entry.fail(error)
            raise
        finally:
            self._ledger.leave(entry)
            self._admission.leave(entry.place, self._now())

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `requests.Service`."""
        context_tokens = self._overview.model().context_tokens
        embedder = Embedder(self.generate, self._encoding, self._prompts.pooling, context_tokens, self._now)
        return await embedder.embed(request, request.asked.timeout_s or self._waits.answer_s)

    async def _taken_in(self, request: GenerationRequest) -> LiveRequest:
        """Raises RequestTimeout where already this takes too long, and what `Prompts.encode` raises."""
        arrival = self._now()
        request = request.with_defaults(self._prompts.sampling)
        deadline = Deadline(arrival, request.timeout_s or self._waits.answer_s)
        tokens = await self._encoded(request, deadline, arrival)
        request = await self._encoding.prepared(request, tokens)
        answer = self._answer(request, tokens, arrival)
        live = LiveRequest(request, tokens, answer, self._ledger.counts, deadline)
        for clause in self._prompts.unused(request.prompt):
            live.answer.note(clause)
        return live

    def _answer(self, request: GenerationRequest, tokens: tuple[int, ...], arrival: float) -> Answer | PooledAnswer:
        if request.pooling is not None:
            return PooledAnswer(prompt_tokens=len(tokens), arrival=arrival)
        scores = scores_of(request, tokens, self._prompts.text_of)
        stream = self._prompts.stream(request, tokens)
        is_predicted = bool(request.predicted)
        return Answer(stream, prompt_tokens=len(tokens), arrival=arrival, scores=scores, is_predicted=is_predicted)

    async def _encoded(
        self, request: GenerationRequest, deadline: Deadline, arrival: float, contexts: int = 1
    ) -> tuple[int, ...]:
        try:
            async with asyncio.timeout(deadline.left_s(arrival)):
                return await self._encoding.encode(request, self._overview.model().context_tokens, contexts)
        except TimeoutError:
            raise deadline.error() from None

    def _enter(self, live: LiveRequest) -> Place:
        has_run = live.state is not RequestState.WAITING or live.request.follows
        return self._admission.enter(
            lambda: self._decide(live)[1], self._now(), live.request.client, hash(live.tokens), has_run=has_run
        )

    def _place(self, entry: Entry) -> Place:
        """Where it stands, another one where it gave that up. Raises RequestCancelled, and what `Admission.enter` raises."""
        entry.require_wanted()
        if entry.place.has_left:
            entry.place = self._enter(entry.live)
        return entry.place

    def _decide(self, live: LiveRequest) -> tuple[Asked, Decision]:
        """Raises NotNow, and what `LiveRequest.asked` and `Decider.decide` raise."""
        plan = self._cluster.plan
        if plan is None:
            raise NotNow("no plan is in force")
        asked = self._decider.asked(live, plan)
        try:
            return asked, self._decider.decide_for(live, asked, plan)
        except ContextTooLong:
            most = self._decider.most_tokens(asked, plan)
            if not most:
                raise
        live.cut(most, "there is memory for no longer an answer's caches")
        asked = self._decider.asked(live, plan)
        return asked, self._decider.decide_for(live, asked, plan)

    def _until_placed(self, live: LiveRequest, place: Place) -> AsyncGenerator[Event, None]:
        return until_placed(
            place,
            missing=lambda: self._cluster.missing,
            wait_s=self._waits.plan_s,
            deadline=live.deadline,
            now=self._now,
        )

    @contextlib.contextmanager
    def _running(self, entry: Entry, place: Place) -> Iterator[Run]:
        """A run of the request; the block ends early with its plan, when its reader is too far behind, or for want of memory."""
        entry.require_wanted()
        live, decision = entry.live, place.decision
        assert decision is not None
        live.admitted(decision)
        number = self._runs.next_number()
        message, tokens = live.message(number, decision, self._prompts.eos_token_ids)
        if decision.cached:
            self._ledger.counts.read(len(tokens))
        self._decider.began(live, decision)
        placed = PlacedRequest(live, place, decision, self._admission, self._now)
        run = entry.run = self._runs.begin(message, tokens, self._now(), placed)
        placed.begun(run, self._runs)
        expiry = self._expiry(live, run)
        try:
            yield run
        except RouteLost as lost:
            live.lost_route(lost.loss, decision.workers)
        except Paused:
            pass  # by now the reader has everything that was given
        finally:
            self._runs.end(run)
            if expiry is not None:
                expiry.cancel()

    def _measured(self, live: LiveRequest) -> StrategyMeasures:
        return self._ledger.counts.measures.of[live.strategy or ""]

    def _grown(self, live: LiveRequest, place: Place, run: Run, reports: list[Report]) -> list[Event]:
        answer, now = live.answer, self._now()
        num_before, last_at = answer.num_generated, answer.last_at
        events = answer.take(reports, now)
        num_new = answer.num_generated - num_before
        measured = self._measured(live)
        measured.grew(num_new, (now - last_at) / num_new if num_before and num_new else None)
        updates = [report for report in reports if isinstance(report, Update)]
        measured.guessed(sum(each.proposed for each in updates), sum(each.accepted for each in updates))
        finished = events[-1] if events else None
        if isinstance(finished, Finished):  # before it is told: its reader may come for no more
            live.apply(RequestEvent.FINISH)
            measured.answered(finished.ttft_s, finished.total_s, live.predicted_s)
            measured.sized(finished.prompt_tokens, finished.completion_tokens)
            if place.decision is not None:
                waited_s, crowd = run.began_at - place.entered_at, self._runs.crowd(run)
                self._decider.answered(live, place.decision, finished, waited_s, crowd)
        return events

    def _expiry(self, live: LiveRequest, run: Run) -> asyncio.TimerHandle | None:
        left_s = live.deadline.left_s(self._now())
        if left_s is None:
            return None
        return asyncio.get_running_loop().call_later(left_s, self._runs.expire, run, live.deadline.error())

    async def explain(self, request: GenerationRequest) -> Explanation:
        """See `requests.Service`."""
        live = await self._taken_in(request)
        try:
            asked, decision = self._decide(live)
        except NotNow as error:
            raise Unavailable(f"{error}; try again when /health says ready") from None
        return Explanation(
            strategy=decision.strategy,
            reason=decision.reason,
            prompt_tokens=asked.prompt_tokens,
            max_tokens=decision.most_tokens - asked.prompt_tokens,
            candidates=decision.candidates,
        )

    async def encode(self, request: GenerationRequest) -> tuple[int, ...]:
        """See `requests.Service`."""
        arrival = self._now()
        deadline = Deadline(arrival, request.timeout_s or self._waits.answer_s)
        return await self._encoded(request, deadline, arrival, _COUNTED_CONTEXTS)

    async def decode(self, tokens: tuple[int, ...]) -> str:
        """See `requests.Service`."""
        return await self._encoding.decode(tokens)

    def models(self) -> tuple[ModelInfo, ...]:
        known = {"abilities": self._prompts.abilities, "vocabulary_size": self._prompts.vocabulary_size}
        return (msgspec.structs.replace(self._overview.model(), **known),)

    def status(self) -> Status:
        return self._overview.status(stopping=self._admission.closed, predicted=self._decider.outlook())

    async def models_elsewhere(self) -> tuple[HostModels, ...]:
        """See Overview."""
        return await self._overview.models_elsewhere()

    async def figures(self) -> tuple[WorkerFigures, ...]:
        """See Overview."""
        return await self._overview.figures()

    def watch_steps(self, hear: Hear) -> contextlib.AbstractContextManager[None]:
        """See `WatchedSteps.watch`."""
        return self._cluster.inquiries.steps.watch(hear)

    def measures(self) -> Measures:
        return self._ledger.counts.measures

    def health(self) -> HealthReport:
        owed = [since for since in (self._runs.owed_since, self._admission.lacking_since) if since is not None]
        stall = self._health.stall(self._cluster.members.values(), min(owed, default=None), self._now())
        return health_report(self._overview.state(stopping=self._admission.closed), stall)

    def forget_conversation(self, conversation: str) -> None:
        """A conversation was deleted: its kept prefixes are given back."""
        self._decider.forget(conversation)
        for worker in self._cluster.members:
            self._cluster.send(worker, ForgetConversation(conversation=conversation))

    def cancel(self, request_id: str) -> None:
        """See `requests.Service`."""
        entry = self._ledger.find(request_id)
        error = entry.cancel()
        self._admission.refuse(entry.place, error)
        if entry.run is not None:
            self._runs.expire(entry.run, error)

    def ledger(self) -> Ledger:
        return self._ledger

    def mend(self) -> tuple[str, ...]:
        """Somebody asked for the workers that are missing: they are started again. Gives their names."""
        return tuple(self._cluster.mend())

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests and wait for the running ones that somebody reads; those still running afterwards are failed."""
        self._admission.close()
        drained = asyncio.create_task(self._admission.drained())
        try:
            async with asyncio.timeout(timeout_s):
                while not drained.done():
                    unread = self._runs.unread()
                    await asyncio.wait({drained}, timeout=_UNREAD_S)
                    self._runs.pause_unread(unread)
        except TimeoutError:
            message = "the cluster stopped before the answer was complete"
            self._admission.fail(message)
            self._runs.fail(message)
        finally:
            drained.cancel()

    # --- the cluster's side

    @property
    def is_idle(self) -> bool:
        return self._admission.is_idle

    @property
    def is_awaited(self) -> bool:
        return self._admission.lacking_since is not None

    def tokens(self, message: Tokens) -> None:
        self._health.step_ended(self._now())
        self._runs.tokens(message)

    def embedded(self, message: Embedded, vector: Buffer) -> None:
        self._health.step_ended(self._now())
        self._runs.embedded(message, vector)

    def progress(self, message: PrefillProgress | PromptLogprobs) -> None:
        self._health.step_ended(self._now())
        self._runs.report(message)

    def reused(self, message: Reused) -> None:
        self._ledger.counts.reused(message.num_tokens)
        self._runs.report(message)

    def failed(self, message: SequenceFailed) -> None:
        self._runs.failed(message)

    def plan_ended(self, loss: Loss) -> None:
        self._runs.lose(loss)
        self._admission.suspend(self._now())

    def plan_began(self, plan: Plan) -> None:
        self._overview.learn(plan.model)
        self._decider.begin_plan(plan)
        room = {worker: budget.sequence_bytes for worker, budget in plan.budgets.items()}
        if num_resumed := self._admission.begin(room, self._now()):
            self._cluster.events.add(f"resumed {num_resumed} request{'s' if num_resumed > 1 else ''}")
