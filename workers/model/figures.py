"""What layers make of an input that every machine makes alike, in a few figures: where a machine computes wrongly, its differ.

The input is a fixed prompt and, behind the first layers, fixed hidden states in the place of what those would hand on: so each
stage is judged by itself, whatever the one before it does. The figures are sums of the output with fixed signs, some for each
position, so that they differ by as much as the output does, in proportion. `python -m workers.model.figures` prints those of a
directory's own layers, of which it holds a few at a time.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np

from protocol.messages import StageFigures
from protocol.values import LayerRange
from workers.model.inspection import inspect
from workers.model.payload import Payload, arrays, noise_like
from workers.model.split_model import SplitModel

_IDS = tuple((7 * place + 3) % 61 for place in range(16))
_SUMS = 16
_MOST_ROWS = 64
_HELD_BYTES = 1 << 30


def stage_figures(model: SplitModel, layers: LayerRange) -> StageFigures:
    """Of these layers, run in one pass with whatever is in memory of them."""
    return _figures(layers, _pass(model, layers, _received(model, layers.start)))


def own_figures(path: Path, ranges: Sequence[LayerRange], cache_dir: Path) -> Iterator[StageFigures]:
    """Of layers of the model in a directory, a legal part of them after the other, so that never many are in memory.

    Raises ModelError when mlx-lm cannot use the model.
    """
    found = inspect(path, cache_dir)
    model = SplitModel.load(path)
    model.unused = found.unused
    for layers in ranges:
        payload = _received(model, layers.start)
        cuts = [cut for cut in found.legal_cuts if layers.start < cut < layers.end]
        for bounds in zip((layers.start, *cuts), (*cuts, layers.end), strict=True):
            payload = _pass(model, LayerRange(*bounds), payload)
            if model.weights.num_bytes > _HELD_BYTES:
                model.release(path, ())
        yield _figures(layers, payload)


def _received(model: SplitModel, start: int) -> Payload:
    """In place of what the layers before `start` would hand on: of its structure, which no weight is read for."""
    return noise_like(model.structure_before(start, mx.array([_IDS])))


def _pass(model: SplitModel, layers: LayerRange, payload: Payload) -> Payload:
    cache = model.make_cache(layers)
    output = model.forward(mx.array([_IDS]), layers=layers, cache=cache, payload=payload)
    model.evaluate(output, cache)
    return output


def _figures(layers: LayerRange, output: Payload) -> StageFigures:
    found = [array for array in arrays(output) if mx.issubdtype(array.dtype, mx.floating) and array.ndim]
    rows = tuple(row for array in found for row in _rows(array))
    return StageFigures(layers=layers, rows=rows, is_exact=all(array.dtype == mx.float32 for array in found))


def _rows(array: mx.array) -> list[tuple[float, ...]]:
    values = np.array(array.astype(mx.float32)).reshape(-1, array.shape[-1])
    values = values[:: max(1, -(-len(values) // _MOST_ROWS))]
    signs = np.random.default_rng(1).integers(0, 2, (values.shape[1], _SUMS)).astype(np.float32) * 2 - 1
    return [tuple(row) for row in (values @ signs).tolist()]


def main(arguments: Sequence[str]) -> int:
    """Print the figures of each range as a JSON list."""
    parser = argparse.ArgumentParser(prog="figures", description="What a model's layers compute.")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--cache", required=True, type=Path, metavar="DIR", help="for what is found out of the model")
    parser.add_argument("ranges", nargs="+", metavar="START:END")
    options = parser.parse_args(arguments)
    ranges = [LayerRange(*map(int, each.split(":"))) for each in options.ranges]
    found = list(own_figures(options.model, ranges, options.cache))
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
