"""Who guesses follows from the plan, and a draft that cannot be had is done without."""

import msgspec
import pytest

from protocol.errors import ModelError
from protocol.messages import Generate, Guessing
from protocol.values import KvSettings, Route, Sampling
from tests.support.loaded_stages import plan as plan_of
from workers.drafting.draft_model import DraftSource
from workers.drafting.guessers import GuessersLoader
from workers.drafting.lookup import Lookup
from workers.zoo import make_tiny_model


class Shelf:
    """Has one model; notes what was asked for."""

    def __init__(self, path):
        self._path = path
        self.asked = []

    def ensure(self, digest, ranges, _sources, _progress):
        if digest != "there":
            raise ModelError("this machine does not have the model")
        self.asked.append(tuple(ranges))
        return self._path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("drafts") / "draft")


@pytest.fixture
def shelf(path):
    return Shelf(path)


def request(*, cached=True, prediction=()):
    return Generate(
        sequence=1, route=Route(("a",)), cached=cached, max_tokens=5, end_tokens=(), sampling=Sampling(), seed=0,
        prediction=prediction,
    )  # fmt: skip


def loaded(shelf, guessing, loader=None, **changes):
    plan = msgspec.structs.replace(plan_of("model", 0, 4, 4), guessing=guessing, **changes)
    return (loader or GuessersLoader(shelf)).load(plan, 1 << 20, lambda *_: None)


def test_nobody_guesses_where_nothing_is_to_be_guessed(shelf):
    assert loaded(shelf, None) is None


def test_draft_guesses_and_is_read_whole_once(shelf):
    loader = GuessersLoader(shelf)
    for _ in range(2):
        assert isinstance(loaded(shelf, Guessing(draft="there"), loader).of(request()).source, DraftSource)
    assert [len(ranges) for ranges in shelf.asked] == [0, 1]


def test_draft_that_is_not_to_be_had_is_done_without(shelf, caplog):
    assert loaded(shelf, Guessing(draft="elsewhere")).of(request()) is None
    assert "goes on without a draft model: this machine does not have the model" in caplog.text


def test_only_what_a_request_brings_is_looked_up_unless_all_is(shelf):
    guessers = loaded(shelf, Guessing())
    assert guessers.of(request()) is None
    assert isinstance(guessers.of(request(prediction=(5, 6))).source, Lookup)
    assert isinstance(loaded(shelf, Guessing(lookup=True)).of(request()).source, Lookup)


@pytest.mark.parametrize("changes", [{"whole_prompts": True}, {"kv": KvSettings(kind="rotating", max_tokens=64)}])
def test_nothing_is_guessed_with_caches_that_see_less_of_a_longer_pass(shelf, changes):
    guessers = loaded(shelf, Guessing(lookup=True), **changes)
    assert guessers.of(request()) is None
    assert guessers.of(request(cached=False)) is not None
