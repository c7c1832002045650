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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from models.training import conversations, rows
from models.training.tokenizer import END, PAD, save_tokenizer, token_id, train_tokenizer

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
class Recipe:
    """What to train, on how much, and how fast to learn."""

    name: str
    shape: Shape
    phases: tuple[Phase, ...]
    learning_rate: float
    seed: int


# Short rows first, because they are cheap; then long ones, so that answers stay right late in a conversation.
RECIPES = (
    Recipe(
        "tandem-demo",
        Shape(hidden=128, layers=8, heads=4, head_dim=64, feed_forward=384),
        (Phase(2000, 10, 128), Phase(450, 4, 384), Phase(110, 2, 1024)),
        learning_rate=2.5e-3,
        seed=1,
    ),
    Recipe(
        "tandem-demo-draft",
        Shape(hidden=64, layers=3, heads=4, head_dim=32, feed_forward=256),
        (Phase(2500, 10, 128), Phase(400, 4, 384)),
        learning_rate=5e-3,
        seed=2,
    ),
)


def main() -> None:
    """Trains what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="directory for the finished models")
    parser.add_argument("--only", choices=[r.name for r in RECIPES], help="train one of the two")
    parser.add_argument("--step-scale", type=float, default=1.0, help="multiplies all step counts (for a quick try)")
    options = parser.parse_args()
    _restart_prepared()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    tokenizer = train_tokenizer(conversations.corpus())
    for recipe in RECIPES:
        if options.only in (None, recipe.name):
            train(recipe, tokenizer, options.out / recipe.name, options.step_scale)


def train(recipe: Recipe, tokenizer: Tokenizer, directory: Path, step_scale: float = 1.0) -> None:
    """Trains one model and writes it into `directory` in the Hugging Face layout, after each phase and at the end."""
    mx.random.seed(recipe.seed)
    model = Model(model_args(recipe.shape))
    phases = [Phase(max(1, round(p.steps * step_scale)), p.batch, p.length) for p in recipe.phases]
    total = sum(p.steps for p in phases)
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0.0, recipe.learning_rate, max(1, total // 20)),
            optim.cosine_decay(recipe.learning_rate, total - total // 20, recipe.learning_rate / 50),
        ],
        [max(1, total // 20)],
    )
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.98], weight_decay=0.01, bias_correction=True)
    step = _Step(model, optimizer)
    sampler = conversations.Sampler(Random(recipe.seed), lambda text: len(tokenizer.encode(text).ids))
    _log.info("%s: %d parameters, %d steps", recipe.name, num_parameters(model), total)
    started = time.monotonic()
    for number, (phase, batch) in enumerate(_batches(phases, sampler, tokenizer), start=1):
        loss = step(batch)
        if number % 50 == 0:
            seconds = time.monotonic() - started
            _log.info("step %d of %d, rows of %d, loss %.4f, %.0f s", number, total, phase.length, loss, seconds)
        if number % 500 == 0 or number == total:
            save(model, recipe.shape, tokenizer, directory)
            _report(model, tokenizer, thorough=number == total)


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

    def __init__(self, model: Model, optimizer: optim.Optimizer):
        self._model = model
        self._optimizer = optimizer
        self._gradient = nn.value_and_grad(model, _loss)
        device = mx.default_device()
        self._streams = [mx.default_stream(device), mx.new_stream(device)]

    def __call__(self, batch: list[rows.Row]) -> float:
        """Learns from the rows and returns the mean loss per learned token."""
        half = len(batch) // 2
        halves = [rows.arrays(batch[:half]), rows.arrays(batch[half:])]
        count = sum(targets.size for _, _, targets in halves)
        losses, gradients = [], []
        for stream, (inputs, positions, targets) in zip(self._streams, halves, strict=True):
            with mx.stream(stream):
                loss, gradient = self._gradient(self._model, inputs, positions, targets, count)
            losses.append(loss)
            gradients.append(gradient)
        total, _ = optim.clip_grad_norm(tree_map(lambda a, b: a + b, *gradients), 1.0)
        self._optimizer.update(self._model, total)
        mx.eval(losses, self._model.state, self._optimizer.state)
        return float(losses[0].item()) + float(losses[1].item())


def _loss(model: Model, inputs: mx.array, positions: mx.array, targets: mx.array, count: int) -> mx.array:
    """Cross entropy at the learned positions only: the output projection is a large part of so small a model."""
    hidden = model.model(inputs)
    picked = hidden.reshape(-1, hidden.shape[-1])[positions]
    logits = model.model.embed_tokens.as_linear(picked)
    return nn.losses.cross_entropy(logits, targets, reduction="sum") / count


def _batches(
    phases: list[Phase], sampler: conversations.Sampler, tokenizer: Tokenizer
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
