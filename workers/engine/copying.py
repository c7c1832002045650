"""Hands what this worker's stage keeps of past sequences to the worker that would take its layers over.

Owns what is still to be handed over, and how much of it is under way. Goes on when it is told to, between steps. The rules:

1. Behind a step goes one part, behind a prompt's chunk as many as it has blocks: so copies keep up, and take a small share
   of the time that the step took. More goes while nothing else is to do.
2. What sequences of this epoch left or begin with goes first. What else is from before goes only while nothing else is to
   do, most recently used first.
3. Few parts are under way: what the link or the holder cannot take yet waits here, not in front of a step.
4. No part goes twice in an epoch, unless it was given up meanwhile. Nor does one so large that a step behind it would wait.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.messages import CopyPrefix
from protocol.transport import DataLinks
from protocol.values import Route
from strategy.copies import copy_holder
from strategy.prefix import BLOCK_TOKENS, Key
from workers.cache.prefix_store import PrefixStore
from workers.model.stage_loading import LoadedStages

log = logging.getLogger(__name__)

# One on its way while the holder takes the other.
_FEW = 2
LARGEST_PART_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class _Task:
    """For one epoch: what the stage of `route` keeps in `store` goes to `holder`."""

    route: Route
    holder: str
    store: PrefixStore


class Copying:
    """See the module. name: this worker's."""

    def __init__(self, name: str, links: DataLinks):
        self._name = name
        self._links = links
        self._task: _Task | None = None
        self._fresh: dict[Key, None] = {}  # in order
        self._earlier: dict[Key, None] = {}
        self._handed_over: set[Key] = set()
        self._num_under_way = 0
        self._most_under_way = _FEW
        self._num_due = 0  # behind the steps that were done

    def __repr__(self) -> str:
        return f"Copying({len(self._fresh)} fresh, {len(self._earlier)} earlier, {self._num_under_way} under way)"

    def renew(self, stages: LoadedStages) -> None:
        """A new epoch, whose holder has nothing yet."""
        self._task = self._task_of(stages)
        self._fresh.clear()
        self._handed_over.clear()
        self._num_under_way = 0
        self._most_under_way = _FEW
        self._num_due = 0
        self._earlier = {}
        if self._task is not None:
            self._earlier = dict.fromkeys(key for key, _ in reversed(self._task.store.known))
            log.info("%s holds copies of what is kept here, %d parts so far", self._task.holder, len(self._earlier))

    def _task_of(self, stages: LoadedStages) -> _Task | None:
        route = stages.copied
        holder = None if route is None else copy_holder(route, self._name)
        if route is None or holder is None:
            return None
        return _Task(route, holder, stages.executors[route].prefixes)

    def in_use(self, route: Route, keys: Iterable[Key]) -> None:
        """The stage of a route keeps these from now on, or a sequence begins with them."""
        if self._task is None or route != self._task.route:
            return
        for key in keys:
            if key not in self._handed_over:
                self._earlier.pop(key, None)
                self._fresh[key] = None

    def dropped(self, route: Route, keys: Iterable[Key]) -> None:
        """The stage of a route gave these up, and so does the holder."""
        if self._task is None or route != self._task.route:
            return
        for key in keys:
            self._fresh.pop(key, None)
            self._earlier.pop(key, None)
            self._handed_over.discard(key)

    def stepped(self, num_tokens: int) -> None:
        """A step of so many tokens a row was done."""
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        self._num_due += num_blocks
        self._most_under_way = max(num_blocks, _FEW)

    def arrived(self) -> None:
        """The holder took a part, or refused it."""
        self._num_under_way = max(self._num_under_way - 1, 0)

    def go_on(self, *, is_idle: bool) -> bool:
        """Hand over what may go now; whether anything went. is_idle: nothing else is to do."""
        went = False
        while self._task is not None and self._num_under_way < self._most_under_way and (self._num_due or is_idle):
            is_earlier = not self._fresh
            waiting = self._earlier if is_earlier else self._fresh
            if not waiting or (is_earlier and not is_idle):
                self._num_due = 0
                break
            key = next(iter(waiting))
            del waiting[key]
            if self._hand_over(key, self._task, is_earlier=is_earlier):
                self._num_due = max(self._num_due - 1, 0)
                went = True
        return went

    def _hand_over(self, key: Key, task: _Task, *, is_earlier: bool) -> bool:
        """Whether the part is there and can be sent."""
        is_too_large = task.store.bytes_of((key,)) > LARGEST_PART_BYTES
        exported = None if is_too_large else task.store.export(key)
        if exported is None:
            return False
        spec, buffers = exported
        copy = CopyPrefix(
            route=task.route, worker=self._name, layers=task.store.layers, part=spec, is_earlier=is_earlier
        )
        self._links.send(task.holder, copy, [key, *buffers])
        self._handed_over.add(key)
        self._num_under_way += 1
        return True
