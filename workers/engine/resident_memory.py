"""Which memory of the GPU stays resident: one wired limit for each worker, so that several on one Mac leave each other theirs."""

import mlx.core as mx


def keep_resident(limit_bytes: int) -> None:
    """Have MLX keep what is in use, up to that limit, from being paged out: where there is Metal, and as far as it allows."""
    if mx.metal.is_available():
        mx.set_wired_limit(min(limit_bytes, int(mx.device_info()["max_recommended_working_set_size"])))
