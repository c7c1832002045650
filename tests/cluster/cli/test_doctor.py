"""`doctor`: what it says of a model that nobody has loaded, and of a cluster that runs."""

import json
import os
import subprocess
import sys

import msgspec
import pytest

from cluster.cli.fitting import plan_of, slow_formats
from cluster.cli.main import main
from cluster.serving.examining import running
from cluster.settings import GroupSettings, ModelSettings, PlanSettings, Settings, WorkerSettings
from protocol.home import Home
from protocol.values import LayerRange, Route
from strategy.memory import KvGrowth, KvNeeds
from strategy.partition import GroupSizes, ModelSizes, Node
from tests.cluster.cli.test_cli_commands import CHECKOUT
from tests.cluster.planning.test_known_model import FOUND
from tests.support.fake_api import STATUS
from tests.support.fake_hub import FakeHub
from workers.zoo import make_tiny_model

GB = 10**9


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=4)


def lines(capsys):
    return [tuple(line.split(maxsplit=1)) for line in capsys.readouterr().out.splitlines()]


def test_model_that_fits_is_planned_and_ends_with_how_to_start_it(llama, capsys):
    assert main(["doctor", str(llama), "--workers", "2"]) == 0
    said = lines(capsys)
    texts = " | ".join(text for _, text in said)
    for words in ("llama, 4 layers", "worker-0: layers 0-1", "worker-1: layers 2-3", "whole model fits on worker-0"):
        assert words in texts
    assert "room for" in texts
    assert said[-1] == ("next", f"`./launch.sh start --model {llama}` loads it")
    assert {verdict for verdict, _ in said} == {"ok", "next"}


def test_model_that_does_not_fit_is_a_problem_with_the_sum(llama, tmp_path, capsys):
    config = tmp_path / "small.toml"
    workers = "".join(f'[[workers]]\nname = "w{index}"\nmemory_limit = 4096\n' for index in range(2))
    config.write_text(workers)
    assert main(["doctor", str(llama), "--config", str(config)]) == 1
    printed = capsys.readouterr()
    assert "problem  it does not fit: the model's weights and caches do not fit the 2 workers" in printed.out
    assert "1 problem found" in printed.err


def test_model_of_the_hub_is_planned_with_its_configuration_and_headers_alone(llama, home, tmp_path):
    hub = FakeHub("maker/tiny", llama)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "TANDEM_HOME": str(home.root),
        "PYTHONPATH": str(CHECKOUT),
    }
    command = [sys.executable, "-m", "cluster.cli", "doctor", "maker/tiny"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        hub.close()
    size = sum(file.stat().st_size for file in (tmp_path / "hub").rglob("*") if file.is_file())
    assert "model maker/tiny: llama, 4 layers" in done.stdout
    assert "not downloaded yet" in done.stdout
    assert hub.fetched == ["config.json"]
    assert size < (llama / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("kinds", "quantized", "words"),
    [
        ({"BF16": 10}, False, "bfloat16 has no fast path"),
        ({"U32": 10, "F16": 1}, True, "quantized with scales in float16"),
        ({"F32": 10}, False, None),
        ({"U32": 10, "F32": 1}, True, None),
    ],
)
def test_what_a_linux_cpu_has_no_fast_path_for_is_said_with_the_remedy(kinds, quantized, words):
    found = list(slow_formats(kinds, has_quantization=quantized, platform="linux"))
    assert [words in finding.text and "mlx_lm convert" in finding.text for finding in found] == [True] * bool(words)
    assert list(slow_formats(kinds, has_quantization=quantized, platform="darwin")) == []


GROUP = GroupSizes(route=Route(("a", "b"), 2), layers=(LayerRange(0, 6),), rank_bytes=(3 * GB, 3 * GB))


def planned(limit, token_bytes=1000, groups=(), **plan):
    sizes = ModelSizes(layers=(GB,) * 6, embedding=0, head=0, tied=True, groups=groups)
    needs = KvNeeds(fixed_bytes=0, growth=(KvGrowth(token_bytes, None),), snapshots=False)
    about = msgspec.structs.replace(FOUND, context_tokens=8192, caches=(needs,) * 6)
    nodes = [Node(name=name, memory_limit_bytes=limit) for name in ("a", "b")]
    workers = tuple(WorkerSettings(name=node.name) for node in nodes)
    settings = Settings(model=ModelSettings(path="/m"), workers=workers, plan=PlanSettings(**plan))
    settings = msgspec.structs.replace(settings, groups=(GroupSettings(workers=("a", "b")),) if groups else ())
    return [finding.line for finding in plan_of(about, sizes, nodes, settings)]


def test_model_that_no_worker_holds_alone_is_answered_by_all():
    assert "ok       no worker has room for all of it: all answer together" in planned(4 * GB)


@pytest.mark.parametrize(
    ("limit", "lines"),
    [
        (7 * GB, ["ok       a: layers 0-2 and its part of a+b, 6.0 GB of its 7.0 GB", "all answer together"]),
        (
            4 * GB,
            ["ok       b: its part of a+b, 3.0 GB of its 4.0 GB", "no worker has room for all of it: a+b answers"],
        ),
        (3 * GB, ["problem  it does not fit"]),
    ],
)
def test_group_of_the_configuration_is_planned_with_the_rest(limit, lines):
    found = planned(limit, groups=(GROUP,))
    assert all(any(words in line for line in found) for words in lines), found


def test_room_beside_a_part_is_for_its_share_of_the_caches():
    (room,) = (line for line in planned(4 * GB, groups=(GROUP,)) if "room for" in line and "requests" in line)
    (of_stages,) = (line for line in planned(4 * GB) if "room for" in line and "requests" in line)
    assert room == of_stages  # half of each layer's, or all of half of them


def test_room_is_counted_in_requests_of_the_length_that_is_planned_for():
    (room,) = (line for line in planned(8 * GB) if "room for" in line)
    (less,) = (line for line in planned(8 * GB, context_tokens=8192) if "room for" in line)
    many, few = (int(line.split("room for ")[1].split()[0].replace(",", "")) for line in (room, less))
    assert many == 2 * few or many == 2 * few + 1
    assert "requests of 8,192 tokens" in less


def test_no_room_beside_the_weights_is_a_warning():
    assert any(
        line.startswith("warning  beside the weights there is room for 0") for line in planned(4 * GB, token_bytes=GB)
    )


def status(**changes):
    return json.loads(json.dumps(STATUS)) | changes


def findings(seen, verdict):
    return [finding.text for finding in running(seen, now=10_000.0) if finding.verdict == verdict]


def test_cluster_that_is_well_has_no_warnings():
    assert findings(status(), "warning") == []
    assert findings(status(), "ok")[0].startswith("cluster ready at http://127.0.0.1:1: tandem-demo, 2 workers")


def with_worker(**changes):
    seen = status()
    seen["workers"][1] |= changes
    return seen


def grouped(rate):
    """Two workers, of which one alone decodes 100 tokens a second; rate: together, None where that was not measured."""
    return {
        "workers": ["worker-0", "worker-1"],
        "ranks": 2,
        "sums": {
            "per_token": 17,
            "bytes": 512,
            "us": 104.0,
            "chunk_bytes": 131072,
            "chunk_us": 300.0,
            "transport": "tcp",
            "warning": None,
        },
        "speed": None if rate is None else {"decode_tokens_per_s": rate},
        "alone": None if rate is None else {"decode_tokens_per_s": 100.0},
    }


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (with_worker(oldest_step_s=42.0), "worker-1 has been at one step for 42 s"),
        (with_worker(state="loading"), "worker-1 is loading; `./launch.sh logs worker-1`"),
        (with_worker(host="mac2", why_away="mac2 does not answer; wake it up"), "mac2: mac2 does not answer"),
        (
            with_worker(memory={"kv_bytes": 590_000_000}),
            "98% of 0.6 GB for running requests is in use on worker-1",
        ),
        (with_worker(load={"busy_share": 0.95}), "worker-1 works 95% of the time and worker-0 43%"),
        (
            status(events=[{"at": 9_000.0, "what": "lost worker-1: it died"}]),
            "lost once within the hour, at last: lost worker-1",
        ),
        (status(requests=STATUS["requests"] | {"failed": 2}), "3 answered, 2 failed"),
        (
            status(hosts=[{"name": "a", "versions": {"mlx": "1"}}, {"name": "b", "versions": {"mlx": "2"}}]),
            "mlx is not the same everywhere (1 on a, 2 on b)",
        ),
        (
            status(links=[{"from": "a", "to": "b", "in_use": False, "warning": "slower than a cable"}]),
            "link from a to b: slower than",
        ),
        (status(why_no_group="it has 3 heads"), "no workers compute together: it has 3 heads"),
        (status(groups=[grouped(90.0)]), "the group does not pay, since of the time of one alone 5 ms a token can be"),
    ],
)
def test_what_is_amiss_in_a_running_cluster_is_named(seen, words):
    assert any(words in text for text in findings(seen, "warning"))


def test_what_sums_cost_and_whether_a_group_pays_is_said():
    sums = "worker-0, worker-1 compute together: a sum over tcp takes 0.104 ms, the 17 of a token 1.77 ms"
    pays = f"{sums}, one stream is 1.4 times as fast as on worker-0 alone: the group pays"
    assert pays in findings(status(groups=[grouped(140.0)]), "ok")
    assert any(text.startswith(f"{sums}; with") for text in findings(status(groups=[grouped(None)]), "ok"))


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (
            None,
            "a token 16 of them: a group of them pays, by this estimate, where one alone decodes at most 312 tokens/s",
        ),
        (250.0, "a group of them would pay, by this estimate; `[[groups]] workers = "),
        (400.0, "would not pay, by this estimate, since a token takes 2.5 ms on one alone"),
    ],
)
def test_whether_a_group_would_pay_is_estimated_from_the_quickest_link(rate, words):
    seen = status(
        links=[
            {"from": "worker-0", "to": name, "in_use": True, "round_trip_us": us, "warning": None}
            for name, us in (("worker-1", 100), ("c", 400), ("d", None))
        ]
    )
    for worker in seen["workers"]:
        worker["speed"] = None if rate is None else {"full_model": {"decode_tokens_per_s": rate}}
    assert any(words in text for text in findings(seen, "ok"))


def test_what_was_lost_long_ago_is_no_warning():
    assert findings(status(events=[{"at": 1_000.0, "what": "lost worker-1: it died"}]), "warning") == []


def test_examination_of_what_runs_is_of_its_own_model_and_ends_with_what_to_do(api, home, llama, capsys):
    settings = Settings(model=ModelSettings(path=str(llama)), workers=(WorkerSettings(name="a"),))
    Home.write_private(home.settings_file, msgspec.json.encode(settings))
    assert main(["doctor"]) == 0
    said = lines(capsys)
    assert any(text.startswith("model llama: llama") for _, text in said)
    assert any("2 workers" in text for _, text in said)
    verdict, text = said[-1]
    assert verdict == "next"
    assert f"{STATUS['api']}/v1" in text


def test_where_nothing_runs_the_next_thing_is_a_start(capsys):
    assert main(["doctor"]) == 0
    assert lines(capsys)[-1][1].startswith("`./launch.sh start`")


@pytest.mark.parametrize(
    "words", [["m", "--verify"], ["m", "--architectures"], ["--workers", "2"], ["m", "--host", "h"]]
)
def test_what_cannot_be_asked_together_is_refused(words, capsys):
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().out == ""
