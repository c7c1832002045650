"""Models whose files look right and are not: what a failing disk or a copy that went wrong leaves."""

import shutil
from pathlib import Path

import numpy as np

from protocol.weight_pieces import tensor_places
from workers.model.weights_source import manifest_of


def damaged_copy(model: Path, copy: Path, layer: int) -> Path:
    """With another first row in each matrix of a layer; names, sizes, headers and so the digest stay. Of 32-bit weights."""
    shutil.copytree(model, copy)
    for file in manifest_of(copy).files:
        if file.is_small:
            continue
        data = np.memmap(copy / file.name, np.uint8, "r+")
        for name, (start, stop) in tensor_places(file, data[: file.header_bytes].tobytes()).items():
            if f".layers.{layer}." in f".{name}" and stop - start > 4096:
                first = data[start : start + 256].view(np.float32)
                first[:] = 3 - first
        data.flush()
    return copy
