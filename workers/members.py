"""Whom a worker lets in as a member of its cluster, as the coordinator's Beats say it."""

from collections.abc import Sequence


class Members:
    """The keys of the members. On any thread."""

    def __init__(self) -> None:
        self._keys: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Members({len(self._keys)})"

    def renew(self, keys: Sequence[str]) -> None:
        """These are the members now."""
        self._keys = frozenset(keys)

    def admits(self, key: str) -> bool:
        """Whether the owner of a key is one."""
        return key in self._keys
