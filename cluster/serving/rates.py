"""Measured speeds as people count them."""

import msgspec

from strategy.chunking import MAX_TOKENS
from strategy.stage_speed import StageSpeed


class StageRates(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens a second of some layers by themselves, as they were measured: of one short sequence, and of a prompt in large chunks."""

    decode_tokens_per_s: float
    prefill_tokens_per_s: float

    @classmethod
    def of(cls, speed: StageSpeed) -> "StageRates":
        step_s, chunk_s = speed.decode_s(1, 0), speed.chunk_s(MAX_TOKENS, 0)
        return cls(decode_tokens_per_s=_rate(1, step_s), prefill_tokens_per_s=_rate(MAX_TOKENS, chunk_s))


def _rate(num_tokens: int, seconds: float) -> float:
    return round(num_tokens / max(seconds, 1e-9), 1)
