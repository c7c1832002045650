"""Finds out, before any weight is read, at which layers a model can be cut and what crosses a cut.

Owns what is tried: a tiny random model of the same architecture and layer structure, see `trial`; what it does not
show to be exact is not done. Results are kept as JSON by configuration and version of mlx-lm. Nothing here raises for a
strange model: it is refused with a reason. `python -m workers.model.inspection --all` prints the table of every
architecture.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from mlx.utils import tree_flatten

from protocol.errors import ModelError, in_one_line
from protocol.version import installed_version
from workers import zoo
from workers.model import loading
from workers.model.trial import Trial
from workers.tensor.cuts import shares as rank_shares
from workers.tensor.trying import derive
from workers.zoo.configurations import architecture_of

REVISION = 6
MAX_TRIED_WEIGHTS = 50_000_000
_CONTEXT_KEYS = ("max_position_embeddings", "model_max_length", "n_positions", "max_seq_len", "n_ctx", "seq_length")


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What splitting this model takes.

    legal_cuts: every layer index c, 0 < c < num_layers, such that a stage may end before c and the next begin at c;
    any selection of them is exact together. why_not: a clause when there is none. unused: for a cut, the parts of a
    payload (`SplitModel.unused`) that nobody reads. batches: sequences of different lengths can run as one batch.
    last_position_only: the projection can be limited to the last position. context_tokens: None when the configuration
    says nothing. uncached_in_caches: passes without caches are wrong, so they need caches that are thrown away.
    whole_prompts: what a prompt's chunks are changes the logits, so a prompt must run as in mlx-lm, from its beginning.
    reads_together: prompts of different lengths can be read in one pass. embeds: what the projection to logits is given can be had.
    """

    architecture: str
    num_layers: int
    legal_cuts: tuple[int, ...]
    why_not: str | None = None
    unused: dict[int, tuple[tuple[str | int, ...], ...]] = {}
    batches: bool = False
    last_position_only: bool = False
    context_tokens: int | None = None
    uncached_in_caches: bool = True
    whole_prompts: bool = True
    reads_together: bool = False
    embeds: bool = False


def inspect(path: Path, cache_dir: Path | None) -> Inspection:
    """The inspection of the model in a directory, from `cache_dir` when it is there.

    Raises ModelError when the directory has no usable config.json; everything else is a result.
    """
    config = loading.read_config(path)
    if cache_dir is None:
        return inspect_config(config)
    kept = cache_dir / f"inspection-{_fingerprint(config)}.json"
    try:
        return msgspec.json.decode(kept.read_bytes(), type=Inspection)
    except (OSError, ValueError):
        found = inspect_config(config)
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(kept)
    return found


def inspect_config(config: Mapping[str, Any]) -> Inspection:
    """The inspection of a model with this config.json, without cache."""
    architecture = architecture_of(config)
    refused = Inspection(
        architecture=architecture, num_layers=_layers_of(config), legal_cuts=(), context_tokens=context_tokens(config)
    )
    with _without_compiling():
        try:
            return _tried(_trial(config), refused)
        except ModelError as error:
            why_not = str(error)
        except Exception as error:  # noqa: BLE001  the boundary between us and any model's code
            why_not = f"mlx-lm cannot run {architecture} here: {_said(error)}"
    return msgspec.structs.replace(refused, why_not=why_not)


def _trial(config: Mapping[str, Any]) -> Trial:
    """Of the configuration in small or, where its structure does not shrink, as it is, if that is not too large."""
    try:
        return _trial_of(zoo.shrunk(config))
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  the boundary between us and any model's code
        try:
            return _trial_of(zoo.shrunk(config, only_windows=True))
        except ModelError as refusal:
            raise ModelError(f"{refusal}: {_said(error)}") from error


def _trial_of(config: Mapping[str, Any]) -> Trial:
    model = zoo.random_model(config)
    if sum(weight.size for _, weight in tree_flatten(model.parameters())) > MAX_TRIED_WEIGHTS:
        raise ModelError("no small model of its structure can be tried")
    return Trial(model)


def _tried(trial: Trial, base: Inspection) -> Inspection:
    """Everything that can be found out, on top of what the configuration says."""
    cuts = trial.legal_cuts()
    why_not = "it has only one layer"
    if trial.num_layers > 1:
        said = _said(trial.last_error) or "the logits of its stages differ from the whole model's"
        why_not = f"its layers cannot run apart from each other: {said}"
    return msgspec.structs.replace(
        base,
        num_layers=trial.num_layers,
        legal_cuts=cuts,
        why_not=None if cuts else why_not,
        unused=trial.unused(cuts),
        batches=trial.batches(cuts),
        last_position_only=trial.last_position_only(),
        uncached_in_caches=trial.uncached_is_wrong(),
        whole_prompts=trial.chunks_are_wrong(),
        reads_together=trial.reads_together(cuts),
        embeds=trial.shows_hidden_states(),
    )


def context_tokens(config: Mapping[str, Any]) -> int | None:
    """The most tokens, prompt and answer together, that the configuration states."""
    for key in _CONTEXT_KEYS:
        if isinstance(config.get(key), int) and not isinstance(config[key], bool) and config[key] > 0:
            return config[key]
    return context_tokens(config["text_config"]) if isinstance(config.get("text_config"), Mapping) else None


def _layers_of(config: Mapping[str, Any]) -> int:
    for key in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers"):
        if isinstance(config.get(key), int):
            return config[key]
    return _layers_of(config["text_config"]) if isinstance(config.get("text_config"), Mapping) else 0


def _said(error: Exception | None) -> str:
    return in_one_line(str(error), 160) if error else ""


def _fingerprint(config: Mapping[str, Any]) -> str:
    said = json.dumps(
        [REVISION, installed_version("mlx-lm"), installed_version("mlx"), config], sort_keys=True, default=str
    )
    return hashlib.sha256(said.encode()).hexdigest()[:24]


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Compiling takes longer than running a tiny model, and changes nothing that is looked for here."""
    if os.environ.get("MLX_DISABLE_COMPILE"):
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def table() -> Iterator[tuple[str, str, str, str]]:
    """For every architecture of the installed mlx-lm: its name, where it splits, whether it batches, what is special."""
    for name in zoo.architectures():
        try:
            found = inspect_config(zoo.tiny_config(name))
        except ModelError as error:
            yield name, f"not tried: {error}", "unknown", ""
            continue
        where = f"at {len(found.legal_cuts)} of {found.num_layers - 1} cuts"
        if found.why_not:
            where = f"not at all: {found.why_not}"
        elif len(found.legal_cuts) == found.num_layers - 1:
            where = "anywhere"
        yield name, where, "yes" if found.batches else "no", _special(found)


def _special(found: Inspection) -> str:
    special = []
    if found.uncached_in_caches and not found.why_not:
        special.append("without a KV cache each pass runs in caches that are thrown away")
    if found.whole_prompts and not found.why_not:
        special.append("prompts run in mlx-lm's own chunks and none is reused")
    if found.batches and not found.reads_together:
        special.append("each prompt is read by itself")
    if not found.embeds and not found.why_not:
        special.append("no embeddings")
    return "; ".join(special)


def _tensor(name: str) -> str:
    """How it is cut into two tensor ranks and four, and the share of the layers' weights that a rank has."""
    shares, ways = [], set()
    for size in (2, 4):
        try:
            config = zoo.tiny_config(name)
            plan = derive(config, size)
        except ModelError:
            return "no"
        shares.append(f"{max(rank_shares(partial(zoo.random_model, config), plan)):.2f}")
        ways |= {cuts[0].kind for cuts in plan.modules.values()}
    said = "gathers" if ways == {"gather"} else "sums" if "gather" not in ways else "sums, gathers"
    return f"{said} ({', '.join(shares)})"


def _page() -> str:
    found = [(name, where, batches, _tensor(name), special) for name, where, batches, special in table()]
    rows = "\n".join(f"| `{name}` | {' | '.join(columns)} |" for name, *columns in found)
    anywhere = sum(columns[0] == "anywhere" for _, *columns in found)
    at_some = sum(columns[0].startswith("at ") for _, *columns in found)
    in_ranks = sum(columns[2] != "no" for _, *columns in found)
    return f"""# Architectures

How each architecture of mlx-lm {installed_version("mlx-lm")} splits, found by running a tiny random model of it whole and in stages and
comparing the logits bit for bit (`./launch.sh doctor --architectures` does it again for the installed version; this page is
`python -m workers.model.inspection --markdown`). Of {len(found)}, {anywhere} split anywhere and {at_some} at some cuts. What cannot be
split runs whole, on each worker that has room for it. *Batches*: several requests share one step; otherwise they take
turns. *Tensor ranks*: {in_ranks} can also be cut into ranks that compute every layer together, which is tried likewise
(`./launch.sh bench tensor-cuts` compares every one with the whole model): by sums behind attention and feed-forward, or by gathering
what linear layers return where the model's code allows nothing else; with the share of the tiny model's layers that a rank of two, and
of four, holds. *Special*: where mlx-lm's code gives other logits without a KV cache, or for other chunks of a prompt, than it does
when it generates by itself, and what is done so that its own answer comes out; where short prompts cannot be read in one step, filled
up to the longest; and where no embeddings can be made, since the model's code shows nothing of its hidden states.

| architecture | splits | batches | tensor ranks | special |
| --- | --- | --- | --- | --- |
{rows}"""


def main(arguments: Sequence[str]) -> int:
    """Prints the table of architectures, or docs/ARCHITECTURES.md."""
    if list(arguments) == ["--markdown"]:
        print(_page())
        return 0
    if list(arguments) != ["--all"]:
        print("usage: python -m workers.model.inspection --all | --markdown", file=sys.stderr)
        return 2
    print(f"{'architecture':24} {'batches':8} splits")
    for name, where, batches, special in table():
        print(f"{name:24} {batches:8} {where}{special and f'; {special}'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
