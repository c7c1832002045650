"""Run as a process of its own: cuts tiny models into tensor ranks, which are threads, and prints one JSON line for each.

What ran MLX on several threads may abort when it ends, and MLX checks no bounds: never in the process that asks.
"""

import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from protocol.errors import ModelError
from workers import zoo
from workers.model import loading
from workers.tensor.cuts import apply, exchanges_in_a_pass, shares
from workers.tensor.group import ThreadGroup, on_threads
from workers.tensor.plan import CutPlan
from workers.tensor.trying import derive_here

MEMORY_BYTES = 8 << 30
MAX_TOKENS = 24
CHUNK = 64


def outcome(case: str, lengths: Sequence[int]) -> dict[str, Any]:
    """case: architecture, number of ranks and, behind another colon, "4bit". lengths: of the random prompts, in tokens."""
    architecture, size, *bits = case.split(":")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        try:
            zoo.make_tiny_model(architecture, path, bits=4 if bits else None)
            prompts = _prompts(loading.read_config(path), lengths)
            expected = _answers(loading.load(path), prompts)
        except Exception as error:  # noqa: BLE001  the boundary between us and any model's code
            return {"not_run": str(error)[:200]}
        try:
            plan = derive_here(loading.read_config(path), int(size))
        except ModelError as refusal:
            return {"refused": str(refusal)}
        return _compared(path, plan, prompts, expected)


def _compared(path: Path, plan: CutPlan, prompts: Sequence[list[int]], expected: "_Answers") -> dict[str, Any]:
    def on_rank(group: ThreadGroup) -> _Answers:
        model = loading.load(path)
        apply(model, plan, group)
        return _answers(model, prompts)

    ranks = on_threads(plan.size, on_rank)
    return {
        "difference": max(found.difference(expected) for found in ranks),
        "same_ids": all(found.ids == expected.ids for found in ranks),
        "share": max(shares(lambda: loading.load(path), plan)),
        "exchanges": _exchanges_a_layer(path, plan),
        "kinds": {role: [cut.kind for cut in cuts] for role, cuts in plan.modules.items()},
        "projection": plan.projection,
    }


def _exchanges_a_layer(path: Path, plan: CutPlan) -> float:
    model = loading.load(path)
    apply(model, plan, ThreadGroup.of(plan.size)[0])
    return exchanges_in_a_pass(model) / len(model.layers)


class _Answers:
    """logits: of each pass over each prompt: at once, in chunks, without a cache. ids: the greedy answers."""

    def __init__(self) -> None:
        self.logits: list[mx.array] = []
        self.ids: list[list[int]] = []

    def difference(self, expected: "_Answers") -> float:
        """The largest between two logits; what is masked is infinite in both."""
        return max(
            float(mx.where(mine == whole, 0.0, mx.abs(mine - whole)).max().item())
            for mine, whole in zip(self.logits, expected.logits, strict=True)
        )


def _answers(model: nn.Module, prompts: Sequence[list[int]]) -> _Answers:
    found = _Answers()
    for prompt in prompts:
        cache = make_prompt_cache(model)
        found.logits.append(_pass(model, prompt, cache))
        ids: list[int] = [_greedy(found.logits[-1])]
        while len(ids) < MAX_TOKENS:
            ids.append(_greedy(_pass(model, ids[-1:], cache)))
        found.ids.append(ids)
        cache = make_prompt_cache(model)
        found.logits += [_pass(model, prompt[start : start + CHUNK], cache) for start in range(0, len(prompt), CHUNK)]
    try:
        found.logits.append(_pass(model, prompts[-1], None))
    except (ValueError, TypeError, AttributeError, IndexError):  # of an architecture that runs with caches alone
        return found
    return found


def _pass(model: nn.Module, ids: list[int], cache: list[Any] | None) -> mx.array:
    logits: mx.array = model(mx.array([ids], mx.int32), cache=cache)
    mx.eval(logits, [entry.state for entry in cache or ()])
    return logits


def _greedy(logits: mx.array) -> int:
    return int(mx.argmax(logits[0, -1]).item())


def _prompts(config: Mapping[str, Any], lengths: Sequence[int]) -> list[list[int]]:
    draw = random.Random(0)
    vocabulary = min(320, config.get("vocab_size") or 320)
    return [[draw.randrange(5, vocabulary) for _ in range(length)] for length in lengths]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    lengths = [int(length) for length in sys.argv[1].split(",")]
    for case in sys.argv[2:]:
        print(json.dumps({"case": case} | outcome(case, lengths)), flush=True)
    os._exit(0)
