"""`doctor --verify`: whose figures are which, what is right, and what is said of who is wrong."""

import json
import math
import os

import msgspec
import pytest

from cluster.cli.main import main
from cluster.cli.verifying import EXACT_BOUND, HALF_BOUND, Computed, compare, difference
from cluster.settings import ModelSettings, Settings, WorkerSettings
from protocol.home import ClusterState, Home, ProcessIdentity
from protocol.values import LayerRange
from tests.support.fake_api import FakeApi
from workers.model.figures import own_figures
from workers.zoo import make_tiny_model

ROWS = tuple((float(place), 1.0, -2.0) for place in range(1, 9))
STAGES = (LayerRange(0, 2), LayerRange(2, 6))


def computed(rows=ROWS, *, is_exact=True):
    return Computed(layers=LayerRange(0, 4), rows=rows, is_exact=is_exact)


def scaled(rows, factor):
    return tuple(tuple(factor * value for value in row) for row in rows)


@pytest.mark.parametrize(("is_exact", "bound"), [(True, EXACT_BOUND), (False, HALF_BOUND)])
def test_bound_is_that_of_the_numbers_that_are_computed_with(is_exact, bound):
    own = computed(is_exact=is_exact)
    within, beyond = (compare("w", computed(scaled(ROWS, 1 + share * bound)), own) for share in (0.9, 1.1))
    assert within.verdict == "ok"
    assert beyond.verdict == "problem"
    assert beyond.text.startswith("w computes layers 0-3 wrongly: ")


def test_quarter_of_the_positions_may_be_others_and_no_more():
    wild = scaled(ROWS, 9.0)
    assert difference((*wild[:2], *ROWS[2:]), ROWS) == 0.0
    assert difference((*wild[:3], *ROWS[3:]), ROWS) > 1.0


@pytest.mark.parametrize("rows", [(), ROWS[1:], ((None, None, None),) * 8, ((1.0, 2.0),) * 8])
def test_what_is_no_answer_to_the_question_is_infinitely_wrong(rows):
    assert difference(rows, ROWS) == math.inf
    assert "no numbers come out" in compare("w", computed(rows), computed()).text


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def right(model, tmp_path_factory):
    """What two workers compute that are well, as the API says it."""
    found = own_figures(model, STAGES, tmp_path_factory.mktemp("cache"))
    return [msgspec.to_builtins(stage) for stage in found]


@pytest.fixture
def answers(tmp_path, monkeypatch, model):
    """A cluster that seems to run; call it with the stages of each worker."""
    home = Home(tmp_path / "home")
    home.create()
    settings = Settings(model=ModelSettings(path=str(model)), workers=(WorkerSettings(name="worker-0"),))
    home.settings_file.write_bytes(msgspec.json.encode(settings))
    monkeypatch.setenv("TANDEM_HOME", str(home.root))
    api, me = FakeApi({}), ProcessIdentity.of(os.getpid())
    home.write_state(ClusterState(supervisor=me, coordinator=me, api=api.url, port=1, started_at=1.0))

    def answer(*workers):
        told = [{"name": f"worker-{number}", "stages": stages} for number, stages in enumerate(workers)]
        api.answers["/v1/cluster/figures"] = (200, json.dumps({"workers": told}).encode())

    yield answer
    api.close()


def wrong(stage):
    return stage | {"rows": scaled(stage["rows"], 1.1)}


def test_workers_that_are_well_are_said_to_be(answers, right, capsys):
    answers([right[0]], [right[1]])
    assert main(["doctor", "--verify"]) == 0
    assert [line.split(" as ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "ok       worker-0 computes layers 0-1",
        "ok       worker-1 computes layers 2-5",
    ]


def test_worker_that_is_wrong_is_named_and_so_is_one_that_is_silent(answers, right, capsys):
    answers([right[0]], [wrong(right[1])], None)
    assert main(["doctor", "--verify"]) == 1
    printed = capsys.readouterr()
    problems = [line for line in printed.out.splitlines() if line.startswith("problem")]
    assert [line.split()[1] for line in problems] == ["worker-2", "worker-1"]
    assert "worker-1 computes layers 2-5 wrongly" in printed.out
    assert "2 problems found" in printed.err
    assert "all differ" not in printed.out


def test_where_all_are_wrong_this_machine_may_be(answers, right, capsys):
    answers([wrong(right[0])], [wrong(right[1])])
    assert main(["doctor", "--verify"]) == 1
    assert "this machine's own copy" in capsys.readouterr().out


def test_without_a_cluster_there_is_nothing_to_verify(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    assert main(["doctor", "--verify"]) == 1
    assert "start it first" in capsys.readouterr().err
