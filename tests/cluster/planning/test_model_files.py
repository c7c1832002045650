"""What the coordinator reads of a model directory without loading it."""

import json
import os
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.planning.model_files import check_weights, read_config, read_header, read_sizes, resolve_model
from protocol.errors import ModelError, UsageError
from strategy.partition import ModelSizes


def safetensors(sizes: dict[str, int]) -> bytes:
    """A file with tensors of these many bytes."""
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(offset)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def write(model, sizes, name="model.safetensors"):
    (model / name).write_bytes(safetensors(sizes))
    return model / name


def test_sizes_are_counted_per_layer_embedding_and_rest(model):
    write(
        model,
        {
            "model.embed_tokens.weight": 100,
            "model.layers.0.mlp.weight": 10,
            "model.layers.0.norm.weight": 1,
            "model.layers.1.mlp.weight": 20,
            "model.norm.weight": 3,
            "lm_head.weight": 100,
        },
    )
    assert read_sizes(model, 2) == ModelSizes(layers=(11, 20), embedding=100, head=103, tied=False)


def test_model_without_a_head_of_its_own_is_tied_and_its_last_stage_reads_the_embedding_too(model):
    write(
        model,
        {"model.embed_tokens.weight": 100, "model.layers.0.w": 10, "model.layers.1.w": 20, "model.norm.weight": 3},
    )
    sizes = read_sizes(model, 2)
    assert sizes.tied
    assert (sizes.stage(0, 1), sizes.stage(1, 2), sizes.stage(0, 2)) == (110, 123, 133)
    assert sizes.stage(0, 2) == sizes.total


def test_head_of_an_untied_model_belongs_to_the_last_stage(model):
    write(
        model, {"model.embed_tokens.weight": 100, "model.layers.0.w": 10, "model.layers.1.w": 20, "lm_head.weight": 90}
    )
    sizes = read_sizes(model, 2)
    assert (sizes.stage(0, 1), sizes.stage(1, 2)) == (110, 110)


def test_layers_beyond_the_model_are_not_counted(model):
    write(model, {"model.layers.0.w": 10, "model.layers.1.w": 20, "model.layers.2.eh_proj.weight": 5000})
    sizes = read_sizes(model, 2)
    assert sizes.layers == (10, 20)
    assert sizes.total == 30


def test_layers_that_several_files_share_are_added_up(model):
    write(model, {"model.layers.0.a": 10}, "model-00001-of-00002.safetensors")
    write(model, {"model.layers.0.b": 5}, "model-00002-of-00002.safetensors")
    assert read_sizes(model, 1).layers == (15,)


@pytest.mark.parametrize(
    "name", ["transformer.h.0.attn.weight", "backbone.layers.0.mixer.weight", "language_model.model.layers.0.w"]
)
def test_layers_are_recognized_under_every_usual_name(model, name):
    write(model, {name: 7})
    assert read_sizes(model, 1).layers == (7,)


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1])
def test_truncated_file_is_named_and_said_to_be_damaged(model, kept):
    file = write(model, {"model.layers.0.w": 100})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors is (damaged|truncated)"):
        check_weights(model)


def test_truncated_data_says_how_much_is_there(model):
    file = write(model, {"model.layers.0.w": 100})
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=f"truncated: {len(whole) - 1} of {len(whole)} bytes"):
        read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}x",
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"data_offsets": []}}',
        b'{"a": {"data_offsets": [0, "x"]}}',
        b'{"a": {"data_offsets": [1, 0]}}',
        b'{"a": {"data_offsets": [-1, 0]}}',
        b'{"a": {"data_offsets": [0, 1e3]}}',
        b'{"a": {"data_offsets": [0, 2, 3]}}',
        b'{"a": {"data_offsets": [0, 4]}, "b": {"data_offsets": [3, 6]}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_header_of_the_wrong_form_is_damage(model, header):
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="damaged"):
        read_header(file)


@given(content=st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_model_error(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "arbitrary.safetensors"
    file.write_bytes(content)
    try:
        header = read_header(file)
    except ModelError:
        return
    assert isinstance(header, dict)


def test_second_file_is_checked_too(model):
    write(model, {"model.layers.0.a": 10}, "model-00001-of-00002.safetensors")
    (model / "model-00002-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        check_weights(model)


def test_model_directory_is_found(model):
    write(model, {"model.layers.0.w": 1})
    assert resolve_model(str(model)) == model


def test_missing_directory_is_a_usage_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        resolve_model(str(tmp_path / "nowhere"))


def test_file_in_place_of_a_directory_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        resolve_model(str(tmp_path / "file"))


def test_directory_without_weights_is_said_to_have_none(model):
    with pytest.raises(ModelError, match="no model"):
        resolve_model(str(model))


def test_directory_without_configuration_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model_type": 3}', b"\xff\xfe"])
def test_unusable_configuration_is_a_model_error(model, content):
    (model / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(model)


@pytest.mark.parametrize("name", ["config.json", "model-2.safetensors", "tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "link to nowhere"])
def test_what_is_no_regular_file_is_refused_at_once(model, name, kind):
    write(model, {"model.layers.0.x": 1})
    file = model / name
    file.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case _:
            file.symlink_to(model / "nothing")
    with pytest.raises(ModelError, match=f"{re.escape(str(file))} is no regular file"):
        resolve_model(str(model))


def test_links_to_files_are_followed(model, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("blobs") / "config"
    (model / "config.json").rename(elsewhere)
    (model / "config.json").symlink_to(elsewhere)
    write(model, {"model.layers.0.x": 1})
    assert resolve_model(str(model)) == model


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_hidden_layers": 10**8}, "num_hidden_layers"),
        ({"num_hidden_layers": -(10**6)}, "num_hidden_layers"),
        ({"max_position_embeddings": 1 << 70}, "max_position_embeddings"),
        ({"text_config": {"vocab_size": -(1 << 60)}}, "vocab_size"),
    ],
)
def test_numbers_that_no_model_has_are_refused_with_their_name(model, changes, name):
    (model / "config.json").write_text(json.dumps({"model_type": "llama"} | changes))
    with pytest.raises(ModelError, match=f"says that {name} is .*, which no model has"):
        read_config(model)


def test_configuration_of_many_megabytes_or_levels_is_refused(model):
    (model / "config.json").write_text('{"model_type": "' + "x" * (17 << 20) + '"}')
    with pytest.raises(ModelError, match="larger than 16 MB"):
        read_config(model)
    (model / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        read_config(model)
