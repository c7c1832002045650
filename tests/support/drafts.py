"""Draft models that are right, wrong, or half right about a model."""

import shutil

import mlx.core as mx

from workers.zoo import make_tiny_model


def nearly(model, directory, noise=0.3):
    """A copy of a model with noise on its weights, by a share of how far they are spread: it often says the same."""
    shutil.copytree(model, directory)
    mx.random.seed(1)
    weights = mx.load(str(model / "model.safetensors"))
    changed = {
        name: weight + noise * mx.std(weight) * mx.random.normal(weight.shape) if weight.size > 1 else weight
        for name, weight in weights.items()
    }
    mx.save_safetensors(str(directory / "model.safetensors"), changed, metadata={"format": "mlx"})
    return directory


def drafts_of(architecture, directory, **overrides):
    """A model, and beside it drafts by how good they are."""
    model = make_tiny_model(architecture, directory / "model", seed=1, **overrides)
    return model, {
        "right": model,
        "half": nearly(model, directory / "half"),
        "wrong": make_tiny_model(architecture, directory / "wrong", seed=2, **overrides),
    }
