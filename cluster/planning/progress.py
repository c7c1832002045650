"""How far something is that takes its time at a start: what is told of it, and in which words on the way to whoever waits."""

from typing import Any

import msgspec


class StartProgress(msgspec.Struct, frozen=True, kw_only=True):
    """text: what is being done, for people; done, total: bytes, both None where they cannot be counted."""

    text: str
    done: int | None = None
    total: int | None = None

    @property
    def line(self) -> dict[str, Any]:
        """As a line of the start's report has it."""
        counted = {} if self.done is None else {"done": self.done, "total": self.total}
        return {"progress": self.text, **counted}


def amount(num_bytes: int) -> str:
    """Such as "3.4 GB"."""
    unit, scale = _scale(num_bytes)
    return f"{num_bytes / scale:.1f} {unit}"


def amounts(done: int, total: int) -> str:
    """Such as "1.2 of 3.4 GB"."""
    return f"{done / _scale(total)[1]:.1f} of {amount(total)}"


def _scale(num_bytes: int) -> tuple[str, int]:
    return ("GB", 10**9) if num_bytes >= 10**8 else ("MB", 10**6)
