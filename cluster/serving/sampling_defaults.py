"""How a model's makers want it sampled: what its `generation_config.json` says, where a request says nothing."""

import math
from pathlib import Path
from typing import Any

import msgspec

from cluster.serving.model_files import said_in
from protocol.values import Sampling

# Name: the least and the most that is taken; what lies beyond counts as not said.
_BOUNDS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 20),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 10.0),
}
# They say that nothing is changed.
_NEUTRAL = {"repetition_penalty": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0}


def sampling_defaults(model_path: Path) -> Sampling:
    """Greedy where the model says nothing of it, or that it is not to be sampled. A file that is none says nothing."""
    said = said_in(model_path / "generation_config.json", dict)
    if said.get("do_sample") is False:
        return Sampling()
    found = {name: said[name] for name, bounds in _BOUNDS.items() if _is_within(said.get(name), *bounds)}
    if "temperature" not in found and said.get("do_sample") is True:
        found["temperature"] = 1.0
    kept = {name: value for name, value in found.items() if value != _NEUTRAL.get(name)}
    return msgspec.convert(kept, Sampling, strict=False)


def _is_within(value: Any, low: float, high: float) -> bool:
    kinds = (int,) if type(low) is int else (int, float)
    return type(value) in kinds and math.isfinite(value) and low <= value <= high
