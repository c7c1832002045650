"""A small tokenizer for all tests of serving."""

import pytest

from cluster.serving.prompts import Prompts
from tests.support.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    return Prompts.load(write_tokenizer(tmp_path_factory.mktemp("model")))
