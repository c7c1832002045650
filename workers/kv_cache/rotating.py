"""`rotating`: keeps the first `keep` and the latest tokens, `max_tokens` in all, for long sequences in bounded memory.

mlx-lm's RotatingKVCache. Answers change once a sequence is longer: the model no longer sees what was forgotten.
"""

from typing import Any

from mlx import nn
from mlx_lm.models.cache import RotatingKVCache

from workers.kv_cache.kind import KvSettings, with_plain_replaced

DEFAULT_KEEP = 4


class Rotating:
    """See the module."""

    shapes_masks = True

    def __init__(self, model: nn.Module): ...

    def why_not(self, settings: KvSettings, layers: tuple[int, int] | None = None) -> str | None:  # noqa: ARG002
        if settings.max_tokens is None:
            return "a rotating cache needs the number of tokens that it keeps (max_tokens)"
        if settings.max_tokens <= _keep(settings) + 1:
            return f"a rotating cache of {settings.max_tokens} tokens has no room beside the first {_keep(settings)}"
        return None

    def make(self, entries: list[Any], settings: KvSettings) -> list[Any]:
        if reason := self.why_not(settings):
            raise ValueError(reason)
        return with_plain_replaced(entries, lambda _: RotatingKVCache(settings.max_tokens, _keep(settings)))

    def batches(self, settings: KvSettings) -> bool:
        # mlx-lm's batch of rotating caches forgets the first tokens too.
        return _keep(settings) == 0


def _keep(settings: KvSettings) -> int:
    return DEFAULT_KEEP if settings.keep is None else settings.keep
