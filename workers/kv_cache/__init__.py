"""Kinds of KV cache, one file for each, thin over mlx-lm's own classes.

`kind` says what a kind is; `rows` reads and appends ranges of tokens of any cache; `probe` finds out what an architecture
takes. A worker holds the caches of its own layers only and nothing moves between workers to append.
"""

from workers.kv_cache.dynamic import Dynamic
from workers.kv_cache.keys_only import KeysOnly
from workers.kv_cache.kind import CacheFull, Kind, KvSettings
from workers.kv_cache.paged import Paged
from workers.kv_cache.quantized import Quantized
from workers.kv_cache.rotating import Rotating
from workers.kv_cache.static import Static

# By the name in `kv_cache.kind`: what makes the kind for one model.
KINDS: dict[str, type[Kind]] = {
    "dynamic": Dynamic,
    "static": Static,
    "rotating": Rotating,
    "quantized": Quantized,
    "keys-only": KeysOnly,
    "paged": Paged,
}

__all__ = ["KINDS", "CacheFull", "Kind", "KvSettings"]
