"""Run as a process of its own: splits tiny models, asks engines for answers, see `architecture_children`."""

import json
import sys

import mlx.core as mx
from mlx.utils import tree_map

from tests.support.architecture_children import print_outcomes
from tests.support.in_process_cluster import InProcessCluster, alone, inspections_of
from tests.support.shallow import shallow
from workers import zoo
from workers.engine import handovers
from workers.model import payload
from workers.model.inspection import inspect
from workers.model.split_model import SplitModel

# Ids of each pass of a model, by whether it has a cache.
PASSES = {
    False: [[[7, 3, 250, 19, 66, 5, 88, 41, 9, 120, 13, 2], [4, 71, 18, 9, 201, 33, 6, 54, 90, 12, 5, 77]]],
    True: [[[7, 3, 250, 19, 66, 5, 88, 41, 9, 120, 13, 2]], [[31, 8, 77, 45, 6]], [[9]]],
}
# Beyond the sliding windows of tiny models, and short of them.
PROMPTS = (
    [(7 * place) % 251 + 5 for place in range(40)],
    [11, 30, 4, 99, 7],
    [200, 17, 5, 9, 31, 77, 8],
)  # the short ones are read together
# By strategy; without a cache every token is computed as the one before.
NUM_TOKENS = {"single-device-cached": 3, "distributed-cached": 3, "distributed-no-cache": 2, "distributed-prefill": 2}
SPECIAL = {
    "tied": {"tie_word_embeddings": True},
    "5": {"num_hidden_layers": 5},
    "one key head": {"num_key_value_heads": 1},
    "all key heads": {"num_key_value_heads": 4},
    "looped": {"num_loops": 2},
}


def outcome(case, directory):
    """`case` is an architecture, or an architecture, a colon and what is special: "4bit" or one of SPECIAL."""
    architecture, _, special = case.partition(":")
    try:
        bits = 4 if special == "4bit" else None
        zoo.make_tiny_model(architecture, directory, bits=bits, **shallow(architecture) | SPECIAL.get(special, {}))
        expected = [alone(directory, prompt, max(NUM_TOKENS.values())) for prompt in PROMPTS]
    except Exception as error:  # noqa: BLE001  reported to the test
        return {"not_run": str(error)}
    found = inspect(directory, inspections_of(directory))
    cuts = found.legal_cuts
    try:
        wrong = differences(directory, found, sorted({cuts[0], cuts[len(cuts) // 2], cuts[-1]})) if cuts else []
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
    """Where the answers of engines, under each strategy and all at once, are not the ids expected for each prompt. Behind them those
    with a cache are asked for the long one again, so that parts of it are reused, beside one that all stages read for the first, of
    which nothing is kept.
    """
    handovers.LEAST_TOKENS = 1
    cluster = InProcessCluster(directory, num_stages=2, cache_dir=directory, chunk_tokens=16)
    first = ["single-device-cached"] if found.why_not else list(NUM_TOKENS)[:3]
    again = [(strategy, 0, "") for strategy in first[:2]]
    if found.why_not is None and not found.whole_prompts:
        again.append(("distributed-prefill", 0, "nothing kept"))
    wrong = []
    for asked in ([(strategy, number, "") for strategy in first for number in range(len(PROMPTS))], again):
        sequences = {
            cluster.generate(list(PROMPTS[number]), NUM_TOKENS[strategy], strategy=strategy, scope=scope): (
                strategy,
                number,
            )
            for strategy, number, scope in asked
        }
        cluster.run()
        for sequence, (strategy, number) in sequences.items():
            ids = cluster.failures.get(sequence, cluster.tokens[sequence])
            if ids != expected[number][: NUM_TOKENS[strategy]]:
                wrong.append(f"{strategy}, prompt {number}: {ids}, not {expected[number]}")
    return wrong


def differences(directory, found, cuts):
    """Where stages, cut there, do not give the logits of the whole model, with and without caches."""
    model = SplitModel.load(directory)
    bounds = list(zip((0, *cuts), (*cuts, found.num_layers), strict=True))
    stages = [(stage(directory, layers, found), layers) for layers in bounds]
    wrong = []
    for cached, passes in PASSES.items():
        expected = run([(model, (0, model.num_layers))], passes, cached)
        for number, (want, got) in enumerate(zip(expected, run(stages, passes, cached), strict=True)):
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
    print_outcomes(sys.argv[1:], outcome)
