"""What the API asks of the cluster: generate, explain, status. Implements `requests.Service`.

Owns the running requests: for each an inbox of what its head reports. Chooses the route through `strategy`, sends one
message to the head, turns token ids into text, and ends the request everywhere when its client leaves.
"""

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from cluster.config import Settings
from cluster.planning.control import ControlPlane
from cluster.serving.admission import Admission
from cluster.serving.answer import Answer, Report
from cluster.serving.requests import Event, GenerationRequest, ModelInfo, Routed
from cluster.serving.routes import Routes
from cluster.serving.status import model_status, reuse_status, worker_status
from protocol.errors import ApiError, BadRequest, TooLarge, Unavailable, UsageError
from protocol.messages import Cancel, ForgetConversation, Generate, PrefillProgress, Reused, SequenceFailed, Tokens
from protocol.values import Route, pack_ids
from strategy.cache_use import MeasuredUse
from strategy.memory import largest_excess, sequence_bytes
from strategy.selector import (
    Choice,
    Feasibility,
    Lengths,
    Mode,
    NoStrategy,
    Strategy,
    Thresholds,
    select,
)

if TYPE_CHECKING:  # see `answer`
    from cluster.serving.prompts import Prompts

log = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 512
MAX_RUNNING = 256
# For architectures without positions to run out of, such as state-space models.
UNBOUNDED_CONTEXT_TOKENS = 1 << 20

_CACHED = {Strategy.SINGLE_DEVICE_CACHED, Strategy.DISTRIBUTED_CACHED}


class _Sequence:
    """One running request: where it runs and what was reported of it."""

    def __init__(self, number: int, route: Route):
        self.number = number
        self.route = route
        self._reports: deque[Report | ApiError] = deque()
        self._arrival: asyncio.Future[None] | None = None  # what `take` waits for; an Event costs a token more

    def __repr__(self) -> str:
        return f"_Sequence({self.number} on {self.route})"

    def put(self, report: Report | ApiError) -> None:
        self._reports.append(report)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def take(self) -> list[Report]:
        """Everything that was reported since, at least one. Raises a reported ApiError."""
        if not self._reports:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        reports = []
        while self._reports:
            report = self._reports.popleft()
            if isinstance(report, ApiError):
                raise report
            reports.append(report)
        return reports


class GenerationService:
    """See the module."""

    def __init__(
        self,
        control: ControlPlane,
        prompts: "Prompts",
        settings: Settings,
        model_id: str,
        api: str,
        pid: int,
        measured_use: MeasuredUse | None = None,
    ):
        """measured_use: when a KV cache pays, where `kv_cache.adaptive` asks to follow that and it was measured."""
        self._control = control
        self._measured_use = measured_use
        self._prompts = prompts
        self._settings = settings.strategy
        self._thresholds = Thresholds(settings.strategy.prompt_threshold, settings.strategy.generation_threshold)
        self._admission = Admission(
            max_running=MAX_RUNNING,
            max_waiting=settings.api.max_queue,
            room={worker: budget.sequence_bytes for worker, budget in control.budgets.items()},
        )
        self._api = api
        self._pid = pid
        self._routes = Routes(control)
        self._sequences: dict[int, _Sequence] = {}
        self._num_sequences = 0
        self._num_finished = 0
        self._num_failed = 0
        self._num_prompt_tokens = 0  # of cached strategies
        self._num_cached_tokens = 0
        assert control.sizes is not None
        assert control.inspected is not None
        self._model = ModelInfo(
            id=model_id,
            layers=len(control.sizes.layers),
            bytes=control.sizes.total,
            context_tokens=control.inspected.context_tokens or UNBOUNDED_CONTEXT_TOKENS,
            has_chat_template=prompts.has_chat_template,
            created=int(time.time()),
        )
        control.listener = self

    def __repr__(self) -> str:
        return f"GenerationService({self._model.id}, {len(self._sequences)} running)"

    def check_mode(self) -> None:
        """Raises UsageError when the mode can never be served by this plan."""
        shortage = self._control.shortage()
        if self._settings.use_distributed_inference == Mode.NEVER.value and shortage is not None:
            raise UsageError(
                f"mode never needs one worker with the full model, but {shortage}; "
                "use USE_DISTRIBUTED_INFERENCE=auto or raise a memory_limit"
            )

    # --- the API's side

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """See `requests.Service`."""
        arrival = time.perf_counter()
        tokens = await asyncio.to_thread(self._prompts.encode, request)
        max_tokens = self._max_tokens(request, len(tokens))
        choice = self._choose(request, Lengths(len(tokens), max_tokens))
        route = self._routes.choose(choice.strategy, tokens, request.conversation)
        cached = choice.strategy in _CACHED and self._cache_pays(choice.strategy, max_tokens)
        if choice.strategy in _CACHED and not cached:
            choice = dataclasses.replace(
                choice, reason=f"{choice.reason}; a KV cache does not pay here, so without one"
            )
        cost = self._cost(route, len(tokens) + max_tokens) if cached else {}
        with self._routes.assigned(route):
            async with self._admission.place(cost):
                if gone := [worker for worker in route if not self._control.members[worker].is_ready]:
                    raise Unavailable(f"worker {gone[0]} was lost while this request waited; try again")
                sequence = self._begin(request, route, tokens, max_tokens, cached=cached)
                running = self._run(sequence, request, choice, len(tokens), arrival)
                async with contextlib.aclosing(running) as events:
                    async for event in events:
                        yield event

    async def _run(
        self, sequence: _Sequence, request: GenerationRequest, choice: Choice, prompt_tokens: int, arrival: float
    ) -> AsyncGenerator[Event, None]:
        """The events of an admitted request."""
        try:
            yield Routed(
                request_id=f"{sequence.number}",
                strategy=choice.strategy,
                reason=choice.reason,
                workers=sequence.route.workers,
                prompt_tokens=prompt_tokens,
            )
            answer = Answer(self._prompts.stream(request.stop), prompt_tokens=prompt_tokens, arrival=arrival)
            while not answer.is_finished:
                events = answer.take(await sequence.take(), time.perf_counter())
                self._num_finished += answer.is_finished  # before the last event: its reader may come for no more
                for event in events:
                    yield event
        except ApiError:
            self._num_failed += 1
            raise
        finally:
            del self._sequences[sequence.number]
            self._control.send(sequence.route.head, Cancel(sequence=sequence.number))

    def _cache_pays(self, strategy: Strategy, max_tokens: int) -> bool:
        """Whether a KV cache is worth its while for an answer of so many tokens, by what was measured here."""
        if self._measured_use is None:
            return True
        alone, together = self._measured_use.single_device, self._measured_use.distributed
        return (together if strategy is Strategy.DISTRIBUTED_CACHED and together else alone).contains(max_tokens)

    def _cost(self, route: Route, num_tokens: int) -> dict[str, int]:
        """Bytes of caches by worker. Raises TooLarge where a worker could never hold them."""
        needs = self._control.kept.needs[route]
        if excess := largest_excess(needs, self._control.budgets, num_tokens):
            worker, wanted, there = excess
            raise TooLarge(
                f"the KV cache of {num_tokens} tokens needs {wanted / 1e6:.1f} MB on {worker}, which has "
                f"{there / 1e6:.1f} MB for caches; shorten the prompt, lower max_tokens or raise its memory_limit",
                param="max_tokens",
            )
        return {worker: sequence_bytes(need, num_tokens) for worker, need in needs.items()}

    async def explain(self, request: GenerationRequest) -> dict[str, Any]:
        """INTERFACE's `explain --json`: the choice, with nothing generated."""
        tokens = await asyncio.to_thread(self._prompts.encode, request)
        lengths = Lengths(len(tokens), self._max_tokens(request, len(tokens)))
        choice = self._choose(request, lengths)
        why_not = self._feasibility().why_not
        return {
            "strategy": choice.strategy,
            "reason": choice.reason,
            "prompt_tokens": lengths.prompt_tokens,
            "max_tokens": lengths.max_tokens,
            "candidates": [
                {
                    "strategy": strategy,
                    "feasible": strategy not in why_not,
                    "why_not": why_not.get(strategy),
                    "predicted_ttft_s": None,
                    "predicted_total_s": None,
                }
                for strategy in Strategy
            ],
        }

    def models(self) -> tuple[ModelInfo, ...]:
        return (self._model,)

    def state(self) -> str:
        """Ready; degraded when a planned worker is gone; stopped while stopping."""
        if self._admission.closed:
            return "stopped"
        return "degraded" if self._control.lost else "ready"

    def mend(self) -> tuple[str, ...]:
        return self._control.mend()

    def status(self) -> dict[str, Any]:
        """INTERFACE's `status --json`."""
        return {
            "state": self.state(),
            "api": self._api,
            "model": model_status(self._model),
            "mode": self._settings.use_distributed_inference,
            "policy": self._settings.policy,
            "coordinator": {"pid": self._pid},
            "workers": [
                worker_status(self._control.members[stage.worker], self._control.budgets[stage.worker])
                for stage in self._control.stages
            ],
            "requests": {
                "running": self._admission.num_running,
                "waiting": self._admission.num_waiting,
                "finished": self._num_finished,
                "failed": self._num_failed,
            },
            "cache": reuse_status(self._num_prompt_tokens, self._num_cached_tokens),
        }

    def forget_conversation(self, conversation: str) -> None:
        """A conversation was deleted: its kept prefixes are given back."""
        self._routes.forget(conversation)
        for stage in self._control.stages:
            self._control.send(stage.worker, ForgetConversation(conversation=conversation))

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests and wait for the running ones; those still running afterwards are failed."""
        self._admission.close()
        try:
            await asyncio.wait_for(self._admission.drained(), timeout_s)
        except TimeoutError:
            for sequence in list(self._sequences.values()):
                sequence.put(Unavailable("the cluster stopped before the answer was complete"))

    # --- the workers' side: control.Listener

    def tokens(self, message: Tokens) -> None:
        for update in message.updates:
            if sequence := self._sequences.get(update.sequence):
                sequence.put(update)

    def progress(self, message: PrefillProgress) -> None:
        if sequence := self._sequences.get(message.sequence):
            sequence.put(message)

    def reused(self, message: Reused) -> None:
        self._num_cached_tokens += message.num_tokens
        if sequence := self._sequences.get(message.sequence):
            sequence.put(message)

    def failed(self, message: SequenceFailed) -> None:
        if sequence := self._sequences.get(message.sequence):
            sequence.put(ApiError(message.message))

    def worker_lost(self, worker: str) -> None:
        for sequence in self._sequences.values():
            if worker in sequence.route:
                sequence.put(Unavailable(f"worker {worker} was lost while it worked on this request; try again"))

    # --- one request

    def _max_tokens(self, request: GenerationRequest, prompt_tokens: int) -> int:
        context = self._model.context_tokens
        if prompt_tokens >= context:
            raise TooLarge(
                f"the prompt has {prompt_tokens} tokens but the model's context is {context} tokens; shorten it",
                param="messages" if request.messages is not None else "prompt",
            )
        room = context - prompt_tokens
        if request.max_tokens is not None and request.max_tokens > room:
            raise BadRequest(
                f"max_tokens is {request.max_tokens}, but the model's context of {context} tokens leaves {room} "
                f"after {prompt_tokens} prompt tokens",
                param="max_tokens",
            )
        return request.max_tokens or min(DEFAULT_MAX_TOKENS, room)

    def _feasibility(self) -> Feasibility:
        why_not = {Strategy.TENSOR_PARALLEL: "tensor parallelism comes with a later version"}
        shortage = self._control.shortage()
        if shortage is not None:
            why_not[Strategy.SINGLE_DEVICE_CACHED] = shortage
        elif not self._control.full_model_holders:
            why_not[Strategy.SINGLE_DEVICE_CACHED] = "every worker with the full model is lost; restart the cluster"
        if lost := self._control.lost:
            gone = f"worker {', '.join(lost)} is lost; restart the cluster with ./launch.sh stop and start"
            why_not[Strategy.DISTRIBUTED_NO_CACHE] = why_not[Strategy.DISTRIBUTED_CACHED] = gone
        return Feasibility(why_not, fits_one_worker=shortage is None)

    def _choose(self, request: GenerationRequest, lengths: Lengths) -> Choice:
        try:
            return select(
                lengths,
                self._feasibility(),
                mode=Mode(request.mode or self._settings.use_distributed_inference),
                thresholds=self._thresholds,
                strategy=Strategy(request.strategy) if request.strategy else None,
            )
        except NoStrategy as error:
            if error.by_choice and not self._control.lost:
                param = "strategy" if request.strategy else "use_distributed_inference"
                raise BadRequest(str(error), param=param) from None
            raise Unavailable(str(error)) from None

    def _begin(
        self,
        request: GenerationRequest,
        route: Route,
        tokens: tuple[int, ...],
        max_tokens: int,
        *,
        cached: bool,
    ) -> _Sequence:
        self._num_sequences += 1
        sequence = self._sequences[self._num_sequences] = _Sequence(self._num_sequences, route)
        seed = request.sampling.seed
        message = Generate(
            sequence=sequence.number,
            route=route,
            cached=cached,
            max_tokens=max_tokens,
            end_tokens=tuple(sorted(self._prompts.eos_token_ids)),
            sampling=request.sampling,
            seed=secrets.randbits(63) if seed is None else seed % (1 << 63),
            scope=request.scope,
            conversation=request.conversation,
        )
        self._num_prompt_tokens += len(tokens) if message.cached else 0
        self._control.send(route.head, message, (pack_ids(tokens),))
        return sequence
