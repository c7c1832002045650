"""Modules that exchange with the other ranks when they are called.

Owns the swapped calls: a module becomes an instance of a subclass of its own class, so that its attributes and `isinstance` stay
as they are. Knows the group, not why a module was cut. Belongs to one rank of one model.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn

from workers.tensor.group import TensorGroup
from workers.tensor.plan import CutPlan
from workers.tensor.spans import Span


class Exchange:
    """What the cut modules of one model use. While silent, a pass has the right shapes and graph, and wrong values.

    num_exchanges: sums and gathers so far, also those that were silent.
    """

    def __init__(self, group: TensorGroup, plan: CutPlan):
        self.group = group
        self.plan = plan
        self.is_silent = False
        self.num_exchanges = 0
        self._num_wanted = self._last_wanted = math.inf
        self._stand_ins: list[mx.array] | None = None
        self._projects = True
        self._embeds = True
        self._wants_logits = True

    def __repr__(self) -> str:
        return f"Exchange(rank {self.group.rank} of {self.group.size})"

    @property
    def rank(self) -> int:
        return self.group.rank

    def begin(self, *, projects: bool, embeds: bool) -> None:
        """Of the passes that follow: whether logits are wanted, and embeddings where those are cut; what is not is neither computed
        nor exchanged.
        """
        self._projects = projects
        self._embeds = embeds
        self._last_wanted = self.num_exchanges + self._num_wanted

    def sum(self, x: mx.array) -> mx.array:
        self.num_exchanges += 1
        if self.is_silent or self.num_exchanges > self._last_wanted:
            return self._left_out(x)
        return self.group.sum(x)

    def embedded(self, x: mx.array) -> mx.array:
        if self._embeds:
            return self.sum(x)
        self.num_exchanges += 1
        return self._left_out(x)

    def gather(self, x: mx.array, spans: list[Span]) -> mx.array:
        """The whole of an array of which each rank has its span of the last axis."""
        self.num_exchanges += 1
        if self.is_silent or self.num_exchanges > self._last_wanted:
            return self._left_out(self._widened(x, spans))
        return self.group.gather(x, -1, _widths(spans))

    def logits(self, x: mx.array, spans: list[Span]) -> mx.array:
        return self.gather(x, spans) if self._projects and self._wants_logits else self._widened(x, spans)

    def _left_out(self, x: mx.array) -> mx.array:
        """What is gone on with where an exchange does not take place."""
        if self._stand_ins is None:
            return x
        self._stand_ins.append(mx.zeros(x.shape, x.dtype))
        mx.eval(self._stand_ins[-1])
        return self._stand_ins[-1]

    def _widened(self, x: mx.array, spans: list[Span]) -> mx.array:
        start, stop = spans[self.rank]
        before, after = (mx.zeros((*x.shape[:-1], width), x.dtype) for width in (start, spans[-1][1] - stop))
        return mx.concatenate([before, x, after], axis=-1)

    @contextmanager
    def without_logits(self) -> Iterator[None]:
        """No pass in the block wants logits, whatever `begin` says."""
        self._wants_logits = False
        try:
            yield
        finally:
            self._wants_logits = True

    @contextmanager
    def first(self, number: float) -> Iterator[None]:
        """Of each pass in the block only so many exchanges take place: nobody asks for what the others make."""
        self._num_wanted = number
        try:
            with self.without_logits():
                yield
        finally:
            self._num_wanted = self._last_wanted = math.inf

    @contextmanager
    def standing_in(self) -> Iterator[list[mx.array]]:
        """In silent passes of the block arrays stand in for what becomes of each exchange, in order: to see what is made from them."""
        self._stand_ins = []
        try:
            yield self._stand_ins
        finally:
            self._stand_ins = None


def _widths(spans: list[Span]) -> list[int]:
    return [stop - start for start, stop in spans]


def exchange_of(model: nn.Module) -> Exchange | None:
    """By what the modules of a model that is cut exchange; None of one that is whole."""
    found: Exchange | None = getattr(model, "exchange_of_ranks", None)
    return found


@contextmanager
def silent(model: nn.Module) -> Iterator[None]:
    """Passes in the block are for looking at: no other rank is waited for, and nothing is evaluated for its sake."""
    exchange = exchange_of(model)
    if exchange is None:
        yield
        return
    before, exchange.is_silent = exchange.is_silent, True
    try:
        yield
    finally:
        exchange.is_silent = before


@contextmanager
def unprojected(model: nn.Module) -> Iterator[None]:
    """Of passes in the block nobody evaluates the logits."""
    exchange = exchange_of(model)
    if exchange is None:
        yield
        return
    with exchange.without_logits():
        yield


class Swaps:
    """Gives modules their new calls; one class for each kind of module and call."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange
        self._classes: dict[tuple[Any, ...], type] = {}

    def __repr__(self) -> str:
        return f"Swaps({len(self._classes)} classes)"

    def summed(self, module: nn.Module) -> None:
        """What it returns is one rank's part of a sum."""
        run, total = type(module).__call__, self._exchange.sum
        self._swap(module, ("summed",), __call__=lambda module, *args, **kwargs: total(run(module, *args, **kwargs)))

    def gathered(self, module: nn.Module, spans: list[Span]) -> None:
        """What it returns is one rank's span of the last axis."""
        run, gather = type(module).__call__, self._exchange.gather

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
            return gather(run(module, *args, **kwargs), spans)

        self._swap(module, ("gathered", *spans), __call__=call)

    def projecting(self, module: nn.Module, spans: list[Span]) -> None:
        """A linear layer that makes logits; it has the rows of one rank's part of the vocabulary."""
        self._swap(module, ("projecting", *spans), __call__=self._logits(type(module).__call__, spans))

    def embedding(self, module: nn.Module, spans: list[Span]) -> None:
        """An embedding that also makes logits; it has the rows of one rank's part of the vocabulary."""
        run, exchange = type(module).__call__, self._exchange
        start, stop = spans[exchange.rank]

        def call(module: nn.Module, tokens: mx.array) -> mx.array:
            mine = (tokens >= start) & (tokens < stop)
            found = run(module, mx.where(mine, tokens - start, 0))
            return exchange.embedded(mx.where(mine[..., None], found, mx.zeros((), found.dtype)))

        as_linear = self._logits(type(module).as_linear, spans)
        self._swap(module, ("embedding", *spans), __call__=call, as_linear=as_linear)

    def normed(self, module: nn.RMSNorm, total: int) -> None:
        """A norm over `total` features, of which this rank has some."""
        exchange = self._exchange

        def call(module: Any, x: mx.array) -> mx.array:
            wide = x.astype(mx.float32)
            squares = exchange.sum(mx.square(wide).sum(-1, keepdims=True))
            return module.weight * (wide * mx.rsqrt(squares / total + module.eps)).astype(x.dtype)

        self._swap(module, ("normed", total), __call__=call)

    def _logits(self, run: Callable[..., mx.array], spans: list[Span]) -> Callable[..., mx.array]:
        exchange = self._exchange

        def call(module: nn.Module, x: mx.array) -> mx.array:
            return exchange.logits(run(module, x), spans)

        return call

    def _swap(self, module: nn.Module, what: tuple[Any, ...], **methods: Callable[..., Any]) -> None:
        kind = type(module)
        if (kind, *what) not in self._classes:
            own = {**methods, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
            self._classes[kind, *what] = type(kind.__name__, (kind,), own)
        module.__class__ = self._classes[kind, *what]
