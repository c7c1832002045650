"""Run as a process of its own: splits tiny models, asks engines for answers, and prints one JSON line for each.

MLX checks no bounds, so a wrong configuration can end the process or take all memory: never in the test process.
"""

import json
import resource
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from tests.support.in_process_cluster import InProcessCluster, alone, inspections_of
from workers import zoo
from workers.engine import handovers
from workers.model import payload
from workers.model.inspection import inspect
from workers.model.split_model import SplitModel

MEMORY_BYTES = 8 << 30
# Ids of each pass of a model, by whether it has a cache.
PASSES = {
    False: [[[7, 3, 250, 19, 66, 5, 88, 41, 9, 120, 13, 2], [4, 71, 18, 9, 201, 33, 6, 54, 90, 12, 5, 77]]],
    True: [[[7, 3, 250, 19, 66, 5, 88, 41, 9, 120, 13, 2]], [[31, 8, 77, 45, 6]], [[9]], [[14]]],
}
# Beyond the sliding windows of tiny models, and short of them.
PROMPTS = ([(7 * place) % 251 + 5 for place in range(40)], [11, 30, 4, 99, 7])
MAX_TOKENS = 4
STRATEGIES = ("single-device-cached", "distributed-cached", "distributed-no-cache")
SPECIAL = {
    "tied": {"tie_word_embeddings": True},
    "3": {"num_hidden_layers": 3},
    "5": {"num_hidden_layers": 5},
    "one key head": {"num_key_value_heads": 1},
    "all key heads": {"num_key_value_heads": 4},
    "looped": {"num_loops": 2},
}


def main(cases):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps({"case": case} | outcome(case, Path(directory))), flush=True)


def outcome(case, directory):
    """`case` is an architecture, or an architecture, a colon and what is special: "4bit" or one of SPECIAL."""
    architecture, _, special = case.partition(":")
    try:
        bits = 4 if special == "4bit" else None
        zoo.make_tiny_model(architecture, directory, bits=bits, **SPECIAL.get(special, {}))
        expected = [alone(directory, prompt, MAX_TOKENS) for prompt in PROMPTS]
    except Exception as error:  # noqa: BLE001  reported to the test
        return {"not_run": str(error)}
    found = inspect(directory, inspections_of(directory))
    cuts = found.legal_cuts
    tried = [(cuts[len(cuts) // 2],), (cuts[0], cuts[-1])] if len(cuts) > 1 else [cuts] if cuts else []
    try:
        wrong = differences(directory, found, tried) if tried else []
        wrong += other_ids(directory, found, expected)
    except Exception as error:  # noqa: BLE001  reported to the test
        wrong = [f"{type(error).__name__}: {error}"]
    return {
        "wrong": wrong,
        "why_not": found.why_not,
        "cuts": len(cuts),
        "layers": found.num_layers,
        "embeds": found.embeds,
    }


def other_ids(directory, found, expected):
    """Where the answers of engines, under each strategy and all at once, are not the ids expected for each prompt; those
    with a cache are asked for the long one twice, so that parts of it are reused. Behind them one that all stages read
    for the first, of which nothing is kept.
    """
    handovers.LEAST_TOKENS = 1
    cluster = InProcessCluster(directory, num_stages=2, cache_dir=directory, chunk_tokens=16)
    possible = STRATEGIES[:1] if found.why_not else STRATEGIES
    wrong = []
    rounds = [(possible, PROMPTS, ""), (possible[:2], PROMPTS[:1], "")]
    if found.why_not is None and not found.whole_prompts:
        rounds.append((("distributed-prefill",), PROMPTS[:1], "nothing kept"))
    for strategies, prompts, scope in rounds:
        asked = {
            (strategy, number): cluster.generate(list(prompt), MAX_TOKENS, strategy=strategy, scope=scope)
            for strategy in strategies
            for number, prompt in enumerate(prompts)
        }
        cluster.run()
        for (strategy, number), sequence in asked.items():
            ids = cluster.failures.get(sequence, cluster.tokens[sequence])
            if ids != expected[number]:
                wrong.append(f"{strategy}, prompt {number}: {ids}, not {expected[number]}")
    return wrong


def differences(directory, found, tried):
    """Where stages, cut at each of the `tried`, do not give the logits of the whole model, with and without caches."""
    model = SplitModel.load(directory)
    whole = [(model, (0, model.num_layers))]
    expected = {cached: run(whole, passes, cached) for cached, passes in PASSES.items()}
    wrong = []
    for cuts in tried:
        bounds = list(zip((0, *cuts), (*cuts, found.num_layers), strict=True))
        stages = [(stage(directory, layers, found), layers) for layers in bounds]
        for cached, passes in PASSES.items():
            found_logits = run(stages, passes, cached)
            for number, (want, got) in enumerate(zip(expected[cached], found_logits, strict=True)):
                if mx.any(mx.isnan(want)).item() or not mx.array_equal(want, got).item():
                    wrong.append(f"cuts {cuts}, {'with' if cached else 'without'} cache, pass {number}")
    return wrong


def run(stages, passes, cached):
    caches = [model.make_cache(layers) if cached else None for model, layers in stages]
    logits = []
    for ids in passes:
        carried, tokens = None, mx.array(ids, mx.int32)
        for (model, layers), cache in zip(stages, caches, strict=True):
            carried = model.forward(tokens, layers=layers, cache=cache, payload=carried)
            model.evaluate(carried, cache)
            if layers[1] < model.num_layers:
                spec, buffers = payload.encode(carried)
                carried = payload.decode(json.loads(json.dumps(spec)), [bytes(buffer) for buffer in buffers])
        logits.append(carried)
    return logits


def stage(directory, layers, found):
    """A model with NaN in every weight of the layers (and of the head) that the stage does not own."""
    split = SplitModel.load(directory)
    split.unused = found.unused
    foreign = split.layers[: layers[0]] + split.layers[layers[1] :]
    if layers[1] < split.num_layers:
        foreign += [module for name, module in split.model.named_modules() if name.endswith("lm_head")]
    for module in foreign:
        module.update(tree_map(not_a_number, module.parameters()))
    return split


def not_a_number(weight):
    return mx.full(weight.shape, mx.nan, weight.dtype) if mx.issubdtype(weight.dtype, mx.floating) else weight


if __name__ == "__main__":
    main(sys.argv[1:])
