"""What a kind of KV cache is, and its settings.

A kind replaces the plain, growing caches that mlx-lm makes for full attention by objects of its own, which obey mlx-lm's
cache protocol. Caches of any other type (sliding windows, state-space layers, lists of several) stay as the model makes
them. A kind is made for one model and is used on the thread that owns MLX.
"""

from collections.abc import Callable
from typing import Any, Protocol

from mlx import nn
from mlx_lm.models.cache import KVCache

from protocol.values import KvSettings


class CacheFull(ValueError):
    """A sequence grows beyond the tokens that its cache was made for."""


class Kind(Protocol):
    """One kind for one model.

    shapes_masks: attention masks depend on the kind, so the stand-ins for other stages' layers must be of it too.
    """

    shapes_masks: bool

    def __init__(self, model: nn.Module): ...

    def why_not(self, settings: KvSettings, layers: tuple[int, int] | None = None) -> str | None:
        """The plain reason why the model or the settings do not allow this kind, or None. Reads weights only where the
        kind computes with them, and then only those of `layers` (half open; None: of every layer).
        """

    def make(self, entries: list[Any], settings: KvSettings) -> list[Any]:
        """A fresh list as mlx-lm made it, with the plain entries replaced. Allocates nothing yet.

        Raises ValueError when `why_not` has a reason.
        """

    def batches(self, settings: KvSettings) -> bool:
        """Whether several sequences can be merged into one batch."""


def is_plain(entry: Any) -> bool:
    """Whether this is the growing cache of keys and values that a kind may replace."""
    return type(entry) is KVCache


def with_plain_replaced(entries: list[Any], make: Callable[[int], Any]) -> list[Any]:
    """The list with `make(index)` in place of each plain entry."""
    return [make(index) if is_plain(entry) else entry for index, entry in enumerate(entries)]
