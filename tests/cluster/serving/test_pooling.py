"""What sentence-transformers' files beside a model say of its vectors."""

import json

import pytest

from cluster.serving.pooling import pooling_of
from protocol.errors import BadRequest

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def write(path, file, said):
    (path / file).parent.mkdir(exist_ok=True)
    (path / file).write_text(said if isinstance(said, str) else json.dumps(said))


def modes(**true):
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return (
        {"word_embedding_dimension": 64}
        | {f"pooling_mode_{name}": name in true for name in names}
        | {"include_prompt": True}
    )


def test_model_that_says_nothing_gives_its_last_token(tmp_path):
    assert pooling_of(tmp_path).required("input") == "last"


@pytest.mark.parametrize(("mode", "kind"), [("mean_tokens", "mean"), ("lasttoken", "last"), ("cls_token", "cls")])
def test_mode_is_that_of_the_pooling_module(tmp_path, mode, kind):
    write(tmp_path, "1_Pooling/config.json", modes(**{mode: True}))
    assert pooling_of(tmp_path).required("input") == kind
    write(tmp_path, "modules.json", [TRANSFORMER, POOLING, NORMALIZE])
    assert pooling_of(tmp_path).required("input") == kind


def test_mode_may_be_one_word(tmp_path):
    write(tmp_path, "1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": "mean"})
    assert pooling_of(tmp_path).required("input") == "mean"


def test_pooling_module_may_lie_elsewhere(tmp_path):
    write(tmp_path, "modules.json", [TRANSFORMER, POOLING | {"path": "pool"}])
    write(tmp_path, "pool/config.json", modes(mean_tokens=True))
    assert pooling_of(tmp_path).required("input") == "mean"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (modes(max_tokens=True), "pools by max"),
        (modes(mean_tokens=True, max_tokens=True), "pools by mean and max"),
        ({"pooling_mode": "weightedmean"}, "pools by weightedmean"),
    ],
)
def test_mode_that_is_not_known_is_no_other(tmp_path, said, why):
    write(tmp_path, "1_Pooling/config.json", said)
    with pytest.raises(BadRequest, match=why):
        pooling_of(tmp_path).required("input")


def test_model_whose_vectors_go_on_through_a_layer_is_refused(tmp_path):
    write(tmp_path, "modules.json", [TRANSFORMER, POOLING, DENSE])
    write(tmp_path, "1_Pooling/config.json", modes(mean_tokens=True))
    with pytest.raises(BadRequest, match="asks for Dense"):
        pooling_of(tmp_path).required("input")


def test_place_outside_of_the_model_is_not_read(tmp_path):
    write(tmp_path, "pool/config.json", modes(mean_tokens=True))
    write(tmp_path, "model/modules.json", [TRANSFORMER, POOLING | {"path": "../pool"}])
    with pytest.raises(BadRequest, match="points outside"):
        pooling_of(tmp_path / "model").required("input")


@pytest.mark.parametrize("said", ["", "[", "5", "{}", '[5, null, {"type": 5}]', '{"pooling_mode": 5}', "[" * 100_000])
def test_files_that_say_nothing_of_use_say_nothing(tmp_path, said):
    write(tmp_path, "1_Pooling/config.json", said)
    assert pooling_of(tmp_path).required("input") == "last"
    if said != '[5, null, {"type": 5}]':  # a module that is none is not taken for one that is known
        write(tmp_path, "modules.json", said)
        assert pooling_of(tmp_path).required("input") == "last"
