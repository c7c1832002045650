"""Which tensors of a model's files some of its layers need: what MLX's own graph says, not what they are called.

The model is opened lazily and what was read from files is noted before its own code renames, stacks or splits it; every weight
that a stage reads leads back to some of these arrays. So it is exact for every architecture, and what mlx-lm drops is not
fetched. Only headers are read. On the MLX thread.
"""

from collections.abc import Sequence
from pathlib import Path

from protocol.values import LayerRange
from workers.model import loading
from workers.model.split_model import SplitModel

# What leads nowhere goes along while it is small: a model's code may have looked at its value.
_GOES_ALONG_BYTES = 4096


def needed_tensors(path: Path, ranges: Sequence[LayerRange]) -> frozenset[str] | None:
    """Names of the tensors that these ranges need; None for all of them, where the model's code reads weights while it opens.

    Raises ModelError when mlx-lm cannot use the model.
    """
    opened, tensors = loading.load_noting(path)
    model = SplitModel(opened)
    if model.weights.num_bytes:
        return None
    needed = {name for layers in ranges for name in model.needed_from(tensors, layers)}
    placed = model.weights.made_from(tensors, model.weights.everything)
    along = {name for name, array in tensors.items() if name not in placed and array.nbytes <= _GOES_ALONG_BYTES}
    return frozenset(needed | along)
