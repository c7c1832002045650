"""What cannot work is refused in one plain sentence, with the right exit code, and leaves nothing behind."""

import json
import shutil
import subprocess

import pytest

from tests.support.running_cluster import launcher
from workers.zoo import make_tiny_model

# What a start says after a few seconds.
PROGRESS = ("tandem: starting", "tandem: all weights are loaded", "tandem: loading", "tandem: reading")


def assert_one_sentence(done, exit_code, *words):
    """The command failed with `exit_code` and one line on stderr that has every word in it, behind what it did if that took a while."""
    assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(PROGRESS)]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def model_copy(tiny_model, tmp_path):
    """A model directory that the test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def start(cluster, model, *options, **environment):
    return cluster.command(
        "start", "--port", str(cluster.port), "--model", str(model), *options, environment=environment
    )


# --- models


def without_tokenizer(model):
    for file in model.glob("tokenizer*"):
        file.unlink()
    return ("no tokenizer",)


def with_broken_tokenizer(model):
    (model / "tokenizer.json").write_text("{")
    return ("tokenizer",)


def with_truncated_weights(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return "model.safetensors", "truncated"


def with_corrupt_weights(model):
    weights = model / "model.safetensors"
    weights.write_bytes(b"\xff" * 100 + weights.read_bytes()[100:])
    return "model.safetensors", "damaged"


def with_weights_of_another_model(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    return ("config.json",)


def with_an_unknown_architecture(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "flux_capacitor"}))
    return ("flux_capacitor",)


def with_configuration_that_is_no_json(model):
    (model / "config.json").write_text("{")
    return ("config.json",)


def without_weights(model):
    (model / "model.safetensors").unlink()
    return ("no model*.safetensors",)


@pytest.mark.parametrize(
    "damage",
    [
        without_tokenizer,
        with_broken_tokenizer,
        with_truncated_weights,
        with_corrupt_weights,
        with_weights_of_another_model,
        with_an_unknown_architecture,
        with_configuration_that_is_no_json,
        without_weights,
    ],
)
def test_model_that_cannot_be_used_is_said_why(cluster, model_copy, damage):
    words = damage(model_copy)
    assert_one_sentence(start(cluster, model_copy), 1, *words)
    cluster.assert_no_process_left()
    assert cluster.status()["state"] == "stopped"


def test_model_directory_that_does_not_exist(cluster, tmp_path):
    assert_one_sentence(start(cluster, tmp_path / "nowhere"), 2, "nowhere", "does not exist")
    cluster.assert_no_process_left()


def test_more_workers_than_layers(cluster, tiny_model):
    assert_one_sentence(start(cluster, tiny_model, "--workers", "9"), 2, "9 workers", "8 layers")
    cluster.assert_no_process_left()


# --- memory and modes


@pytest.fixture
def small_workers(tmp_path, tiny_model):
    """A configuration whose two workers have room for their stages and not for the model."""
    room = int((tiny_model / "model.safetensors").stat().st_size)
    file = tmp_path / "small.toml"
    workers = "".join(f'[[workers]]\nname = "{name}"\nmemory_limit = {room}\n' for name in ("left", "right"))
    file.write_text(f'[model]\npath = "{tiny_model}"\n{workers}')
    return file


def test_mode_never_with_a_model_that_fits_nowhere_says_what_is_missing(cluster, small_workers):
    done = cluster.command(
        "start",
        *("--config", str(small_workers), "--port", str(cluster.port)),
        environment={"USE_DISTRIBUTED_INFERENCE": "never"},
    )
    assert_one_sentence(done, 2, "Mode never", "needs 1.3 MB", "has 1.2 MB")
    cluster.assert_no_process_left()


def test_model_that_fits_nowhere_is_distributed_with_caches_beyond_the_thresholds(cluster, small_workers):
    done = cluster.command("start", "--config", str(small_workers), "--port", str(cluster.port))
    assert done.returncode == 0, done.stderr
    assert not any(worker["holds_full_model"] for worker in cluster.api_status()["workers"])
    assert cluster.complete([30] * 100, 5)["tandem"]["strategy"] == "distributed-no-cache"
    long = cluster.complete([30] * 101, 5)["tandem"]
    assert long["strategy"] == "distributed-cached"
    assert "fits no single worker" in long["reason"]
    refused = cluster.post("/v1/completions", {"prompt": "hi", "use_distributed_inference": "never"})
    assert refused.status_code == 400
    assert "needs 1.3 MB" in refused.json()["error"]["message"]


def test_caches_that_were_asked_for_are_part_of_the_sum_before_anything_is_loaded(cluster, small_workers):
    small_workers.write_text(small_workers.read_text() + "[plan]\ncontext_tokens = 512\nrequests = 16\n")
    done = cluster.command("start", "--config", str(small_workers), "--port", str(cluster.port))
    assert_one_sentence(done, 2, "1.2 MB of weights", "16 requests of 512 tokens", "memory_limit")
    cluster.assert_no_process_left()


# --- command lines, environment, configuration


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["dance"], {}, ["dance", "--help"]),
        (["statsu"], {}, ["status"]),
        (["start", "--workers", "0"], {}, ["workers"]),
        (["start", "--workers", "some"], {}, ["workers"]),
        (["start", "--port", "99999"], {}, ["port"]),
        (["start"], {"USE_DISTRIBUTED_INFERENCE": "perhaps"}, ["perhaps", "auto", "always", "never"]),
        (["prompt", "hi"], {"USE_DISTRIBUTED_INFERENCE": "perhaps"}, ["perhaps", "auto", "always", "never"]),
        (["explain", "hi"], {"USE_DISTRIBUTED_INFERENCE": "perhaps"}, ["perhaps", "auto", "always", "never"]),
        (["start", "--config", "/nowhere.toml"], {}, ["/nowhere.toml"]),
        (["prompt"], {}, ["TEXT"]),
    ],
)
def test_wrong_command_line_is_refused_before_anything_starts(cluster, arguments, environment, words):
    assert_one_sentence(cluster.command(*arguments, environment=environment), 2, *words)
    cluster.assert_no_process_left()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[strategy]\nprompt_treshold = 5\n", ["prompt_treshold", "prompt_threshold"]),
        ("[stragety]\n", ["stragety", "strategy"]),
        ('[strategy]\nuse_distributed_inference = "perhaps"\n', ["perhaps"]),
        ('[api]\nport = "high"\n', ["api.port", "high"]),
        ("[api\n", ["not valid TOML"]),
    ],
)
def test_wrong_configuration_file_names_the_key(cluster, tmp_path, content, words):
    file = tmp_path / "wrong.toml"
    file.write_text(content)
    assert_one_sentence(cluster.command("start", "--config", str(file)), 2, *words)
    cluster.assert_no_process_left()


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["prompt", ""], b"", ["empty"]),
        (["prompt", "-"], b"", ["empty"]),
        (["prompt", "-"], b"\xff\xfe", ["UTF-8"]),
        (["prompt", "hi", "--max-tokens", "0"], b"", ["max-tokens"]),
        (["prompt", "hi", "--max-tokens", "-1"], b"", ["max-tokens"]),
        (["prompt", "hi", "--max-tokens", "lots"], b"", ["max-tokens"]),
        (["prompt", "hi", "--temperature", "warm"], b"", ["temperature"]),
        (["prompt", "hi", "--temperature", "nan"], b"", ["temperature"]),
        (["prompt", "hi", "--temperature", "99"], b"", ["temperature"]),
        (["prompt", "-"], b"word " * 5000, ["context", "shorten"]),
        (["prompt", "hi", "--strategy", "fastest"], b"", ["strategy"]),
        (["prompt", "hi", "--strategy", "tensor-parallel"], b"", ["tensor-parallel"]),
    ],
)
def test_wrong_prompt_is_refused_and_the_cluster_goes_on(serving, arguments, stdin, words):
    assert_one_sentence(serving.command(*arguments, stdin=stdin), 2, *words)
    assert serving.api_status()["state"] == "ready"


def test_model_without_a_chat_template_is_prompted_raw(cluster, tmp_path):
    model = make_tiny_model("llama", tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    cluster.start(model)
    assert cluster.command("prompt", "hi", "--max-tokens", "3").returncode == 0
    refused = cluster.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert refused.status_code == 400
    assert "template" in refused.json()["error"]["message"]


def test_too_few_files_are_one_sentence(cluster, tiny_model):
    command = [*launcher(), "start", "--port", str(cluster.port), "--model", str(tiny_model)]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 63; exec "$@"', "sh", *command],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert_one_sentence(done, 1, "fewer than 64 files", "ulimit -n")
