"""What a split that was never loaded will take."""

import pytest

from strategy.layer_speeds import LayerSpeeds, PartSpeed
from strategy.vocabulary import LayerRange

SPEEDS = LayerSpeeds(
    decode_s=(1.0, 2.0, None, 4.0),
    chunk_s=(10.0, 20.0, None, 40.0),
    chunk_tokens=64,
    overhead=PartSpeed(0.25, 0.5),
    embedding=PartSpeed(0.125, 2.5),
    head=None,
)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((0, 1), (1.375, 13.0)),
        ((0, 2), (3.375, 33.0)),
        ((1, 2), (2.25, 20.5)),
        ((1, 3), None),  # of the third nothing is known
        ((3, 4), None),  # and of what follows the last
    ],
)
def test_stage_takes_what_its_layers_the_ends_of_the_model_and_a_pass_take(layers, expected):
    found = SPEEDS.of(LayerRange(*layers))
    assert (found and (found.decode_s, found.chunk_s)) == expected
