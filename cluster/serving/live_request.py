"""One request from its arrival to its end: what was asked, what was answered so far, and what befell it.

Owns the state of one request and says what to send for it: at first the prompt, after a loss the prompt and everything that
was generated, with the same seed, so that what follows is what would have followed. Sends nothing itself.
"""

import secrets
from collections import Counter
from functools import cached_property

from cluster.planning.plan import Loss, Plan
from cluster.serving.answer import Answer
from cluster.serving.counts import Counts
from cluster.serving.deadline import Deadline
from cluster.serving.lifecycle import RequestEvent, RequestState, following
from cluster.serving.pooled_answer import PooledAnswer
from cluster.serving.requests import GenerationRequest, Predicted, Routed
from protocol.errors import ApiError, BadRequest, ContextTooLong, RequestCancelled
from protocol.messages import Generate
from strategy.decision import Decision
from strategy.prefix import BLOCK_TOKENS, Key, block_keys
from strategy.situation import Asked, Strategy
from strategy.wishes import Mode

# By so many tokens to come is decided what says nothing of its length; and it has no more where caches are made for all of it at once.
USUAL_TOKENS = 512
# For architectures without positions to run out of, such as state-space models.
UNBOUNDED_CONTEXT_TOKENS = 1 << 20
# Of a prompt, so much is compared with what caches have.
_LOOKED_UP_TOKENS = 1 << 15
# Where one worker dies again under a request, or falls silent so often, the request is taken for the cause.
_BLAMED_BY_DEATH, _BLAMED_BY_SILENCE, _BLAME_ALLOWED = 2, 1, 3


class LiveRequest:
    """number: among those that arrived, 0 before it did; tokens: of the prompt; num_given: of the answer when it last gave way, also
    those that nobody took yet.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokens: tuple[int, ...],
        answer: Answer | PooledAnswer,
        counts: Counts,
        deadline: Deadline,
    ):
        self.number = 0
        self.request = request
        self.deadline = deadline
        self.tokens = tokens
        self.answer = answer
        self.state = RequestState.WAITING
        self._counts = counts
        self._max_tokens: int | None = None
        self.num_given = 0
        self._first: Decision | None = None
        self._blame: Counter[str] = Counter()  # by worker that died under it
        self._loss: Loss | None = None

    def __repr__(self) -> str:
        return f"LiveRequest({self.state}, {len(self.tokens)} prompt tokens, {self.answer})"

    @cached_property
    def _seed(self) -> int:
        """The same in every run."""
        asked = self.request.sampling.seed
        return secrets.randbits(63) if asked is None else asked % (1 << 63)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Of its prompt's blocks. Only predictions ask, since each costs a hash."""
        return tuple(block_keys(self.tokens[:_LOOKED_UP_TOKENS], self.request.scope))

    @cached_property
    def beginnings(self) -> tuple[str | bytes, ...]:
        """What it may be remembered by."""
        conversation, first = self.request.conversation, block_keys(self.tokens[:BLOCK_TOKENS], self.request.scope)
        return (conversation, *first) if conversation else tuple(first)

    @property
    def names(self) -> tuple[str, ...]:
        """Of whom it is, by whom lengths of answers are remembered."""
        client = f"client {self.request.client}"
        return (f"conversation {self.request.conversation}", client) if self.request.conversation else (client,)

    @property
    def first(self) -> Decision | None:
        """By which it began, None where it did not."""
        return self._first

    @property
    def strategy(self) -> str | None:
        """By which it began, None where it did not."""
        return None if self._first is None else self._first.strategy

    @property
    def outcome(self) -> str:
        """How it ended: why its answer did, that it failed, or that nobody waited for more."""
        if self.state is RequestState.FINISHED and self.answer.finish_reason is not None:
            return self.answer.finish_reason
        return "failed" if self.state is RequestState.FAILED else "cancelled"

    @property
    def predicted_s(self) -> float | None:
        """What its answer was to take when it began, where that was predicted."""
        found = None if self._first is None else self._first.forecast
        return None if found is None else found.total_s

    @property
    def predicted(self) -> Predicted | None:
        """The same, for people."""
        found = None if self._first is None else self._first.forecast
        return None if found is None else Predicted(round(found.ttft_s, 6), round(found.total_s, 6))

    def is_first(self, decision: Decision) -> bool:
        """Whether it began by this decision and nothing befell it since."""
        return decision is self._first

    def apply(self, event: RequestEvent) -> None:
        """Move on. Raises IllegalEvent."""
        after = following(self.state, event)
        self._counts.moved(self.state, after)
        self.state = after

    def fail(self, error: ApiError) -> None:
        """It ends with an error; one that was cancelled ends where it is, as if its client had left."""
        if not isinstance(error, RequestCancelled):
            self.apply(RequestEvent.FAIL)
        if self.request.tally is not None:
            self.request.tally.error = error

    def asked(self, plan: Plan, *, at_once: bool = False) -> Asked:
        """What is decided by. at_once: caches are as large as they can become from the beginning.

        Raises:
            BadRequest: a token id is outside the loaded vocabulary, or no vector can be had of this model.
            ContextTooLong: the prompt leaves nothing.
        """
        if self._max_tokens is None:
            self.request.require_known(self.tokens, plan.vocabulary_size)
            if self.request.pooling is not None and not plan.model.inspected.embeds:
                raise BadRequest(
                    f"mlx-lm's code for {plan.model.inspected.architecture} does not show its hidden states, so that no embeddings "
                    "can be made with this model; serve another one",
                    param=self.request.prompt_field,
                )
            context_tokens = plan.model.inspected.context_tokens  # None for a model without a limit
            self._limit(context_tokens or UNBOUNDED_CONTEXT_TOKENS, at_once=at_once)
        assert self._max_tokens is not None
        request, num_generated = self.request, max(len(self.answer.token_ids), self.num_given)
        return Asked(
            prompt_tokens=len(self.tokens),
            max_tokens=min(num_generated + USUAL_TOKENS, self._max_tokens)
            if request.max_tokens is None
            else self._max_tokens,
            num_generated=num_generated,
            mode=Mode(request.mode) if request.mode is not None else None,
            strategy=Strategy(request.strategy) if request.strategy is not None else None,
            began_with=self._first.strategy if self._first is not None else None,
            beginnings=self.beginnings if request.pooling is None else (),
            scores_prompt=self.answer.lacks_prompt_scores,
            embeds=request.pooling is not None,
        )

    def _limit(self, context: int, *, at_once: bool) -> None:
        request, prompt_tokens = self.request, len(self.tokens)
        # By the step that samples one token, which is dropped, or of a text whose vector is all.
        is_only_read = request.pooling is not None or (request.max_tokens == 0 and request.scores_prompt)
        if prompt_tokens >= context + is_only_read:
            raise ContextTooLong(
                f"the prompt has {prompt_tokens} tokens but the model's context is {context} tokens; shorten it",
                param=request.prompt_field,
            )
        if is_only_read:
            self._max_tokens = 1
            return
        room = context - prompt_tokens
        self._max_tokens = request.max_tokens or (min(USUAL_TOKENS, room) if at_once else room)
        if self._max_tokens > room:
            self.cut(
                room, f"the model's context of {context} tokens leaves no more after {prompt_tokens} prompt tokens"
            )

    @property
    def max_tokens(self) -> int:
        """To generate at most. Once it was `asked`."""
        assert self._max_tokens is not None
        return self._max_tokens

    @property
    def most_tokens(self) -> int | None:
        """The same, or what was asked for before that is known."""
        return self.request.max_tokens if self._max_tokens is None else self._max_tokens

    def cut(self, max_tokens: int, why: str) -> None:
        """Generate no more than that, and say why, as a clause, where more was asked for. Not once it runs."""
        if self.request.max_tokens is not None:
            self.answer.note(f"max_tokens was cut from {self._max_tokens} to {max_tokens}: {why}")
        self._max_tokens = max_tokens

    def admitted(self, decision: Decision) -> None:
        """The request runs by `decision` from now on, for the first time or again."""
        was_lost = self.state is RequestState.REASSIGNED
        self.apply(RequestEvent.ADMIT)
        if self._first is None:
            self._first = decision
            if self.request.tally is not None:
                self.request.tally.began(self.answer, decision.strategy)
            return
        after = "after a pause"
        if was_lost and self._loss is not None:
            after = f"after {self._loss.sentence}"
            self._counts.measures.recovered(self._loss.cause)
        changed = decision.strategy is not self._first.strategy
        how = f"{after} the answer went on with {decision.strategy} on {decision.route}" if changed else None
        self.answer.go_on(how, was_lost=was_lost)

    def message(self, number: int, decision: Decision, end_tokens: frozenset[int]) -> tuple[Generate, tuple[int, ...]]:
        """What to send to the head, and the token ids to begin with."""
        emitted = self.answer.token_ids
        message = Generate(
            sequence=number,
            request_id=self.number,
            route=decision.route,
            cached=decision.cached,
            max_tokens=decision.most_tokens - len(self.tokens) - len(emitted),
            end_tokens=() if self.request.ignores_end_tokens else tuple(sorted(end_tokens)),
            sampling=self.request.sampling,
            seed=self._seed,
            scope=self.request.scope,
            client=self.request.client,
            conversation=self.request.conversation,
            read_by=decision.read_by,
            scores_prompt=self.answer.lacks_prompt_scores,
            answered=len(emitted),
            pooling=self.request.pooling,
            prediction=self.request.predicted,
        )
        return message, (*self.tokens, *emitted)

    def routed(self) -> Routed:
        """The event that says how the request runs, once it was admitted."""
        assert self._first is not None
        return Routed(
            request_id=f"{self.number}",
            strategy=self._first.strategy,
            reason=self._first.reason,
            workers=self._first.workers,
            prompt_tokens=len(self.tokens),
            predicted=self.predicted,
        )

    def lost_route(self, loss: Loss, workers: tuple[str, ...]) -> None:
        """Its plan ended while these worked on it. Raises ApiError where that will not be tried again."""
        self.apply(RequestEvent.LOSE_ROUTE)
        self._loss = loss
        for worker in loss.workers:
            if worker in workers:
                self._blame[worker] += _BLAMED_BY_SILENCE if loss.was_silence else _BLAMED_BY_DEATH
                if self._blame[worker] > _BLAME_ALLOWED:
                    raise ApiError(f"{worker} was lost too often while it worked on this request; see ./launch.sh logs")
