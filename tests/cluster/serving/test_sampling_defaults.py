"""What a model's own file says of sampling counts where a request says nothing, and garbage in it says nothing."""

import json

import pytest

from cluster.serving.requests import GenerationRequest, TextPrompt
from cluster.serving.sampling_defaults import sampling_defaults
from protocol.values import Sampling


def read(tmp_path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "generation_config.json").write_text(text)
    return sampling_defaults(tmp_path)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Sampling()),
        ({"eos_token_id": 1}, Sampling()),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
            Sampling(temperature=0.6, top_p=0.95, top_k=20),
        ),
        ({"temperature": 0.7, "repetition_penalty": 1.05}, Sampling(temperature=0.7, repetition_penalty=1.05)),
        ({"do_sample": True}, Sampling(temperature=1.0)),
        ({"do_sample": False, "temperature": 0.7}, Sampling()),
        ({"temperature": 1, "top_p": 1.0, "repetition_penalty": 1.0, "top_k": 0}, Sampling(temperature=1.0)),
        ({"temperature": "hot", "top_p": 7, "top_k": -3, "min_p": True, "repetition_penalty": None}, Sampling()),
        ({"top_k": 20.5, "temperature": 0.5}, Sampling(temperature=0.5)),
        ("nonsense", Sampling()),
        ("[1]", Sampling()),
        ('{"temperature": NaN}', Sampling()),
        ("[" * 100_000, Sampling()),
    ],
)
def test_sampling_is_as_the_model_says(tmp_path, said, expected):
    assert read(tmp_path, said) == expected


def test_without_the_file_it_is_greedy(tmp_path):
    assert sampling_defaults(tmp_path) == Sampling()


def test_what_a_request_says_comes_first():
    defaults = Sampling(temperature=0.6, top_p=0.9)
    asked = GenerationRequest(
        prompt=TextPrompt("x"), sampling=Sampling(temperature=0.0, seed=3), given=frozenset({"temperature", "seed"})
    )
    assert asked.with_defaults(defaults).sampling == Sampling(temperature=0.0, seed=3, top_p=0.9)
    said_nothing = GenerationRequest(prompt=TextPrompt("x"), given=frozenset())
    assert said_nothing.with_defaults(defaults).sampling == defaults
    as_it_is = GenerationRequest(prompt=TextPrompt("x"))
    assert as_it_is.with_defaults(defaults) is as_it_is
