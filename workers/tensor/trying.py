"""Finds out how a model can be cut into tensor ranks, by trying on a tiny random model of the same structure.

Owns what counts as right: the logits of cut models, whose ranks are threads, against those of the whole one, within what float32
rounds, over a prompt in passes, next tokens and passes without caches. What is tried is `choosing`'s business. A process that ran MLX on several threads may abort when it ends, so `derive` tries in a child.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import msgspec
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from protocol.errors import ModelError, in_one_line
from workers import zoo
from workers.tensor.choosing import Choice, instances
from workers.tensor.cuts import apply
from workers.tensor.group import TensorGroup, on_threads
from workers.tensor.layout import fits
from workers.tensor.plan import CutPlan, ModuleCut
from workers.zoo.configurations import architecture_of, arguments_class, model_class

# Longer than the sliding windows, blocks and choices of a shrunk model several times over.
_IDS = tuple((7 * place + place * place // 9) % 251 + 3 for place in range(43))
_PASSES = (_IDS[:15], _IDS[15:16], _IDS[16:38], *((number,) for number in _IDS[38:]))
_BRIEFLY = (_IDS[:11], _IDS[11:12])
# Of the largest logit: what another order of additions may change, in many layers. Wrong cuts change it by a tenth and more.
_ROUNDING = 3e-4
# Logits beyond it say nothing of the size of the others.
_MASKED = 1e6
_TRY_S = 300
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers")
_MOST_LAYERS = 8

Passes = Sequence[tuple[int, ...]]


class TriedCuts:
    """One tiny model, run whole and on ranks. sizes: the numbers of ranks at which a cut has to be right."""

    def __init__(self, config: Mapping[str, Any], sizes: Sequence[int]):
        self._config = dict(config)
        self._sizes = tuple(sizes)
        self._threads = {size: ThreadPoolExecutor(size, "rank") for size in sizes}
        self._whole = zoo.random_model(config)
        self._weights = dict(tree_flatten(self._whole.parameters()))
        mx.eval(self._weights)
        self._expected: dict[tuple[Passes, bool], list[mx.array]] = {}
        self._uncached = _attempt(lambda: self._of_whole(_PASSES[:3], cached=False)) is not None

    @property
    def model(self) -> nn.Module:
        return self._whole

    @property
    def vocabulary_size(self) -> int:
        return self._of_whole(_BRIEFLY, cached=True)[0].shape[-1]

    def right(self, plan: CutPlan) -> bool:
        """Whether ranks cut so give the logits of the whole model, in every way and at every size."""
        return all(self._right_at(msgspec.structs.replace(plan, size=size)) for size in self._sizes)

    def likely(self, plan: CutPlan, sizes: tuple[int, ...] | None = None) -> bool:
        """The same for a few tokens, at these sizes or the smallest: a wrong cut shows there, nearly always."""
        return all(
            self._same(msgspec.structs.replace(plan, size=size), _BRIEFLY, cached=True)
            for size in sizes or self._sizes[:1]
        )

    def sizes_for(self, module: nn.Module, cut: ModuleCut) -> tuple[int, ...]:
        """Those at which the shapes of this module allow the cut."""
        return tuple(size for size in self._sizes if fits(module, cut, size))

    def _right_at(self, plan: CutPlan) -> bool:
        return self._same(plan, _PASSES, cached=True) and (
            not self._uncached or self._same(plan, _PASSES[:3], cached=False)
        )

    def _same(self, plan: CutPlan, passes: Passes, *, cached: bool) -> bool:
        found = _attempt(
            lambda: on_threads(
                plan.size, lambda group: self._on_rank(group, plan, passes, cached=cached), self._threads[plan.size]
            )
        )
        expected = self._of_whole(passes, cached=cached)
        return found is not None and all(
            _near(mine, whole) for rank in found for mine, whole in zip(rank, expected, strict=True)
        )

    def _on_rank(self, group: TensorGroup, plan: CutPlan, passes: Passes, *, cached: bool) -> list[mx.array]:
        model = model_class(plan.architecture)(arguments_class(plan.architecture).from_dict(dict(self._config)))
        model.eval()
        model.update(tree_unflatten(list(self._weights.items())))
        apply(model, plan, group)
        return logits(model, passes, cached=cached)

    def _of_whole(self, passes: Passes, *, cached: bool) -> list[mx.array]:
        if (passes, cached) not in self._expected:
            self._expected[passes, cached] = logits(self._whole, passes, cached=cached)
        return self._expected[passes, cached]


def logits(model: nn.Module, passes: Passes, *, cached: bool) -> list[mx.array]:
    """Of each pass over these ids: on top of one another, or without caches."""
    cache = make_prompt_cache(model) if cached else None
    found = []
    for ids in passes:
        found.append(model(mx.array([ids], mx.int32), cache=cache))
        mx.eval(found[-1], [entry.state for entry in cache or ()])
    return found


def derive(config: Mapping[str, Any], size: int) -> CutPlan:
    """How a model with this config.json is cut for so many ranks. Raises ModelError with the reason why it is not."""
    ended = subprocess.run(
        [sys.executable, "-m", __name__, str(size)],
        input=json.dumps(dict(config), default=str),
        env=os.environ | {"MLX_DISABLE_COMPILE": "1"},
        capture_output=True,
        text=True,
        timeout=_TRY_S,
        check=False,
    )
    said = ended.stdout.rpartition("\n")[2]
    if ended.returncode == 0:
        return msgspec.json.decode(said, type=CutPlan)
    raise ModelError(said if ended.returncode == 1 and said else f"trying to cut it failed: {ended.stderr[-300:]}")


def derive_here(config: Mapping[str, Any], size: int) -> CutPlan:
    """As `derive`, in this process, which should end by `os._exit`."""
    architecture = architecture_of(config)
    try:
        tried = _tried(config, (2,) if size == 2 else (2, min(size, 4)))
    except ModelError:
        raise
    except Exception as error:  # the boundary between us and any model's code
        raise ModelError(f"mlx-lm cannot run {architecture} here: {in_one_line(str(error), 160)}") from error
    found = Choice(tried, architecture, size).plan()
    if not found.modules:
        raise ModelError(
            f"no part of the layers of {architecture} gives the same logits when it is cut into tensor ranks"
        )
    return found


def _tried(config: Mapping[str, Any], sizes: Sequence[int]) -> TriedCuts:
    """Of the configuration in small, with few layers where those are of every kind; as it is where it does not shrink."""
    try:
        small = zoo.shrunk(config)
        model = zoo.random_model(small)
    except ModelError:
        raise
    except Exception:  # noqa: BLE001  the boundary between us and any model's code
        return TriedCuts(zoo.shrunk(config, only_windows=True), sizes)
    shallow = _shallow(small)
    fewer = None if shallow is None else _attempt(lambda: zoo.random_model(shallow))
    if shallow is not None and fewer is not None and set(instances(fewer)) == set(instances(model)):
        return TriedCuts(shallow, sizes)
    return TriedCuts(small, sizes)


def _shallow(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first layers alone; None where there are no more."""
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        fewer = _shallow(nested)
        return None if fewer is None else {**config, "text_config": fewer}
    counts = {key: config[key] for key in _LAYERS if isinstance(config.get(key), int)}
    if not counts or max(counts.values()) <= _MOST_LAYERS:
        return None
    return {**config, **dict.fromkeys(counts, _MOST_LAYERS)}


def _attempt(action: Callable[[], Any]) -> Any:
    """What the action returns; None where the model's code fails in whatever way it happens to."""
    try:
        return action()
    except Exception:  # noqa: BLE001  the boundary between us and any model's code
        return None


def _near(a: mx.array, b: mx.array) -> bool:
    """Equal but for rounding; what is not a number says nothing and is not."""
    size: Any = mx.max(mx.where(mx.abs(b) < _MASKED, mx.abs(b), 0.0)).item()
    return a.shape == b.shape and bool(mx.allclose(a, b, 0.0, _ROUNDING * size).item())


def main(arguments: Sequence[str]) -> int:
    """Reads a configuration as JSON, writes the plan for so many ranks as JSON, or why there is none."""
    try:
        said, code = msgspec.json.encode(derive_here(json.load(sys.stdin), int(arguments[0]))).decode(), 0
    except ModelError as refusal:
        said, code = str(refusal), 1
    sys.stdout.write("\n" + said)
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
