"""Cuts a lazily loaded model for one rank, as a plan says.

Owns what is done to the modules: weights become lazy parts of themselves, attributes that count heads or features the rank's own
numbers, and calls exchange with the other ranks. Nothing is read from disk here. The logits are gathered on every rank. Which cut
a module gets is decided by shapes alone, so all ranks decide alike.
"""

from collections.abc import Callable, Iterable

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from workers.tensor.exchange import Exchange, Swaps, exchange_of, silent
from workers.tensor.group import TensorGroup, ThreadGroup
from workers.tensor.layout import DoesNotFit, Layout, Piece, fits, local_ends, local_width
from workers.tensor.leaves import EMBEDDINGS, keep_inputs, keep_outputs, out_width, submodules, taken
from workers.tensor.plan import CutPlan, ModuleCut, pattern, place, roles
from workers.tensor.spans import feature_spans


def apply(model: nn.Module, plan: CutPlan, group: TensorGroup) -> Exchange:
    """Makes the model this rank's part of itself; it is used and split into stages as before. Returns what its modules exchange by."""
    assert plan.size == group.size
    exchange = Exchange(group, plan)
    layers = list({id(layer): layer for layer in model.layers}.values())  # some models run one layer several times
    cutter = _Cutter(exchange, _torn(layers, plan))
    for layer in layers:
        cutter.layer(layer)
    if plan.projection is not None:
        cutter.projection(dict(submodules(model))[plan.projection])
    model.exchange_of_ranks = exchange
    return exchange


def cut_likewise(model: nn.Module, opened: nn.Module) -> nn.Module:
    """The same model, opened anew, cut as this one is, if it is."""
    exchange = exchange_of(model)
    if exchange is not None:
        apply(opened, exchange.plan, exchange.group)
    return opened


def shares(open_model: Callable[[], nn.Module], plan: CutPlan) -> tuple[float, ...]:
    """By rank, its share of the bytes of the layers' weights; parts that several ranks hold count for each. From shapes alone.

    open_model: makes the model anew, for each rank; nothing of it is evaluated.
    """
    found = []
    for group in ThreadGroup.of(plan.size):
        model = open_model()
        whole = sum(layer_bytes(model))
        apply(model, plan, group)
        found.append(sum(layer_bytes(model)) / whole)
    return tuple(found)


def exchanges_in_a_pass(model: nn.Module) -> int:
    """How often the ranks of a model that was cut wait for one another while one token passes; each time costs at least what a
    message does. From a graph that nobody computes.
    """
    exchange = exchange_of(model)
    if exchange is None:
        return 0
    before = exchange.num_exchanges
    with silent(model):
        model(mx.zeros((1, 1), mx.int32), cache=make_prompt_cache(model))
    return exchange.num_exchanges - before


def layer_bytes(model: nn.Module) -> list[int]:
    """By layer, the bytes of its weights; what was counted already, of a layer that runs twice, counts as 0."""
    seen: set[int] = set()
    found = []
    for layer in model.layers:
        arrays = {id(array): array for array in _weights(layer).values() if id(array) not in seen}
        seen |= set(arrays)
        found.append(sum(array.nbytes for array in arrays.values()))
    return found


def _torn(layers: Iterable[nn.Module], plan: CutPlan) -> set[str]:
    """Where modules stand of which some cannot be cut by heads: none is then, since some use the keys of others."""
    return {
        place(role)
        for layer in layers
        for role, module in roles(layer)
        for cut in plan.modules.get(role, ())
        if cut.kind == "heads" and not fits(module, cut, plan.size)
    }


class _Cutter:
    """Cuts for one rank. torn: where nothing is cut by heads."""

    def __init__(self, exchange: Exchange, torn: set[str]):
        self._torn = torn
        self._rank = exchange.rank
        self._swaps = Swaps(exchange)
        self._plan = exchange.plan

    def layer(self, layer: nn.Module) -> None:
        before = _weights(layer)
        may_be_gathered = [leaf for role, module in roles(layer) for leaf in self._module(module, self._cuts(role))]
        self._gather_largest(layer, before, may_be_gathered)

    def projection(self, module: nn.Module) -> None:
        spans = feature_spans(out_width(module), self._plan.size)
        if spans is None:
            return
        keep_outputs(module, [spans[self._rank]])
        if isinstance(module, EMBEDDINGS):
            self._swaps.embedding(module, spans)
        else:
            self._swaps.projecting(module, spans)

    def _cuts(self, role: str) -> list[ModuleCut]:
        cuts = self._plan.modules.get(role, ())
        return [cut for cut in cuts if cut.kind != "heads" or place(role) not in self._torn]

    def _module(self, module: nn.Module, cuts: Iterable[ModuleCut]) -> Iterable[nn.Module]:
        """Returns the leaves that may be gathered besides."""
        for cut in cuts:
            try:
                layout = Layout(module, cut, self._plan.size)
                changes = [(part, layout.ranges(part, self._rank)) for part in layout.parts]
            except DoesNotFit:
                continue
            self._count(layout, changes)
            for part, ranges in changes:
                self._part(part, ranges)
            if cut.summed:
                self._swaps.summed(module)
            return layout.matching(cut.gathered)
        return []

    def _part(self, part: Piece, ranges: list[tuple[int, int]]) -> None:
        if part.name is not None:
            assert isinstance(part.cut.axis, int)
            part.owner[part.name] = taken(part.owner[part.name], part.cut.axis, ranges)
        elif part.cut.axis == "out":
            keep_outputs(part.owner, ranges)
        else:
            keep_inputs(part.owner, ranges, with_bias=self._rank == 0)
        if part.cut.summed:
            self._swaps.summed(part.owner)

    def _count(self, layout: Layout, changes: list[tuple[Piece, list[tuple[int, int]]]]) -> None:
        """Attributes become the numbers of this rank, which norms over what is cut are told before."""
        for norm in layout.matching(layout.cut.norms):
            self._swaps.normed(norm, norm.weight.size)
        for found, _, module, name in list(layout.attributes(layout.cut.counts)):
            setattr(module, name, self._heads(layout, layout.cut.counts[found]))
        ranges_of = {pattern(part.path): ranges for part, ranges in changes}
        for found, _, module, name in list(layout.attributes(layout.cut.widths)):
            place, _, block = layout.cut.widths[found].partition("/")
            ranges = ranges_of.get(place)
            if ranges is not None:
                ranges = [ranges[int(block)]] if block else ranges
                is_list = isinstance(getattr(module, name), list)
                setattr(module, name, local_ends(ranges) if is_list else local_width(ranges))

    def _heads(self, layout: Layout, what: str) -> int:
        heads = layout.heads()[self._rank]
        queries, keys = local_width([heads.queries]), local_width([heads.keys])
        return {"queries": queries, "keys": keys, "shared": queries // keys}[what]

    def _gather(self, leaf: nn.Module) -> None:
        spans = feature_spans(out_width(leaf), self._plan.size)
        if spans is not None:
            keep_outputs(leaf, [spans[self._rank]])
            self._swaps.gathered(leaf, spans)

    def _gather_largest(self, layer: nn.Module, before: dict[str, mx.array], leaves: list[nn.Module]) -> None:
        """Until little of the layer is whole."""
        total = sum(array.nbytes for array in before.values())
        for leaf in sorted(leaves, key=lambda leaf: -leaf["weight"].nbytes):
            after = _weights(layer)
            whole = sum(array.nbytes for name, array in before.items() if after.get(name) is array)
            if whole <= self._plan.most_whole * total:
                return
            self._gather(leaf)


def _weights(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))
