"""Bytes from strangers, those that were found to break something among them: taken or refused, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encode
from tests.fuzz.targets import CORPUS, TARGETS
from tests.protocol.test_codec import EXAMPLES

FOUND = [pytest.param(file, id=f"{file.parent.name}-{file.name[:16]}") for file in sorted(CORPUS.glob("*/*"))]


@pytest.mark.parametrize("file", FOUND)
def test_bytes_that_were_found_are_taken_or_refused(file):
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("number", EXAMPLES)
def test_every_message_is_taken_or_refused_whoever_sends_it(number):
    frames = [bytes(frame) for frame in encode(1, EXAMPLES[number], [b"\x01\x00\x00\x00"])]
    TARGETS["wire"](b"\xff\xff".join(frames))


@pytest.mark.parametrize("name", TARGETS)
def test_there_is_something_to_begin_with(name):
    assert list((CORPUS / name).iterdir())


@given(data=st.binary(max_size=300), name=st.sampled_from(sorted(TARGETS)))
def test_any_bytes_are_taken_or_refused(data, name):
    TARGETS[name](data)
