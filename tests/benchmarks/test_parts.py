"""Prompts, models, stand-ins and reports of the benchmarks."""

import argparse
import io
import json
import tomllib

from rich.console import Console

from benchmarks.record import LOSSES, MARKER, MEASUREMENTS, SPEED, page, results
from benchmarks.support.contenders import WorkerLimits, configuration
from benchmarks.support.fake_stages import batches
from benchmarks.support.many_streams import Arrivals
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import SIZES, num_parameters
from benchmarks.support.random_models import configuration as model_configuration
from benchmarks.support.reporting import Report, as_markdown
from cluster.config import Flags, load_settings
from protocol.codec import decode, encode
from protocol.messages import Heartbeat
from tests.support.tiny_tokenizer import write_tokenizer


def test_prompts_have_exactly_the_tokens_asked_for(tmp_path):
    from tokenizers import Tokenizer

    directory = write_tokenizer(tmp_path)  # one that puts a token of its own in front
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    maker = PromptMaker(0, directory)
    for length in (2, 17, 300):
        assert len(tokenizer.encode(maker.make(length)).ids) == length


def test_equal_seeds_give_equal_prompts_and_no_two_begin_alike():
    first, second = PromptMaker(3), PromptMaker(3)
    prompts = [first.make(20) for _ in range(50)]
    assert prompts == [second.make(20) for _ in range(50)]
    assert len({prompt[:8] for prompt in prompts}) == 50


def test_sizes_are_what_their_names_say():
    millions = {name: num_parameters(size) / 1e6 for name, size in SIZES.items()}
    assert 24 < millions["25m"] < 28
    assert 158 < millions["160m"] < 162
    assert 500 < millions["500m"] < 525


def test_model_configuration_is_consistent():
    for size in SIZES.values():
        config = model_configuration(size, 2048)
        assert config["hidden_size"] % config["num_attention_heads"] == 0
        assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


def test_cluster_configuration_is_toml_that_tandem_takes(tmp_path):
    text = configuration(tmp_path, 1234, [WorkerLimits(memory_limit_bytes=5, layers=(0, 2)), WorkerLimits()])
    document = tomllib.loads(text)
    assert document["model"] == {"path": str(tmp_path)}
    assert document["api"] == {"port": 1234}
    assert document["workers"] == [{"memory_limit": 5, "layers": [0, 2]}, {}]
    (tmp_path / "bench.toml").write_text(text)
    load_settings(tmp_path / "bench.toml", checkout=tmp_path, working_directory=tmp_path, environment={}, flags=Flags())


def test_copies_stand_in_the_configuration_only_where_they_are_wanted(tmp_path):
    assert "recovery" not in tomllib.loads(configuration(tmp_path, 1234, [WorkerLimits()]))
    wanted = tomllib.loads(configuration(tmp_path, 1234, [WorkerLimits()], further={"recovery": {"kv_copies": 1}}))
    assert wanted["recovery"] == {"kv_copies": 1}


def test_fake_heartbeat_is_a_valid_message():
    frames = encode(0, Heartbeat(worker="worker-0"))
    assert decode(frames).message.worker == "worker-0"


def test_batches_hold_at_most_the_given_rows():
    assert batches(range(5), 2) == [[0, 1], [2, 3], [4]]


def test_tokens_that_came_together_have_the_same_time():
    assert Arrivals(pieces=[(1.0, 2), (2.0, 1)]).times() == [1.0, 1.0, 2.0]


def test_report_says_which_targets_were_met(tmp_path):
    report = Report("example")
    report.fact("machine", "this one")
    report.table("values", ["what", "value"], [["a", 1234.5], ["b", None]])
    report.check("speed", 2.0, at_least=1.5)
    report.check("latency", 3.0, at_most=1.0)
    report.check("unknown", None, at_most=1.0)
    report.figure = "<svg/>"
    assert [item.met for item in report.checked] == [True, False]
    out = io.StringIO()
    report.show(Console(file=out, width=100))
    assert "MISSED: latency: 3" in out.getvalue()
    report.publish(argparse.Namespace(json=str(tmp_path / "r.json"), svg=str(tmp_path / "r.svg")))
    content = json.loads((tmp_path / "r.json").read_bytes())
    assert content["tables"][0]["rows"] == [["a", "1,234"], ["b", "-"]]
    assert [target["met"] for target in content["targets"]] == [True, False]
    assert (tmp_path / "r.svg").read_text() == "<svg/>"
    text = as_markdown(content)
    assert "| a | 1,234 |" in text
    assert "latency: 3; wanted at most 1: **missed**" in text


def test_page_keeps_what_people_wrote_and_replaces_the_results():
    name = next(iter(MEASUREMENTS))
    result = {"facts": {"machine": "m"}, "tables": [], "targets": []}
    written = page("# Benchmarks\n\nHow.\n", {name: result})
    again = page(written, {name: result})
    assert again == written
    assert written.startswith(f"# Benchmarks\n\nHow.\n\n{MARKER}")
    assert MEASUREMENTS[name].command in written


def test_what_was_not_measured_here_stays_on_the_page():
    first, second = list(MEASUREMENTS)[:2]
    result = {"facts": {"machine": "m"}, "tables": [], "targets": []}
    both = page("# Benchmarks\n", {first: result, second: result})
    assert page(both, {second: result}) == page(both, {first: result}) == page(both, {}) == both


def test_the_pages_are_as_they_would_be_written_again():
    for file in (LOSSES, SPEED):
        text = file.read_text(encoding="utf-8")
        assert page(text, {}) == text


def test_each_page_has_its_own_results(tmp_path):
    for name in ("kills", "hop"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert results(tmp_path, LOSSES) == {"kills": {}}
    assert results(tmp_path, SPEED) == {"hop": {}}
    for file in (LOSSES, SPEED):
        assert MARKER in file.read_text()
