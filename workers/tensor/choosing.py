"""Chooses the cuts of a model among the candidates, by trying: each role by itself, for a few tokens, then all together, in every way.

Owns the order of tries, so that few are needed. Knows neither the rules behind candidates nor how they are tried.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import product
from typing import Protocol

import msgspec
from mlx import nn
from mlx.utils import tree_flatten

from workers.tensor import candidates
from workers.tensor.leaves import EMBEDDINGS, is_linear, submodules
from workers.tensor.plan import CutPlan, ModuleCut, place, roles

# Of a rank's share of a layer, what may stay whole besides: more messages cost more than that.
MOST_WHOLE = 0.16

Modules = dict[str, tuple[ModuleCut, ...]]


class Tries(Protocol):
    """A tiny model, whole and cut."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def vocabulary_size(self) -> int: ...

    def right(self, plan: CutPlan) -> bool:
        """Whether the cut model gives the logits of the whole one."""

    def likely(self, plan: CutPlan, sizes: tuple[int, ...] | None = None) -> bool:
        """Whether it seems so."""

    def sizes_for(self, module: nn.Module, cut: ModuleCut) -> tuple[int, ...]:
        """The numbers of ranks into which the module's shapes allow to cut it so, of those that are tried."""


class Choice:
    """Of one model and number of ranks."""

    def __init__(self, tries: Tries, architecture: str, size: int):
        self._tries = tries
        self._nothing = CutPlan(architecture=architecture, size=size, modules={})
        self._instances = instances(tries.model)
        self._hidden = candidates.hidden_width(tries.model.layers)

    def __repr__(self) -> str:
        return f"Choice({self._nothing.architecture}, {self._nothing.size} ranks)"

    def plan(self) -> CutPlan:
        """The best cuts that are right together; without modules where none is."""
        cuts = {role: cut for role in self._instances if (cut := self._best(role)) is not None}
        modules: Modules = {role: (cut,) for role, cut in (cuts | self._tied(cuts)).items()}
        modules = _joined(modules, self._gathered)
        projections = [*self._projections(), None]
        for projection in projections if modules else ():
            found = self._settled(modules, projection)
            if self._tries.right(found):
                return found
        modules = self._one_by_one(modules)
        plans = (self._settled(modules, name) for name in projections)
        return next((plan for plan in plans if modules and self._tries.right(plan)), self._nothing)

    def _best(self, role: str) -> ModuleCut | None:
        """The first candidate that seems right alone."""
        if role.startswith(":"):  # leaves of the layer itself, between which anything may happen
            return None
        module = self._instances[role]
        for cut in candidates.candidates(module, self._hidden):
            sizes, alone = self._tries.sizes_for(module, cut), msgspec.structs.replace(cut, gathered=())
            if sizes and self._tries.likely(self._of({role: (alone,)}), sizes):
                return cut if self._tries.likely(self._of({role: (cut,)})) else alone
        return None

    def _tied(self, found: dict[str, ModuleCut]) -> dict[str, ModuleCut]:
        """Cuts of classes that stand at one place and are right only together: one uses the keys of another."""
        places: dict[str, dict[str, nn.Module]] = {}
        for role, module in self._instances.items():
            if role not in found and not role.startswith(":"):
                places.setdefault(place(role), {})[role] = module
        for some in places.values():
            options = [[(role, cut) for cut in self._by_heads(module)] for role, module in some.items()]
            for choice in product(*options) if len(some) > 1 else ():
                if self._tries.likely(self._of({role: (cut,) for role, cut in choice})):
                    return dict(choice)
        return {}

    def _by_heads(self, module: nn.Module) -> Iterator[ModuleCut]:
        for cut in candidates.candidates(module, self._hidden):
            if cut.kind == "heads" and self._tries.sizes_for(module, cut):
                yield cut

    @cached_property
    def _gathered(self) -> Modules:
        """Linear layers cut by their outputs, of every role, in case that nothing else is right or the real shapes allow nothing else."""
        names = {
            role: tuple(candidates.gathering(module, only_own=role.startswith(":")))
            for role, module in self._instances.items()
        }
        every: Modules = {role: (_gather(*found),) for role, found in names.items() if found}
        if not every or self._tries.right(self._of(every)):
            return every
        right: Modules = {}
        for role in every:
            leaves = [name for name in names[role] if self._tries.likely(self._of({role: (_gather(name),)}))]
            if leaves and self._tries.likely(self._of({role: (_gather(*leaves),)})):
                right[role] = (_gather(*leaves),)
        return right

    def _one_by_one(self, modules: Modules) -> Modules:
        """Where what is right alone is not so together: one after the other is added while it is."""
        kept: Modules = {}
        for role, cuts in modules.items():
            kept |= next(({role: (cut,)} for cut in cuts if self._tries.right(self._of(kept | {role: (cut,)}))), {})
        return kept

    def _settled(self, modules: Modules, projection: str | None) -> CutPlan:
        most_whole = MOST_WHOLE / self._nothing.size
        return msgspec.structs.replace(self._of(modules), projection=projection, most_whole=most_whole)

    def _of(self, modules: Modules) -> CutPlan:
        """Gathers all that may be gathered, so that everything is tried."""
        return msgspec.structs.replace(self._nothing, modules=modules)

    def _projections(self) -> Iterator[str]:
        """What might make the logits: linear layers outside the layers, then embeddings."""
        model = self._tries.model
        inside = {id(module) for layer in model.layers for module in layer.modules()}
        outside = {
            path: module for path, module in submodules(model) if id(module) not in inside and "weight" in module
        }
        wide = [path for path, module in outside.items() if module.weight.shape[0] == self._tries.vocabulary_size]
        yield from (path for path in wide if is_linear(outside[path]))
        yield from (path for path in wide if isinstance(outside[path], EMBEDDINGS))


def instances(model: nn.Module) -> dict[str, nn.Module]:
    """Of each role the module with the most weights."""
    found: dict[str, nn.Module] = {}
    for layer in model.layers:
        for role, module in roles(layer):
            if role not in found or _num_weights(module) > _num_weights(found[role]):
                found[role] = module
    return found


def _joined(first: Modules, second: Modules) -> Modules:
    return {role: (*first.get(role, ()), *second.get(role, ())) for role in first | second}


def _gather(*names: str) -> ModuleCut:
    return ModuleCut(kind="gather", gathered=names)


def _num_weights(module: nn.Module) -> int:
    return len(tree_flatten(module.parameters()))
