"""The memory of caches: what a request needs on each worker, what there is, and how many parts of past sequences fit.

Pure arithmetic over what the workers reported after loading. Everything that a cache may take is planned here: weights,
running sequences and kept prefixes together never exceed a worker's limit.
"""

import math
from collections.abc import Iterable

import msgspec

from strategy.prefix import BLOCK_TOKENS
from strategy.scheduling import PADDING_SHARE

# mlx-lm's caches grow by so many tokens at a time.
GROWTH_TOKENS = 256
# So many tokens before a running sequence has filled the room that is reserved for it, more is: what is on its way has to fit, too.
AHEAD_TOKENS = 64
# Of what weights leave of a worker's limit: kept prefixes by default, and activations.
PREFIX_SHARE = 0.25
ACTIVATION_SHARE = 0.1
DEFAULT_DISK_BYTES = 4_000_000_000
# A snapshot is as large as its sequence is long; this many tokens are assumed when counting how many fit.
SNAPSHOT_TOKENS = 2048


class KvGrowth(msgspec.Struct, frozen=True, array_like=True):
    """Caches that take `token_bytes` for each token, up to `max_tokens` (None: without end)."""

    token_bytes: int
    max_tokens: int | None


class KvNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What the caches of one sequence take on one stage. snapshots: they cannot be cut at any token."""

    fixed_bytes: int
    growth: tuple[KvGrowth, ...]
    snapshots: bool


class WorkerBudget(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's memory in bytes: for kept prefixes (all its routes together) and for running sequences."""

    prefix_bytes: int
    sequence_bytes: int


def worker_budget(*, limit_bytes: int, weights_bytes: int, prefix_limit: int | None, prefix: bool) -> WorkerBudget:
    """How a worker's memory beyond its weights is divided. prefix_limit: the user's, None for the default share.

    Sequences in one batch are padded, so that they take more than they need; what that can come to is left free.
    """
    free = max(limit_bytes - weights_bytes, 0)
    wanted = int(free * PREFIX_SHARE) if prefix_limit is None else prefix_limit
    prefix_bytes = min(wanted, free // 2) if prefix else 0
    return WorkerBudget(
        prefix_bytes=prefix_bytes,
        sequence_bytes=max(int((free * (1 - ACTIVATION_SHARE) - prefix_bytes) / (1 + PADDING_SHARE)), 0),
    )


def together(one: KvNeeds, other: KvNeeds) -> KvNeeds:
    """What the caches of both take; they can be cut where those of the first one can."""
    return KvNeeds(
        fixed_bytes=one.fixed_bytes + other.fixed_bytes, growth=one.growth + other.growth, snapshots=one.snapshots
    )


def room_for(needed_bytes: int, *, prefix_limit: int | None, prefix: bool) -> int:
    """How much weights have to leave of a limit, so that by `worker_budget` running sequences get so many bytes."""
    for_prefixes = (0.5 if prefix_limit is not None else PREFIX_SHARE) if prefix else 0.0
    return math.ceil(needed_bytes * (1 + PADDING_SHARE) / (1 - ACTIVATION_SHARE - for_prefixes))


def sequence_bytes(needs: KvNeeds, num_tokens: int) -> int:
    """What the caches of a sequence of `num_tokens` take on a stage."""
    grown = -(-num_tokens // GROWTH_TOKENS) * GROWTH_TOKENS
    total = needs.fixed_bytes
    for growth in needs.growth:  # no sum: it is asked for each worker of each decision
        total += growth.token_bytes * (grown if growth.max_tokens is None else min(grown, growth.max_tokens))
    return total


def reserved_tokens(num_tokens: int, most: int) -> int:
    """For how many tokens a running sequence of `num_tokens`, which can become `most`, has room reserved: a step ahead."""
    return min(((num_tokens + AHEAD_TOKENS) // GROWTH_TOKENS + 1) * GROWTH_TOKENS, most)


def caches_bytes(caches: Iterable[KvNeeds], num_tokens: int) -> int:
    """What the caches of one sequence take on a worker that has several parts of it."""
    return sum(sequence_bytes(needs, num_tokens) for needs in caches)


def grown_bytes(needs: KvNeeds, num_tokens: int) -> int:
    """The most that the caches of a stage can be with `num_tokens` in them; windows may still hold what they forget next."""
    grown = -(-num_tokens // GROWTH_TOKENS) * GROWTH_TOKENS
    return needs.fixed_bytes + sum(growth.token_bytes * grown for growth in needs.growth)


def part_bytes(needs: KvNeeds) -> int:
    """What one kept part takes on a stage: a block, or a snapshot of assumed length."""
    if needs.snapshots:
        return max(sequence_bytes(needs, SNAPSHOT_TOKENS), 1)
    return max(sum(growth.token_bytes for growth in needs.growth) * BLOCK_TOKENS, 1)


def prefix_capacity(stages: Iterable[tuple[KvNeeds, int]]) -> int:
    """How many parts every stage of a route has room for, from each stage's needs and bytes."""
    return min(room // part_bytes(needs) for needs, room in stages)
