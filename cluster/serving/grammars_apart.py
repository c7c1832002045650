"""Compiles what answers are to be where it harms nobody: in a process of its own, which may be ended at any time.

What was compiled before is remembered, so that a program which asks the same again and again waits once.
"""

import sys
import threading
from collections import OrderedDict
from pathlib import Path

import msgspec

from cluster.serving.apart import Apart, EndedApart, StoppedApart
from cluster.serving.grammars import GrammarRefused
from cluster.serving.requests import Structure

# Workers compile it again, while others wait for their tokens.
LIMIT_S = 3.0
_COMMAND = (sys.executable, "-m", "cluster.serving.grammar_process")
_MOST_KEPT = 64


class Compiled(msgspec.Struct, omit_defaults=True):
    """What the process answers. text: the grammar; error: why there is none."""

    text: str | None = None
    error: str | None = None


class GrammarsApart:
    """See the module. checkout: where the process finds Tandem's code."""

    def __init__(self, model_path: Path, checkout: Path):
        self._apart = Apart((*_COMMAND, str(model_path)), checkout)
        self._kept: OrderedDict[tuple[str, str], Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"GrammarsApart({len(self._kept)} kept)"

    def compile(self, structure: Structure) -> str:
        """As `grammars.compile_grammar`. Raises GrammarRefused for what takes too long, too."""
        key = (structure.kind, structure.source)
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            found = self._asked(structure)
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        if found.text is None:
            raise GrammarRefused(found.error or "")
        return found.text

    def _asked(self, structure: Structure) -> Compiled:
        try:
            return msgspec.json.decode(self._apart.ask(msgspec.json.encode(structure), LIMIT_S), type=Compiled)
        except EndedApart:
            return Compiled(error=f"it takes longer than {LIMIT_S:g} s to compile, or ends the process that does")
        except StoppedApart as error:
            raise GrammarRefused("the cluster is stopping") from error

    def close(self) -> None:
        """End the process; nothing is compiled any more."""
        self._apart.close()
