"""What checks find, and how it is shown."""

from collections.abc import Collection
from typing import Literal

import msgspec

from protocol.errors import as_sentence


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one check; "next" is what to do, which ends a list of them."""

    verdict: Literal["ok", "warning", "problem", "next"]
    text: str

    def parts(self, names: Collection[str]) -> tuple[str, str | None]:
        """What was found, and what to do about it, as sentences; None where there is nothing to do. names: that stay as they are."""
        clause, separator, advice = self.text.rpartition("; ")
        what = clause if separator else advice
        first = what.partition(" ")[0].rstrip(":")
        return as_sentence(what, first if first in names else None), as_sentence(advice) if separator else None

    @property
    def line(self) -> str:
        return f"{self.verdict:<8} {self.text}"
