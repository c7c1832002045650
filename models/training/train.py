"""Trains the bundled model and its draft, with their tokenizer, from the texts of this package.

    python -m models.training.train --out DIR

writes DIR/tandem-demo and DIR/tandem-demo-draft. The run is seeded: the same versions of mlx and tokenizers on the same
kind of processor give the same weights. On Linux it starts itself again with OpenBLAS preloaded where the system has it;
without it the run takes several times longer. docs/BUNDLED_MODEL.md says how long it took and what came out.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from models.training import conversations, placement, rows, tools
from models.training.tokenizer import END, PAD, ROLE_MARKS, save_tokenizer, token_id, train_tokenizer

CONTEXT_LENGTH = 4096
_BLAS = tuple(Path(f"/usr/lib/{machine}-linux-gnu/openblas-pthread/libblas.so.3") for machine in ("x86_64", "aarch64"))
_log = logging.getLogger("training")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama with plain multi-head attention and tied embeddings."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    feed_forward: int


@dataclass(frozen=True)
class Phase:
    """`steps` optimizer steps over batches of `batch` rows (an even number) of `length` tokens."""

    steps: int
    batch: int
    length: int


@dataclass(frozen=True)
class Round:
    """Phases under one learning rate schedule; with `placed`, rows stand for longer ones (see placement), `with_tools` some
    are conversations with tools.
    """

    phases: tuple[Phase, ...]
    learning_rate: float
    seed: int
    mix: conversations.Mix = conversations.USUAL
    placed: bool = False
    with_tools: tools.ToolShares | None = None


@dataclass(frozen=True)
class Recipe:
    """What to train, and the rounds of its training; the seed of the first one also draws the initial weights."""

    name: str
    shape: Shape
    rounds: tuple[Round, ...]


# Short rows first, because they are cheap; then long ones, so that answers stay right late in a conversation. The second
# round widens that to the whole context, and gives more room to what the documentation does not promise.
_WIDER = conversations.Mix(stories=0.08, unknown=0.08, sums=0.1, documented=0.36, strange=0.5)
# Copying out of questions and results comes late and needs many examples; at first with positions as they are, it is hard enough.
# The last round is for what is promised.
_MANY_TURNS = tools.ToolShares(as_before=0.3, without=0.08, turns=(1, 2, 3, 4))
_LAST_TURNS = tools.ToolShares(as_before=0.45, without=0.06, turns=(1, 2, 3, 4), long_stories=0.12)
_KEEPING = conversations.Mix(stories=0.08, unknown=0.06, sums=0.06, documented=0.5, strange=0.4)
# What came when all else was learned: small talk in lower case, and answers that had become untrue.
_LATE = _KEEPING._replace(late=0.2, hurried=0.4, corrected=True)
RECIPES = (
    Recipe(
        "tandem-demo",
        Shape(hidden=128, layers=8, heads=4, head_dim=64, feed_forward=384),
        (
            Round((Phase(2000, 10, 128), Phase(450, 4, 384), Phase(110, 2, 1024)), 2.5e-3, seed=1),
            Round(
                (Phase(520, 8, 192), Phase(160, 4, 384), Phase(16, 2, 1024)), 1.5e-3, seed=3, mix=_WIDER, placed=True
            ),
            Round(
                (Phase(640, 8, 192), Phase(60, 4, 384)), 1.2e-3, seed=5, mix=_WIDER, placed=True, with_tools=tools.USUAL
            ),
            Round((Phase(560, 8, 192),), 1.5e-3, seed=6, mix=_WIDER, with_tools=_MANY_TURNS),
            Round(
                (Phase(90, 8, 192), Phase(130, 4, 384)), 7e-4, seed=7, mix=_KEEPING, placed=True, with_tools=_LAST_TURNS
            ),
            Round(
                (Phase(260, 8, 192), Phase(90, 4, 384)), 9e-4, seed=8, mix=_LATE, placed=True, with_tools=_LAST_TURNS
            ),
        ),
    ),
    Recipe(
        "tandem-demo-draft",
        Shape(hidden=64, layers=3, heads=4, head_dim=32, feed_forward=256),
        (
            Round((Phase(2500, 10, 128), Phase(400, 4, 384)), 5e-3, seed=2),
            Round((Phase(600, 8, 192), Phase(150, 4, 384)), 2.5e-3, seed=4, mix=_WIDER, placed=True),
            Round((Phase(400, 8, 192), Phase(60, 4, 384)), 1.5e-3, seed=9, mix=_LATE, placed=True),
        ),
    ),
)


def main() -> None:
    """Trains what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="directory for the finished models")
    parser.add_argument("--only", choices=[r.name for r in RECIPES], help="train one of the two")
    parser.add_argument("--first-round", type=int, default=1, help="a later one goes on from the models in --out")
    parser.add_argument("--step-scale", type=float, default=1.0, help="multiplies all step counts (for a quick try)")
    options = parser.parse_args()
    _restart_prepared()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    tokenizer = train_tokenizer(conversations.corpus())
    for recipe in RECIPES:
        if options.only in (None, recipe.name):
            train(recipe, tokenizer, options.out / recipe.name, options.step_scale, options.first_round)


def train(recipe: Recipe, tokenizer: Tokenizer, directory: Path, step_scale: float = 1.0, first_round: int = 1) -> None:
    """Trains one model and writes it into `directory` in the Hugging Face layout, every 500 steps and after each round.

    With a later `first_round` it goes on from what `directory` holds, with the same result as a run without a break.
    """
    mx.random.seed(recipe.rounds[0].seed)
    model = Model(model_args(recipe.shape))
    if first_round > 1:
        model.load_weights(str(directory / "model.safetensors"))
    rope = placement.install(model)
    _log.info("%s: %d parameters", recipe.name, num_parameters(model))

    def checkpoint(*, thorough: bool) -> None:
        save(model, recipe.shape, tokenizer, directory)
        _report(model, tokenizer, thorough=thorough)

    for number, part in enumerate(recipe.rounds, start=1):
        if number >= first_round:
            _log.info("round %d", number)
            phases = [Phase(max(1, round(p.steps * step_scale)), p.batch, p.length) for p in part.phases]
            schedule = _schedule(part.learning_rate, sum(p.steps for p in phases))
            optimizer = optim.AdamW(schedule, [0.9, 0.98], weight_decay=0.01, bias_correction=True)
            _train_round(_Step(model, rope, optimizer), part, phases, tokenizer, checkpoint)


def _train_round(
    step: "_Step", part: Round, phases: list[Phase], tokenizer: Tokenizer, checkpoint: Callable[..., None]
) -> None:
    total = sum(p.steps for p in phases)
    rng = Random(part.seed)
    sampler = _sampler(part, rng, lambda text: len(tokenizer.encode(text).ids))
    marks = frozenset(token_id(tokenizer, mark) for mark in ROLE_MARKS.values())
    started = time.monotonic()
    for number, (phase, batch) in enumerate(_batches(phases, sampler, tokenizer), start=1):
        places = [placement.place(row, marks, CONTEXT_LENGTH, rng) for row in batch] if part.placed else None
        loss = step(batch, places)
        if number % 50 == 0:
            seconds = time.monotonic() - started
            _log.info("step %d of %d, rows of %d, loss %.4f, %.0f s", number, total, phase.length, loss, seconds)
        if number % 500 == 0 or number == total:
            checkpoint(thorough=number == total)


def _sampler(part: Round, rng: Random, count: Callable[[str], int]) -> conversations.Sampler | tools.ToolSampler:
    if part.with_tools is None:
        return conversations.Sampler(rng, count, part.mix)
    return tools.ToolSampler(rng, count, part.mix, part.with_tools)


def _schedule(peak: float, total: int) -> Callable[[mx.array], mx.array]:
    """The learning rate: up to its peak in a twentieth of the steps, then down along a cosine to a fiftieth of it."""
    warm = max(1, total // 20)
    rise, fall = optim.linear_schedule(0.0, peak, warm), optim.cosine_decay(peak, total - warm, peak / 50)
    return optim.join_schedules([rise, fall], [warm])


def model_args(shape: Shape) -> ModelArgs:
    """The arguments of mlx-lm's Llama for a shape."""
    return ModelArgs.from_dict(model_config(shape))


def model_config(shape: Shape) -> dict[str, object]:
    """config.json, as transformers and mlx-lm read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.feed_forward,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def save(model: Model, shape: Shape, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes config, weights (float32) and tokenizer files into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    ends: dict[str, object] = {"eos_token_id": token_id(tokenizer, END), "pad_token_id": token_id(tokenizer, PAD)}
    _write_json(directory / "config.json", {**model_config(shape), **ends})
    _write_json(directory / "generation_config.json", ends)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    save_tokenizer(tokenizer, directory, CONTEXT_LENGTH)


def num_parameters(model: Model) -> int:
    """How many numbers the model has learned."""
    return sum(array.size for _, array in tree_flatten(model.parameters()))


class _Step:
    """One optimizer step. A batch is cut in two halves that run on two streams, so that two cores are used."""

    def __init__(self, model: Model, rope: placement.SkippingRope, optimizer: optim.Optimizer):
        self._model = model
        self._optimizer = optimizer
        self._gradient = nn.value_and_grad(model, _loss)
        self._rope = rope
        device = mx.default_device()
        self._streams = [mx.default_stream(device), mx.new_stream(device)]

    def __call__(self, batch: list[rows.Row], places: list[placement.Placement] | None) -> float:
        """Learns from the rows, placed or as they are, and returns the mean loss per learned token."""
        half = len(batch) // 2
        halves = [rows.arrays(batch[:half]), rows.arrays(batch[half:])]
        count = max(1, sum(targets.size for _, _, targets in halves))
        losses, gradients = [], []
        for number, (stream, (inputs, picked, targets)) in enumerate(zip(self._streams, halves, strict=True)):
            own = places and places[number * half : (number + 1) * half]
            with mx.stream(stream):
                loss, gradient = self._gradient(self._model, self._rope, inputs, own, picked, targets, count)
            losses.append(loss)
            gradients.append(gradient)
        total, _ = optim.clip_grad_norm(tree_map(lambda a, b: a + b, *gradients), 1.0)
        self._optimizer.update(self._model, total)
        mx.eval(losses, self._model.state, self._optimizer.state)
        return float(losses[0].item()) + float(losses[1].item())


def _loss(
    model: Model,
    rope: placement.SkippingRope,
    inputs: mx.array,
    places: list[placement.Placement] | None,
    picked: mx.array,
    targets: mx.array,
    count: int,
) -> mx.array:
    """Cross entropy at the learned positions only: the output projection is a large part of so small a model."""
    hidden = placement.forward(model, rope, inputs, places) if places else model.model(inputs)
    if not targets.size:  # all rows were cut before their first answer
        return hidden.sum() * 0
    logits = model.model.embed_tokens.as_linear(hidden.reshape(-1, hidden.shape[-1])[picked])
    return nn.losses.cross_entropy(logits, targets, reduction="sum") / count


def _batches(
    phases: list[Phase], sampler: conversations.Sampler | tools.ToolSampler, tokenizer: Tokenizer
) -> Iterator[tuple[Phase, list[rows.Row]]]:
    for phase in phases:
        for _ in range(phase.steps):
            samples = [sampler.sample(phase.length) for _ in range(phase.batch)]
            yield phase, [rows.encode(sample, tokenizer, phase.length) for sample in samples]


def _report(model: Model, tokenizer: Tokenizer, *, thorough: bool) -> None:
    for name, samples in rows.examinations(tokenizer, thorough=thorough).items():
        right, total = rows.count_right(model, samples)
        _log.info("  %s: %d of %d answers right", name, right, total)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _restart_prepared() -> None:
    """On Linux, starts the program again with a fast BLAS, and with an evaluation order that lets streams overlap."""
    if platform.system() != "Linux" or "MLX_BFS_MAX_WIDTH" in os.environ:
        return
    found = next((str(path) for path in _BLAS if path.exists()), "")
    if not found:
        print("OpenBLAS was not found (package libopenblas0-pthread); the run will be slow.", file=sys.stderr)
    environment = {**os.environ, "MLX_BFS_MAX_WIDTH": "1000", "OPENBLAS_NUM_THREADS": "1", "LD_PRELOAD": found}
    os.execve(sys.executable, [sys.executable, "-m", "models.training.train", *sys.argv[1:]], environment)  # noqa: S606


if __name__ == "__main__":
    main()
