"""Published shapes of models that a Mac or several can hold, and what follows from them: weights, KV and operations.

Counts only: no times, no machines.
"""

import msgspec

# 4-bit weights with a scale and a bias of 16 bits for each 64.
BITS_PER_WEIGHT = 4.5
KV_BYTES_PER_VALUE = 2


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder of equal layers. experts, active: of the feed-forward part; of how many, how many a token goes through."""

    name: str
    num_layers: int
    hidden: int
    kv_width: int
    ffn: int
    vocabulary: int
    experts: int = 1
    active: int = 1

    @property
    def _attention_weights(self) -> int:
        return 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width

    def layer_weights(self, experts: int) -> int:
        """Weights of a layer with so many experts."""
        return self._attention_weights + 3 * experts * self.hidden * self.ffn

    @property
    def active_weights(self) -> int:
        """What all layers read for one token."""
        return self.num_layers * self.layer_weights(self.active)

    @property
    def layer_bytes(self) -> float:
        return _quantized(self.layer_weights(self.experts))

    @property
    def head_bytes(self) -> float:
        """The projection to the vocabulary; the embedding has as many."""
        return _quantized(self.vocabulary * self.hidden)

    @property
    def total_bytes(self) -> float:
        return self.num_layers * self.layer_bytes + 2 * self.head_bytes

    @property
    def token_bytes(self) -> float:
        """Weights that one token reads, the head's too."""
        return _quantized(self.active_weights) + self.head_bytes

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token, all layers."""
        return self.num_layers * 2 * self.kv_width * KV_BYTES_PER_VALUE

    @property
    def payload_bytes(self) -> int:
        """Hidden states of one token, between two stages or in a sum."""
        return self.hidden * 2

    @property
    def attention_flops(self) -> float:
        """Of one token for each one before it, all layers."""
        return 4.0 * self.num_layers * self.hidden


def _quantized(weights: int) -> float:
    return weights * BITS_PER_WEIGHT / 8


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape(name="Llama 3.1 8B", num_layers=32, hidden=4096, kv_width=1024, ffn=14336, vocabulary=128256),
        ModelShape(name="Qwen2.5 32B", num_layers=64, hidden=5120, kv_width=1024, ffn=27648, vocabulary=152064),
        ModelShape(
            name="Mixtral 8x7B",
            num_layers=32,
            hidden=4096,
            kv_width=1024,
            ffn=14336,
            vocabulary=32000,
            experts=8,
            active=2,
        ),
        ModelShape(name="Llama 3.3 70B", num_layers=80, hidden=8192, kv_width=1024, ffn=28672, vocabulary=128256),
        ModelShape(name="Llama 3.1 405B", num_layers=126, hidden=16384, kv_width=1024, ffn=53248, vocabulary=128256),
    )
}
