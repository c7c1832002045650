"""The values that every process of a cluster means the same by: ranges, routes, peers, sampling, kinds of cache.

Owns their types, and the one place where ids and keys become raw buffers and back. Knows nothing of messages or sockets.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from strategy.prefix import KEY_BYTES, Key
from strategy.vocabulary import LayerRange, Route

Buffer = bytes | memoryview
# The coordinator's place among the senders of numbered messages; workers have their index in the plan.
COORDINATOR = 0xFFFF
# The name of a worker's link to it, which no worker can have.
TO_COORDINATOR = ""
Count = Annotated[int, Meta(ge=1, description="a whole number of at least 1")]
Natural = Annotated[int, Meta(ge=0, description="a whole number of at least 0")]
# A worker answers by it: beyond what the coordinator counts with, the answer would be refused and missing on the worker's link.
SequenceNumber = Annotated[int, Meta(ge=0, le=1 << 60)]
# Of one place so many of the likeliest tokens are told at most, as everywhere in OpenAI's API.
MAX_TOP_LOGPROBS = 20
# How the hidden states of a text become one vector: that of its last token, their mean, or that of its first token.
Pooling = Literal["last", "mean", "cls"]
# What carries the exchanges of workers that compute together: own connections, or mx.distributed's backends.
RankTransport = Literal["tcp", "ring", "jaccl"]
KvKind = Literal["dynamic", "static", "rotating", "quantized", "keys-only", "paged"]

__all__ = [
    "COORDINATOR",
    "MAX_TOP_LOGPROBS",
    "NO_CHANCE",
    "TO_COORDINATOR",
    "Buffer",
    "Count",
    "Grammar",
    "KvKind",
    "KvSettings",
    "LayerRange",
    "Natural",
    "Peer",
    "Pooling",
    "RankTransport",
    "Route",
    "Sampling",
    "SequenceNumber",
    "TokenLogprobs",
    "pack_ids",
    "pack_keys",
    "unpack_ids",
    "unpack_keys",
]


# Of workers and hosts: it stands in names of files, in options and on terminals.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One way to a host: a ZeroMQ endpoint, and the interface there that has it."""

    endpoint: str
    interface: str


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process receives: a ZeroMQ endpoint, and its CURVE public key (Z85 text).

    endpoint: on its own host, `host`, as `protocol.transport.addressing.this_host` names it; addresses: from others;
    answer_port: where it answers members who measure the way to it, or want what it has of models, at the same addresses; rank_port:
    where it hears the ranks of its tensor groups; 0 for nowhere.
    """

    endpoint: str
    public_key: str
    host: str = ""
    addresses: tuple[Address, ...] = ()
    answer_port: int = 0
    rank_port: int = 0


class KvSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of KV cache, a key of `workers.kv_cache.KINDS`, and for the kinds that take them its parameters.

    None is a kind's default. bits: width of quantized keys and values; key_bits and value_bits win over it. group_size:
    numbers that share one scale. max_tokens: of one sequence, prompt and answer together (static), or kept at most
    (rotating). keep: first tokens that a rotating cache never forgets.
    """

    kind: KvKind = "dynamic"
    bits: Count | None = None
    key_bits: Count | None = None
    value_bits: Count | None = None
    group_size: Count | None = None
    max_tokens: Count | None = None
    keep: Natural | None = None


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer is held to. text: llguidance's grammar; after: ids of the end of what is thought, behind which it begins; none
    where it begins with the answer.
    """

    text: str
    after: tuple[int, ...] = ()


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen, in mlx-lm's terms (`mlx_lm.sample_utils`). Temperature 0 is greedy.

    logprobs: of how many of the likeliest tokens the log probabilities are told beside that of the chosen one; None for none
    at all; min_tokens: end tokens have no chance before so many generated ones.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    min_tokens: int = 0
    grammar: Grammar | None = None

    @property
    def looks_back(self) -> bool:
        """Whether what may come next depends on the whole answer so far."""
        return self.grammar is not None or self.min_tokens > 0


# In place of minus infinity, which JSON cannot say: what OpenAI says of a token that is out of reach.
NO_CHANCE = -9999.0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The natural logarithm of a token's probability where it stands, and the likeliest ids there with theirs, best first.

    Of the model's logits after penalties and biases, before temperature. Always finite: of what cannot be at all the logarithm
    is NO_CHANCE, and it is not among the likeliest.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids or counts as a buffer of int32, little endian as on every machine that MLX runs on."""
    return array("i", ids).tobytes()


def unpack_ids(buffer: Buffer) -> list[int]:
    """The ids of `pack_ids`. Raises ValueError for a buffer that is no whole number of them."""
    ids = array("i")
    ids.frombytes(buffer)
    return ids.tolist()


def pack_keys(keys: Sequence[Key]) -> bytes:
    """Keys of prefixes as one buffer, KEY_BYTES each."""
    return b"".join(keys)


def unpack_keys(buffer: Buffer) -> tuple[Key, ...]:
    """The keys of `pack_keys`. Raises ValueError for a buffer that is no whole number of them."""
    raw = bytes(buffer)
    if len(raw) % KEY_BYTES:
        raise ValueError(f"{len(raw)} bytes are no keys of {KEY_BYTES}")
    return tuple(raw[start : start + KEY_BYTES] for start in range(0, len(raw), KEY_BYTES))
