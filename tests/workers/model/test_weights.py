"""The weights of a module tree by name: those that MLX finds, wherever they are."""

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from workers.model.weights import _named


class _Strange(nn.Module):
    """Has weights in lists and dicts, beside what are none."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2), None, {"_in": mx.ones(1), "name": "x", "more": [mx.ones(3)]}]
        self.by_name = {"_hidden": nn.Linear(2, 1, bias=False), "size": 4}
        self.pair = (mx.ones(5), mx.ones(6))
        self._private = mx.ones(7)
        self._inner = nn.Linear(3, 3)
        self.shared = self.layers[0]


def test_weights_are_named_as_mlx_names_them():
    model = _Strange()
    found, expected = _named(model), tree_flatten(model.parameters())
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(one is other for (_, one), (_, other) in zip(found, expected, strict=True))
    assert len(found) == 7
