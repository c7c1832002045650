"""A location of a model that leads to none, and what may have been meant by it."""

import io

import pytest

from cluster.cli.near_models import check_location
from cluster.cli.terminal import Terminal
from protocol.errors import UsageError


@pytest.fixture
def models(tmp_path, monkeypatch):
    for name in ("Qwen3-4B-4bit", "Mistral-7B", "hub/models--mlx-community--Llama-3.2-1B/snapshots/1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(location, models):
    check_location(location, (models / "hub",), Terminal(stream := io.StringIO()))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("wanted", "meant"), [("qwen3-4b-4bits", "/Qwen3-4B-4bit"), ("Llama-3.2-1b", "mlx-community/Llama-3.2-1B")]
)
def test_directory_that_is_not_there_is_refused_with_the_nearest(models, wanted, meant):
    with pytest.raises(UsageError, match=rf"{wanted} does not exist; did you mean .*{meant}\?"):
        said(str(models / wanted), models)


def test_directory_that_is_like_no_other_is_refused_with_what_is_needed(models):
    with pytest.raises(UsageError, match="give --model a directory in the Hugging Face layout"):
        said(str(models / "nothing" / "alike"), models)


def test_what_is_taken_for_a_hub_id_says_so_where_another_may_have_been_meant(models):
    assert "did you mean mlx-community/Llama-3.2-1B?" in said("mlx-comunity/Llama-3.2-1B", models)
    assert said("mlx-community/Llama-3.2-1B", models) == ""
    assert said("maker/entirely-other", models) == ""


def test_directory_that_is_there_needs_nothing(models):
    assert said(str(models / "Mistral-7B"), models) == ""
