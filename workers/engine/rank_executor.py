"""The executor of a rank: a pass's exchanges are the same on all ranks of a group, whatever each of them needs for itself."""

import contextlib
from typing import Any

import mlx.core as mx
import numpy as np

from protocol.messages import Step
from workers.engine.executor import StageExecutor
from workers.engine.launched import Launched
from workers.tensor.exchange import Exchange


class RankExecutor(StageExecutor):
    """exchange: of the model that it runs; num_for_caches: how many exchanges of a pass its caches depend on."""

    def __init__(self, *arguments: Any, exchange: Exchange, num_for_caches: float, **settings: Any):
        super().__init__(*arguments, **settings)
        self._exchange = exchange
        self._num_for_caches = num_for_caches

    def launch(self, step: Step, tokens: np.ndarray | None, payload: Any) -> Launched:
        """See `StageExecutor`. Raises GroupBroken, too."""
        with self._exchanging(step):
            return super().launch(step, tokens, payload)

    def _exchanging(self, step: Step) -> contextlib.AbstractContextManager[None]:
        """What is exchanged in a step."""
        if any(row.num_sampled for row in step.rows) or self._scores.concern(step):
            return contextlib.nullcontext()
        sequence = self._sequences.get(step.rows[0].sequence)
        is_pooled = sequence is not None and sequence.pool is not None
        if self._stage.is_last and step.cached and not is_pooled:
            return self._exchange.first(self._num_for_caches)
        return self._exchange.without_logits()

    def _sampled_before(self, step: Step) -> mx.array:
        """All ranks are told what one of them sampled, which has it on the host by then where sums are waited for."""
        ids = np.zeros((len(step.rows), 1), np.int32)
        if not self._stage.is_silent:
            assert step.slot is not None
            if self._exchange.group.in_graph:
                return self._exchange.sum(super()._sampled_before(step).astype(mx.int32))
            ids[:] = self._last_sampled[step.slot].ids()
        return self._exchange.sum(mx.array(ids))

    def _of_others(self, logits: mx.array) -> mx.array | None:
        """All of them where the exchanges are in the graph, or some ranks would come to fewer."""
        return logits if self._exchange.group.in_graph else None
