"""The process in which grammars are compiled first: `python -m cluster.serving.grammar_process MODEL`.

It reads a line of JSON, what an answer is to be, and writes one, the grammar or an error, as often as it is asked. It ends with its
input, or when a grammar ends it; on Linux it has a limit of memory, too.
"""

import sys
import threading
from pathlib import Path

import msgspec

from cluster.serving.apart import limit_memory
from cluster.serving.grammars import GrammarRefused, compile_grammar, tokens_of
from cluster.serving.grammars_apart import Compiled
from cluster.serving.requests import Structure

# As workers have for it, which compile it after this.
_STACK_BYTES = 256 << 20
_MORE_BYTES = 2 << 30  # than the process has when it begins


def _compiled(line: bytes, model_path: Path) -> Compiled:
    try:
        return Compiled(text=compile_grammar(msgspec.json.decode(line, type=Structure), tokens_of(model_path)))
    except GrammarRefused as error:
        return Compiled(error=str(error))


def _answer(model_path: Path) -> None:
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(_compiled(line, model_path)) + b"\n")
        sys.stdout.buffer.flush()


def main(model_path: Path) -> None:
    """Answer until nobody asks any more."""
    limit_memory(_MORE_BYTES)
    threading.stack_size(_STACK_BYTES)
    answering = threading.Thread(target=_answer, args=(model_path,))
    answering.start()
    answering.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
