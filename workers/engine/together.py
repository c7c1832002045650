"""What the ranks of a group do as one: begin a sequence all or none, and compute a step all or none.

Where one of them fails the group is broken, so that nobody waits for it; a new epoch brings them together again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx

from protocol.values import Route
from workers.engine.fitness import UnfitMessage
from workers.tensor.group import TensorGroup

Groups = Mapping[Route, TensorGroup]


def agree(groups: Groups, route: Route, *, is_so: bool) -> bool:
    """Whether it is so on all ranks of a route; on one that is computed by no group, here. Raises GroupBroken."""
    group = groups.get(route)
    if group is None:
        return is_so
    with or_nobody(groups, route):
        return group.sum(mx.array(is_so, mx.int32)).item() == group.size


@contextmanager
def or_nobody(groups: Groups, route: Route) -> Iterator[None]:
    """What is done in the block is done by all ranks of a route. What a message does not fit, it does not fit on any of them."""
    try:
        yield
    except UnfitMessage:
        raise
    except Exception as error:
        if route in groups:
            groups[route].failed(error)
        raise
