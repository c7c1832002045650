"""What routes that share a worker cost each other.

A worker does what arrived first, then lets each head that it has run one step (`workers.engine.engine`). So, between two steps of a
head, every other head there has one at most; steps that arrive from another stage go before all heads, and wait only for what
runs when they come. Routes of one stage have a step ready at any time; the batches of longer ones come round. Pure arithmetic.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:  # see `strategy.cost.StageArrays`
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class Visits(msgspec.Struct, frozen=True):
    """What a route does on one of its workers. step_s: one step there; number: of its batches, which come round every `cycle_s`;
    is_head: they are steps of a head there, others arrive.
    """

    step_s: float
    number: float
    cycle_s: float
    is_head: bool

    def every(self, cycle_s: float) -> "Visits":
        """That come round in so many seconds."""
        return Visits(self.step_s, self.number, cycle_s, self.is_head)

    @property
    def share(self) -> float:
        """Of the worker's time."""
        return self.number * self.step_s / self.cycle_s

    @property
    def away_s(self) -> float:
        """Of a cycle, when none of them is there."""
        return max(self.cycle_s - self.number * self.step_s, 0.0)


class Elsewhere(msgspec.Struct, frozen=True, dict=True):
    """What a worker does on other routes. waits_turns: one's own steps there are those of a head, or of a rank, which others wait for."""

    visits: tuple[Visits, ...]
    waits_turns: bool = True

    @cached_property
    def round_s(self) -> float:
        """A step of each."""
        return sum(each.step_s for each in self.visits)

    @cached_property
    def share(self) -> float:
        """Of the worker's time."""
        return min(sum(each.share for each in self.visits), 1.0)

    def wait_s(self, away_s: float = math.inf) -> float:
        """Until what runs there has ended, for one who left so long ago, when a round began: half of one, since who knows which; but of
        the first all that is left.
        """
        return self.share * max(self.round_s / 2, self.round_s - away_s)

    def between_s(self, own_s: float) -> float:
        """What others do between two steps of `own_s` each, the next of which is ready when one ends."""
        return sum(_between_s(each, own_s, self._most(each)) for each in self.visits)

    def _most(self, visits: Visits) -> float:
        """Steps of others between two own ones."""
        if not visits.is_head:
            return visits.number
        return 1.0 if self.waits_turns else 0.0

    @cached_property
    def rows(self) -> list[tuple[float, float, float, float]]:
        """Of each of the visits: seconds, number, how long they are away, and how many at most come between."""
        return [(each.step_s, each.number, each.away_s, self._most(each)) for each in self.visits]


def _between_s(visits: Visits, own_s: float, most: float) -> float:
    """They come round in what is left of their cycle beside this worker, and wait for what runs there: half of an own step."""
    return visits.step_s * min(visits.number * own_s / (visits.away_s + own_s / 2), most)


class Busy(msgspec.Struct, frozen=True, dict=True):
    """What a route's workers do elsewhere, by stage of it; who does nothing is not in it."""

    elsewhere: Mapping[int, Elsewhere] = {}

    @cached_property
    def stages(self) -> "NDArray[np.intp]":
        """Whose workers are busy elsewhere."""
        import numpy as np

        return np.array(list(self.elsewhere))

    @cached_property
    def wait_s(self) -> float:
        """Until a step has its turn, on all stages together, where it comes seldom."""
        return sum(there.wait_s() for there in self.elsewhere.values())

    def between_s(self, own_s: "Floats") -> "Floats":
        """As of Elsewhere, of all stages at once. own_s: by place in `stages`."""
        import numpy as np

        number_s, away_s, most_s = self._arrays
        found: Floats = np.minimum(number_s * own_s / (away_s + 0.5 * own_s), most_s)
        return found if found.ndim == 1 else found.sum(axis=0)

    @cached_property
    def _arrays(self) -> "tuple[Floats, Floats, Floats]":
        """By visits, where there are several, and place in `stages`: seconds of all, how long they are away, and seconds of what comes
        between at most.
        """
        import numpy as np

        widest = max(len(there.visits) for there in self.elsewhere.values())
        none = (0.0, 0.0, 1.0, 0.0)
        table = np.array([there.rows + [none] * (widest - len(there.rows)) for there in self.elsewhere.values()])
        step_s, number, away_s, most = (
            table[:, 0].T if widest == 1 else np.ascontiguousarray(np.moveaxis(table, (2, 1), (0, 1)))
        )
        return number * step_s, away_s, most * step_s


NOWHERE_BUSY = Busy()
