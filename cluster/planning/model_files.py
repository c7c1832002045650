"""What a model directory says of itself without loading it: files, sizes per layer, damage.

Reads `config.json` and the headers of the safetensors files; never a tensor. The safetensors format: 8 bytes of header
length (little endian), a JSON header with each tensor's `data_offsets`, then the data.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cluster.planning.hub import PATTERNS, download
from cluster.planning.progress import StartProgress
from protocol.errors import ModelError, UsageError
from protocol.values import Natural
from strategy.partition import ModelSizes

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embeddings?|tok_embeddings|embed_in)\.")
_MAX_HEADER_BYTES = 100 << 20
_MAX_CONFIG_BYTES = 16 << 20
_MOST_LAYERS, _MOST = 10_000, 1 << 53


def resolve_model(location: str, tell: Callable[[StartProgress], object] = lambda _: None) -> Path:
    """The directory of a model: `location` itself, or a hub id's snapshot, downloaded where it is not there yet.

    tell: how far a download is, from any thread.

    Raises:
        UsageError: it does not exist or is no directory.
        ModelError: config.json or weights are missing, or the hub does not give it.
    """
    path = Path(location)
    if not path.is_absolute():
        path = download(location, tell)
    if not path.is_dir():
        raise UsageError(
            f"the model directory {path} does not exist; give --model a directory in the Hugging Face layout"
        )
    check_files(path)
    read_config(path)
    if not weight_files(path):
        raise ModelError(f"{path} has no model*.safetensors file; download the weights or convert them with mlx_lm")
    return path


def check_files(path: Path) -> None:
    """Everything that is read of a model is a regular file: a pipe in place of one would be waited for without end.

    Raises:
        ModelError: one is not.
    """
    for file in sorted(path.iterdir()):
        if any(map(file.match, PATTERNS)) and not file.is_file():
            raise ModelError(f"{file} is no regular file; download the model again")


def check_weights(path: Path) -> None:
    """Read the header of every weight file. Raises ModelError for the first damaged one."""
    for file in weight_files(path):
        read_header(file)


def read_config(path: Path) -> dict[str, Any]:
    """The model's config.json. Raises ModelError when it is missing or no JSON object."""
    file = path / "config.json"
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(
                f"{file} is larger than {_MAX_CONFIG_BYTES >> 20} MB, so it is no configuration of a model"
            )
        config = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} has no config.json, so it is no model directory") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{file} names no model_type")
    for name, value in _numbers(config):
        most = _MOST_LAYERS if "layers" in name else _MOST
        if not -most <= value <= most:
            raise ModelError(f"{file} says that {name} is {str(value)[:40]}, which no model has")
    return config


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every whole number of a configuration and of those in it, by name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that mlx-lm loads, in order of their names."""
    return sorted(path.glob("model*.safetensors"))


class Tensor(msgspec.Struct, frozen=True):
    """Where a tensor's data lie, in bytes from the end of the header, and what kind of numbers they are, such as "BF16"."""

    data_offsets: tuple[Natural, Natural]
    dtype: str = ""


def read_header(file: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises ModelError for a damaged or truncated file."""
    try:
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES + 1
            if length > _MAX_HEADER_BYTES:
                raise ModelError(f"{file} is damaged: it has no safetensors header; download it again")
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            tensors = {name: msgspec.json.decode(raw, type=Tensor) for name, raw in header.items()}
    except (ValueError, RecursionError):
        raise ModelError(f"{file} is damaged: its safetensors header cannot be read; download it again") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    end = 0
    for start, stop in sorted(tensor.data_offsets for tensor in tensors.values()):
        if not end <= start <= stop:
            raise ModelError(f"{file} is damaged: its tensors overlap; download it again")
        end = stop
    size, needed = file.stat().st_size, 8 + length + end
    if size < needed:
        raise ModelError(f"{file} is truncated: {size:,} of {needed:,} bytes are there; download it again")
    return tensors


def read_sizes(path: Path, num_layers: int) -> ModelSizes:
    """Bytes per layer, embedding and the rest, from the headers of all weight files.

    Tensors of layers beyond `num_layers` (multi-token prediction heads, which mlx-lm drops) are not counted.
    Raises ModelError for damaged files.
    """
    layers, embedding, head, tied = [0] * num_layers, 0, 0, True
    for file in weight_files(path):
        for name, tensor in read_header(file).items():
            start, end = tensor.data_offsets
            if match := _LAYER.search(name):
                index = int(match.group(1))
                if index < num_layers:
                    layers[index] += end - start
            elif _EMBEDDING.search(name):
                embedding += end - start
            else:
                head += end - start
                tied = tied and not name.startswith(("lm_head.", "output.", "embed_out."))
    return ModelSizes(layers=tuple(layers), embedding=embedding, head=head, tied=tied)


def kinds_of_numbers(path: Path) -> dict[str, int]:
    """Bytes of weights of each kind, as the safetensors format names them, most first. Raises ModelError for damaged files."""
    found: dict[str, int] = {}
    for file in weight_files(path):
        for tensor in read_header(file).values():
            start, end = tensor.data_offsets
            found[tensor.dtype] = found.get(tensor.dtype, 0) + end - start
    return dict(sorted(found.items(), key=lambda each: -each[1]))
