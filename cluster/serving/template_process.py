"""The process in which a model's chat template runs: `python -m cluster.serving.template_process MODEL`.

A template is a program of whoever made the model. It reads a line of JSON, the messages and further variables, and writes one, the text or an error,
as often as it is asked. One that takes too long ends the process, and so does the end of its input; on Linux it has a
limit of memory, too.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.serving.apart import limit_memory
from cluster.serving.templates import LIMIT_S, Rendered, TemplateFailed
from cluster.serving.transformers_import import last_lines_read
from protocol.descriptors import limits_kept

with limits_kept(), last_lines_read():
    from cluster.serving.prompts import read_tokenizer, render_here

MAX_CHARACTERS = 64 << 20
_MORE_BYTES = 2 << 30  # than the process has when it begins


def _render(tokenizer: Any, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any]) -> Rendered:
    # Its signal ends the process, whatever it is at. Time of the processor: nobody is to blame for what else a machine does.
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        text = render_here(tokenizer, messages, variables)
    except TemplateFailed as error:
        return Rendered(error=str(error))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > MAX_CHARACTERS:
        return Rendered(error=f"it makes {len(text)} characters of them")
    return Rendered(text=text)


def main(model_path: Path) -> None:
    """Answer until nobody asks any more."""
    tokenizer = read_tokenizer(model_path)
    limit_memory(_MORE_BYTES)
    decode = msgspec.json.Decoder(tuple[list[dict[str, Any]], dict[str, Any]]).decode
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(msgspec.json.encode(_render(tokenizer, *decode(line))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
