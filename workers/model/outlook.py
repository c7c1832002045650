"""What can be said of a model before it is loaded: where it can be cut, and what its caches will take.

For `doctor`, `python -m workers.model.outlook --model DIR --cache DIR [--kv JSON] [--ranks N ...]` prints the `Inspected` of a worker. Reads its configuration and no weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from protocol.messages import Inspected
from protocol.values import KvSettings
from workers.model.inspection import inspect
from workers.model.loading import read_config
from workers.model.planned_caches import planned_caches
from workers.tensor.rank_cuts import rank_cuts


def outlook(path: Path, cache: Path, kv: KvSettings | None, ranks: Sequence[int] = ()) -> Inspected:
    """Of the model in a directory, as a worker tells it. cache: where inspections are kept; kv: None where nobody asks for caches;
    ranks: numbers of workers that might compute it together.

    Raises ModelError for an unusable config.json.
    """
    found = inspect(path, cache)
    return Inspected(
        worker="",
        architecture=found.architecture,
        num_layers=found.num_layers,
        legal_cuts=found.legal_cuts,
        why_not=found.why_not,
        batches=found.batches,
        last_position_only=found.last_position_only,
        embeds=found.embeds,
        context_tokens=found.context_tokens,
        uncached_in_caches=found.uncached_in_caches,
        whole_prompts=found.whole_prompts,
        reads_together=found.reads_together,
        caches=() if kv is None else planned_caches(read_config(path), kv),
        rank_cuts=rank_cuts(path, ranks, cache),
    )


def main(arguments: Sequence[str]) -> int:
    """Print it as JSON."""
    parser = argparse.ArgumentParser(prog="outlook", description="What a model will take.")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--cache", required=True, type=Path, metavar="DIR", help="for what is found out of the model")
    parser.add_argument("--kv", default="{}", metavar="JSON", help="the kind of its caches")
    parser.add_argument("--ranks", default=(), type=int, nargs="*", metavar="N", help="how many compute it together")
    options = parser.parse_args(arguments)
    kv = msgspec.json.decode(options.kv, type=KvSettings)
    found = outlook(options.model, options.cache, kv, options.ranks)
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
