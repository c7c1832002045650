"""What a model's output projection is given: the hidden states behind the last layer and the last norm, of which embeddings are made.

Owns the watch over calls outside the layers. mlx-lm's models return logits alone, so the modules outside their layers that
have no parts of their own are watched while a pass runs: the last one that makes logits of something else is the projection
(a linear layer, or the embedding the other way round). Some models multiply by a weight themselves; there the last call is the
norm, and its output is what they multiply. Nothing is evaluated, so logits that nobody asks for are never computed. Belongs to one
thread, as all of MLX does here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from protocol.errors import ModelError

_Call = tuple[mx.array, mx.array]  # what a module was given and what it made of it


class OutsideCalls:
    """The calls outside the layers. Modules stay usable as mlx-lm made them; calls are noted only while they are watched."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]):
        self._calls: list[_Call] | None = None
        inside = {id(module) for layer in layers for module in layer.modules()}
        kinds: dict[type, type] = {}
        for module in model.modules():
            if id(module) in inside or type(module) in kinds.values() or _has_parts(module):
                continue
            if type(module) not in kinds:
                kinds[type(module)] = self._watching(type(module))
            module.__class__ = kinds[type(module)]

    def __repr__(self) -> str:
        return f"OutsideCalls({'unwatched' if self._calls is None else len(self._calls)})"

    @contextmanager
    def watched(self) -> Iterator[list[_Call]]:
        """The calls of the passes in the block, as they come."""
        calls: list[_Call] = []
        self._calls = calls
        try:
            yield calls
        finally:
            self._calls = None

    def _watching(self, kind: type[nn.Module]) -> type[nn.Module]:
        ways = {name: self._noting(getattr(kind, name)) for name in ("__call__", "as_linear") if hasattr(kind, name)}
        return type(kind.__name__, (kind,), {**ways, "__module__": kind.__module__})

    def _noting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = run(module, *args, **kwargs)
            if self._calls is not None and args and _are_states(args[0]) and _are_states(output):
                self._calls.append((args[0], output))
            return output

        return call


def given_to_projection(calls: Sequence[_Call], vocabulary_size: int, shape: tuple[int, ...]) -> mx.array:
    """What the projection to logits was given, (batch, n, size), in a pass of tokens (batch, n); n may be 1 where it was limited
    to the last position. Raises ModelError where that does not show.
    """
    for given, made in reversed(calls):
        if given.shape[-1] == vocabulary_size:
            continue  # what is done to logits
        hidden = given if made.shape[-1] == vocabulary_size else made
        if hidden.shape[:2] in (shape, (shape[0], 1)):
            return hidden
        break
    raise ModelError(
        "this model's architecture does not show its hidden states, so that no embeddings can be made with it"
    )


def _has_parts(module: nn.Module) -> bool:
    return bool(tree_flatten(module.children(), is_leaf=nn.Module.is_module))


def _are_states(value: Any) -> bool:
    return isinstance(value, mx.array) and value.ndim == 3 and mx.issubdtype(value.dtype, mx.floating)
