"""Which prefixes of earlier prompts and answers can be used again on one route, and which are given up first.

The head of a route asks; the stages obey, so that they never disagree about what is there. Two ways, by architecture:

* *blocks*: the cache of 64 tokens each, named by a hash of all tokens up to the block's end, so equal names mean equal
  content and sequences share what they have in common; and, of a sequence that ended, its *tail*, what lies behind its last
  full block, for the conversation that goes on there;
* *snapshots*, for caches that cannot be cut (sliding windows, state spaces): the whole cache after some number of tokens,
  named by a hash of those tokens.

The hash starts from a *scope*, so that different scopes share nothing. Least recently used goes first, the end of a chain
before its beginning, pinned conversations last. Pure: no clock, no arrays, no sockets.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCK_TOKENS = 64
KEY_BYTES = 16
_MAX_CONVERSATIONS = 256

Key = bytes


def block_keys(tokens: Sequence[int], scope: str) -> list[Key]:
    """A key for each full block of `tokens`, in order; each covers everything before it."""
    digest = _start(scope)
    keys = []
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        digest.update(_bytes(tokens[end - BLOCK_TOKENS : end]))
        keys.append(digest.digest())
    return keys


def tail_keys(tokens: Sequence[int], scope: str) -> list[Key]:
    """The key of the tail that would end behind each token after the last full block, in order."""
    start = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
    digest = _start(scope)
    digest.update(_bytes(tokens[:start]))
    keys = []
    for token in tokens[start:]:
        digest.update(_bytes((token,)))
        keys.append(digest.digest())
    return keys


def snapshot_key(tokens: Sequence[int], scope: str) -> Key:
    """The key of the cache after exactly `tokens`."""
    digest = _start(scope)
    digest.update(_bytes(tokens))
    return digest.digest()


def _start(scope: str) -> "hashlib.blake2b":
    return hashlib.blake2b(scope.encode(), digest_size=KEY_BYTES)


def _bytes(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


@dataclass(frozen=True)
class Match:
    """What can be reused: the first `num_tokens` of a prompt, in the caches named by `keys`."""

    num_tokens: int
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Kept:
    """What a stage shall keep of a sequence: (start, end, key) in tokens; and the keys that it shall forget."""

    parts: tuple[tuple[int, int, Key], ...]
    evicted: tuple[Key, ...]


NO_MATCH = Match(0, ())


class PrefixDirectory:
    """The keys known on one route, at most `capacity` of them. snapshots: see the module."""

    def __init__(self, *, capacity: int, snapshots: bool):
        self._capacity = capacity
        self.snapshots = snapshots
        self._lengths: OrderedDict[Key, int] = OrderedDict()  # least recently used first
        self._in_use: dict[Key, int] = {}
        self._conversations: OrderedDict[str, tuple[Key, ...]] = OrderedDict()
        self.num_asked_tokens = 0
        self.num_reused_tokens = 0

    def __repr__(self) -> str:
        return f"PrefixDirectory({len(self._lengths)} of {self._capacity})"

    def __len__(self) -> int:
        return len(self._lengths)

    def __contains__(self, key: Key) -> bool:
        return key in self._lengths

    def restore(self, keys: Iterable[tuple[Key, int]]) -> list[Key]:
        """Keys and token counts that survived a restart, least recently used first; returns those beyond capacity."""
        for key, num_tokens in keys:
            self._lengths[key] = num_tokens
        return self._shrink()

    def match(self, tokens: Sequence[int], scope: str) -> Match:
        """The longest reusable prefix that leaves at least one token to compute; holds its keys until `release`."""
        found = self._match_snapshot(tokens, scope) if self.snapshots else self._match_blocks(tokens, scope)
        self.num_asked_tokens += len(tokens)
        self.num_reused_tokens += found.num_tokens
        for key in found.keys:
            self._in_use[key] = self._in_use.get(key, 0) + 1
        self._touch(found.keys)
        return found

    def _match_blocks(self, tokens: Sequence[int], scope: str) -> Match:
        keys = []
        for key in block_keys(tokens[: len(tokens) - 1], scope):
            if key not in self._lengths:
                break
            keys.append(key)
        start = len(keys) * BLOCK_TOKENS
        tails = tail_keys(tokens[: min(start + BLOCK_TOKENS, len(tokens)) - 1], scope)
        for length in range(len(tails), 0, -1):
            if tails[length - 1] in self._lengths:
                return Match(start + length, (*keys, tails[length - 1]))
        return Match(start, tuple(keys))

    def _match_snapshot(self, tokens: Sequence[int], scope: str) -> Match:
        best = NO_MATCH
        digest = _start(scope)
        hashed = 0
        for length in sorted({length for length in self._lengths.values() if length < len(tokens)}):
            digest.update(_bytes(tokens[hashed:length]))
            hashed = length
            if digest.digest() in self._lengths:
                best = Match(length, (digest.digest(),))
        return best

    def release(self, match: Match) -> None:
        """The sequence that `match` was made for has ended."""
        for key in match.keys:
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]

    def keep(self, tokens: Sequence[int], scope: str, conversation: str | None = None, *, tail: bool = False) -> Kept:
        """A sequence's cache covers exactly `tokens`: what of it to keep, and what goes for it.

        tail: also what lies behind the last full block.
        """
        if self.snapshots:
            keys = [snapshot_key(tokens, scope)] if tokens else []
            spans = [(0, len(tokens))] if tokens else []
        else:
            keys = block_keys(tokens, scope)
            spans = [(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS) for index in range(len(keys))]
            if tail and len(tokens) % BLOCK_TOKENS:
                spans.append((len(keys) * BLOCK_TOKENS, len(tokens)))
                keys.append(tail_keys(tokens, scope)[-1])
        parts = tuple((*span, key) for span, key in zip(spans, keys, strict=True) if key not in self._lengths)[
            : self._capacity
        ]
        for _, end, key in parts:
            self._lengths[key] = end
        self._touch(keys)
        evicted = self._follow(conversation, tuple(keys)) if conversation is not None else []
        return Kept(parts, (*evicted, *self._shrink()))

    def forget(self, keys: Iterable[Key]) -> None:
        """These turned out to be lost."""
        for key in keys:
            self._lengths.pop(key, None)

    def forget_conversation(self, conversation: str) -> list[Key]:
        """A conversation was deleted; returns the keys that only it had."""
        return self._give_back(self._conversations.pop(conversation, ()), keep=())

    def _follow(self, conversation: str, keys: tuple[Key, ...]) -> list[Key]:
        """A conversation goes on, or was edited: what it no longer contains is given back."""
        earlier = self._conversations.pop(conversation, ())
        self._conversations[conversation] = keys
        while len(self._conversations) > _MAX_CONVERSATIONS:
            self._conversations.popitem(last=False)
        return self._give_back(earlier, keep=keys)

    def _give_back(self, keys: tuple[Key, ...], *, keep: tuple[Key, ...]) -> list[Key]:
        shared = self._pinned() | set(keep) | set(self._in_use)
        gone = [key for key in keys if key not in shared and key in self._lengths]
        self.forget(gone)
        return gone

    def _pinned(self) -> set[Key]:
        return {key for keys in self._conversations.values() for key in keys}

    def _touch(self, keys: Sequence[Key]) -> None:
        """Most recently used now; the beginning of a chain counts as more recent than its end."""
        for key in reversed(keys):
            if key in self._lengths:
                self._lengths.move_to_end(key)

    def _shrink(self) -> list[Key]:
        if len(self._lengths) <= self._capacity:
            return []
        pinned = self._pinned()
        free = [key for key in self._lengths if key not in self._in_use]
        order = [key for key in free if key not in pinned] + [key for key in free if key in pinned]
        gone = order[: len(self._lengths) - self._capacity]
        self.forget(gone)
        return gone
