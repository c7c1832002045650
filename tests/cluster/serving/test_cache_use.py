"""The file of a model's measured cache use."""

from cluster.serving.cache_use import read_measured_use, write_measured_use
from protocol.home import Home
from strategy.cache_use import MeasuredUse, PayingRange

USE = MeasuredUse(machine="a Mac", prompt_tokens=16, single_device=PayingRange(first=10))


def model_directory(path, weights=b"1234"):
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_what_was_measured_is_found_again_for_the_same_model_only(tmp_path):
    home, model = Home(tmp_path / "home"), model_directory(tmp_path / "a")
    write_measured_use(home, model, USE)
    assert read_measured_use(home, model) == USE
    assert read_measured_use(home, model_directory(tmp_path / "b", b"12345")) is None


def test_a_damaged_file_counts_as_not_measured(tmp_path):
    home, model = Home(tmp_path / "home"), model_directory(tmp_path / "a")
    write_measured_use(home, model, USE).write_bytes(b'{"machine": 3}')
    assert read_measured_use(home, model) is None
