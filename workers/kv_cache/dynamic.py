"""`dynamic`: mlx-lm's own cache, which grows in steps of 256 tokens. The default."""

from typing import Any

from mlx import nn

from workers.kv_cache.kind import KvSettings


class Dynamic:
    """See the module."""

    shapes_masks = False

    def __init__(self, model: nn.Module): ...

    def why_not(self, settings: KvSettings, layers: tuple[int, int] | None = None) -> str | None:  # noqa: ARG002
        return None

    def make(self, entries: list[Any], settings: KvSettings) -> list[Any]:  # noqa: ARG002
        return entries

    def batches(self, settings: KvSettings) -> bool:  # noqa: ARG002
        return True
