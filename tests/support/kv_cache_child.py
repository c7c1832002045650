"""Run as a process of its own: runs tiny models with every kind of cache, see `architecture_children`."""

import sys

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from tests.support.architecture_children import print_outcomes
from tests.support.shallow import shallow
from workers import zoo
from workers.kv_cache import KINDS, KvSettings
from workers.model.inspection import inspect_config
from workers.model.split_model import SplitModel

# Heads of 32 numbers, so that a group of quantized ones fits; "mha" gives every query head its own keys.
WIDE = {"hidden_size": 128, "head_dim": 32}
MHA = {"num_key_value_heads": 4, "num_kv_heads": 4, "n_kv_heads": 4}
# Layers of these use keys and values of earlier ones, so that not every cut is allowed.
SHARING = ("afm7", "gemma3n", "gemma4", "gemma4_text")
PASSES = [[(7 * place) % 251 + 3 for place in range(70)], [31, 8, 77, 45, 6], [9]]
EVERYTHING = [token for ids in PASSES for token in ids]
SETTINGS = {
    "static": KvSettings(kind="static", max_tokens=80),
    "rotating": KvSettings(kind="rotating", max_tokens=128),
    "quantized 4/8": KvSettings(kind="quantized", key_bits=4, value_bits=8),
}


def outcome(case, directory):
    """`case` is an architecture, or an architecture, a colon and "mha", which tries keys-only alone."""
    architecture, _, special = case.partition(":")
    reason = "its logits are not numbers"
    fewer = shallow(architecture)
    for overrides in (WIDE | MHA,) if special else (fewer | WIDE, fewer):
        try:
            zoo.make_tiny_model(architecture, directory, **overrides)
            split = SplitModel.load(directory)
            found = differences(split, cut_of(architecture, split, overrides), only="keys-only" if special else None)
        except Exception as error:  # noqa: BLE001  reported to the test
            reason = f"{type(error).__name__}: {error}"
        else:
            if found["uncached"] != "nan":
                return found
    return {"not_tried": reason}


def cut_of(architecture, split, overrides):
    if architecture not in SHARING:
        return split.num_layers // 2
    return inspect_config(zoo.tiny_config(architecture, **overrides)).legal_cuts[-1]


def differences(split, cut, only):
    """For each kind the largest difference of any logit from mlx-lm's own cache, whole and on two stages, or the reason
    why it is refused; and what mlx-lm's own cache differs from no cache. A kind that replaces none of mlx-lm's own caches is not
    tried a second time.
    """
    whole = (0, split.num_layers)
    uncached = split.model(mx.array([EVERYTHING]))
    plain = make_prompt_cache(split.model)
    own = mx.concatenate([split.model(mx.array([ids]), cache=plain) for ids in PASSES], axis=1)
    mx.eval(uncached, own)
    found = {"scale": size(uncached), "uncached": size(own - uncached)}
    kinds = found["kinds"] = {}
    for name in [only] if only else [*KINDS, "quantized 4/8"]:
        kv = SETTINGS.get(name, KvSettings(kind=name))
        reason = split.kv_kind(kv.kind).why_not(kv, whole)
        if reason is not None:
            kinds[name] = {"refused": reason}
            continue
        if kinds and types(split.make_cache(whole, kv).entries) == types(plain):
            kinds[name] = kinds["dynamic"]
            continue
        kinds[name] = {}
        if name != "quantized 4/8":  # but for its numbers as the quantized one
            kinds[name]["split"] = size(run(split, [(0, cut), (cut, whole[1])], kv) - own)
        if name in ("static", "keys-only", "quantized 4/8"):
            kinds[name]["whole"] = size(run(split, [whole], kv) - own)
    return found


def run(split, stages, kv):
    """Logits of every pass. Between two stages, sequences also fork and are saved and loaded on the way."""
    caches = [split.make_cache(layers, kv) for layers in stages]
    logits = []
    for number, ids in enumerate(PASSES):
        carried = None
        for layers, cache in zip(stages, caches, strict=True):
            carried = split.forward(mx.array([ids]), layers=layers, cache=cache, payload=carried)
            split.evaluate(carried, cache)
        logits.append(carried)
        if len(stages) > 1 and number == 0:
            forks = [cache.fork() for cache in caches]
            continue_wrongly(split, stages, caches)
            caches = forks
        if len(stages) > 1 and number == 1:
            caches = [split.make_cache(at, kv).load(old.save()) for at, old in zip(stages, caches, strict=True)]
    return mx.concatenate(logits, axis=1)


def continue_wrongly(split, stages, caches):
    """What the sequence that another forked off does must not matter to the other."""
    carried = None
    for layers, cache in zip(stages, caches, strict=True):
        carried = split.forward(mx.array([[1, 2, 3]]), layers=layers, cache=cache, payload=carried)
        split.evaluate(carried, cache)


def types(entries):
    return [type(entry) for entry in entries]


def size(array):
    value = mx.abs(array).max().item()
    return value if value == value else "nan"  # noqa: PLR0124


if __name__ == "__main__":
    print_outcomes(sys.argv[1:], outcome)
