"""The commands against a fake API: what they send, what they print where, and how they fail."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cluster.cli.main import main
from cluster.cli.mending import differences
from cluster.config import Flags, load_settings
from cluster.settings import ApiSettings, KeySettings
from protocol.home import ClusterState, Home, ProcessIdentity
from tests.support.fake_api import STATUS, TANDEM, USAGE, chat_piece, event

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    for variable in ("USE_DISTRIBUTED_INFERENCE", "TANDEM_STRATEGY_POLICY", "TANDEM_API_KEY", "TANDEM_PORT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def failure(capsys, *arguments) -> tuple[int, str]:
    """Exit code and the one sentence on stderr; nothing on stdout, no traceback."""
    code = main(arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err
    return code, printed.err


def test_prompt_streams_the_text_and_nothing_else_to_stdout(api, capsys):
    assert main(["prompt", "hello"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "Héllo\n"
    assert printed.err == ""
    path, body = api.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_several_words_are_one_prompt_behind_what_the_model_is_told_first(api):
    assert main(["prompt", "hello", "world", "--system", "Be brief."]) == 0
    assert api.asked[0][1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello world"},
    ]


def test_system_prompt_needs_a_template(api, capsys):
    assert failure(capsys, "prompt", "x", "--raw", "--system", "Be brief.")[0] == 2
    assert api.asked == []


def test_all_of_sampling_can_be_chosen(api):
    options = ["--top-p", "0.9", "--top-k", "40", "--min-p", "0.05", "--stop", "###", "--stop", "END", "--model", "m"]
    assert main(["prompt", "x", *options]) == 0
    body = api.asked[0][1]
    chosen = {name: body[name] for name in ("top_p", "top_k", "min_p", "stop", "model")}
    assert chosen == {"top_p": 0.9, "top_k": 40, "min_p": 0.05, "stop": ["###", "END"], "model": "m"}


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("promt", "did you mean 'prompt'?"),
        ("statsu", "did you mean 'status'?"),
        ("pull", "'pull'; `./launch.sh --help`"),
    ],
)
def test_only_what_is_near_is_suggested(capsys, typed, says):
    code, sentence = failure(capsys, typed)
    assert code == 2
    assert says in sentence
    assert ("did you mean" in says) == ("did you mean" in sentence)


def test_help_names_what_a_command_takes(capsys):
    assert main(["help", "models", "pull"]) == 0
    assert "Usage: launch.sh models pull" in capsys.readouterr().out
    assert main(["help"]) == 0
    printed = capsys.readouterr().out
    assert "Commands:" in printed
    assert "..." not in printed.replace("[ARGS]...", "")
    code, sentence = failure(capsys, "help", "dance")
    assert code == 2
    assert "'dance'" in sentence


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell_asks_launch_sh(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_LAUNCH_SH_COMPLETE={shell}_complete" in script
    assert "launch.sh" in script


def test_each_benchmark_is_listed_with_what_it_measures(capsys):
    assert main(["bench"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == len(list((CHECKOUT / "benchmarks").glob("[a-z]*.py")))
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)


def test_waiting_ends_when_the_cluster_is_ready_or_when_it_took_too_long(api, capsys):
    assert main(["wait", "--for", "ready"]) == 0
    assert main(["wait", "--for", "stopped", "--timeout", "0"]) == 3
    assert "ready, not stopped" in capsys.readouterr().err


def test_prompt_options_go_into_the_request(api, monkeypatch):
    monkeypatch.setenv("USE_DISTRIBUTED_INFERENCE", "always")
    options = ["--max-tokens", "7", "--temperature", "0.5", "--seed", "3"]
    assert main(["prompt", "x", *options, "--strategy", "distributed-cached", "--conversation", "c1"]) == 0
    body = api.asked[0][1]
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (7, 0.5, 3)
    assert (body["strategy"], body["conversation"]) == ("distributed-cached", "c1")
    assert body["use_distributed_inference"] == "always"


def test_prompt_json_is_one_object_with_the_documented_keys(api, capsys):
    assert main(["prompt", "x", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed) == {
        "text": "Héllo",
        "token_ids": [5, 6],
        "strategy": "distributed-no-cache",
        "reason": "short enough",
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "finish_reason": "stop",
        "ttft_s": 0.25,
        "decode_tokens_per_s": 12.5,
        "workers": ["worker-0", "worker-1"],
    }


def test_prompt_json_passes_on_what_the_answer_says_further(api, capsys):
    further = {"cached_tokens": 4, "resumed": 1, "notes": ["seed had no effect"], "unheard_of": 5}
    last = event({"choices": [], "usage": USAGE, "tandem": TANDEM | further}) + b"data: [DONE]\n\n"
    api.answers["/v1/chat/completions"] = (200, chat_piece("ab", "stop") + last)
    assert main(["prompt", "x", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    del further["unheard_of"]
    assert {name: report.get(name) for name in further} == further
    assert "unheard_of" not in report


class _Screen(io.StringIO):
    def isatty(self):
        return True


def test_wait_for_a_lost_worker_is_shown_under_the_answer_and_the_summary_counts_resumptions(api, capsys, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", screen := _Screen())
    last = event({"choices": [], "usage": USAGE, "tandem": TANDEM | {"resumed": 2}}) + b"data: [DONE]\n\n"
    content = (
        chat_piece("ab") + b": waiting for worker-1\n\n" * 2 + b": prefill 1/9\n\n" + chat_piece("cd", "stop") + last
    )
    api.answers["/v1/chat/completions"] = (200, content)
    assert main(["prompt", "x"]) == 0
    assert capsys.readouterr().out == "abcd\n"
    shown = screen.getvalue()
    assert shown.startswith("\nwaiting for worker-1\r\033[Kwaiting for worker-1\r\033[K")
    assert "12 tokens/s;\033[0m\n\033[2mresumed 2 times]" in shown


def test_raw_prompt_and_models_without_a_template_use_completions(api, capsys):
    assert main(["prompt", "x", "--raw"]) == 0
    assert api.asked[-1][0] == "/v1/completions"
    assert api.asked[-1][1]["prompt"] == "x"
    model = STATUS["model"] | {"has_chat_template": False}
    api.answers["/status"] = (200, json.dumps(STATUS | {"model": model}).encode())
    assert main(["prompt", "y"]) == 0
    assert api.asked[-1][0] == "/v1/completions"
    assert capsys.readouterr().out == "raw\nraw\n"


class _Stdin:
    def __init__(self, content: bytes):
        self.buffer = io.BytesIO(content)


def test_dash_reads_standard_input(api, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", _Stdin("naïve\n".encode()))
    assert main(["prompt", "-"]) == 0
    assert api.asked[0][1]["messages"][0]["content"] == "naïve\n"
    monkeypatch.setattr("sys.stdin", _Stdin(b"\xff\xfe"))
    capsys.readouterr()
    code, sentence = failure(capsys, "prompt", "-")
    assert code == 2
    assert "UTF-8" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompt", ""], "empty"),
        (["prompt", " \n"], "empty"),
        (["prompt", "\udcff"], "UTF-8"),
        (["prompt", "x", "--max-tokens", "0"], "--max-tokens"),
        (["prompt", "x", "--max-tokens", "-3"], "--max-tokens"),
        (["prompt", "x", "--temperature", "hot"], "--temperature"),
        (["prompt", "x", "--temperature", "nan"], "finite"),
        (["prompt", "x", "--temperature", "-1"], "--temperature"),
        (["prompt", "x", "--strategy", "magic"], "tensor-parallel"),
        (["prompt", "x", "--nonsense"], "--nonsense"),
        (["prompt"], "TEXT"),
        (["promt", "x"], "'prompt'"),
        (["start", "--workers", "0"], "--workers"),
        (["start", "--port", "70000"], "--port"),
        (["start", "--config", "/no/such.toml"], "/no/such.toml"),
        (["bench", "nothing"], "nothing"),
        (["test"], "./launch.sh test"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(capsys, arguments, words):
    code, sentence = failure(capsys, *arguments)
    assert code == 2
    assert words in sentence


@pytest.mark.parametrize("command", ["prompt", "explain", "start"])
def test_unknown_mode_is_refused_by_every_command_that_reads_it(api, capsys, monkeypatch, command):
    monkeypatch.setenv("USE_DISTRIBUTED_INFERENCE", "maybe")
    code, sentence = failure(capsys, command, *([] if command == "start" else ["x"]))
    assert code == 2
    assert "'maybe'" in sentence
    assert "auto, always or never" in sentence


@pytest.mark.parametrize(("status", "code"), [(400, 2), (404, 2), (413, 2), (401, 1), (429, 1), (500, 1), (503, 1)])
def test_errors_of_the_api_are_passed_on(api, capsys, status, code):
    error = {"error": {"message": "The prompt has 9000 tokens.", "type": "t", "param": None, "code": "c"}}
    api.answers["/v1/chat/completions"] = (status, json.dumps(error).encode())
    assert failure(capsys, "prompt", "x") == (code, "tandem: The prompt has 9000 tokens.\n")


def test_error_about_a_field_is_shown_with_the_field_s_own_name(api, capsys):
    error = {
        "message": "temperature must be a number from 0 to 2, not 99.",
        "type": "t",
        "param": "temperature",
        "code": "c",
    }
    api.answers["/v1/chat/completions"] = (400, json.dumps({"error": error}).encode())
    assert failure(capsys, "prompt", "x") == (2, f"tandem: {error['message']}\n")


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"error": "odd"}'])
def test_failure_without_an_error_object_says_its_status(api, capsys, body):
    api.answers["/v1/chat/completions"] = (502, body)
    assert failure(capsys, "prompt", "x") == (1, "tandem: The API answered 502.\n")


def test_error_in_the_middle_of_a_stream_fails(api, capsys):
    api.answers["/v1/chat/completions"] = (200, chat_piece("ab") + event({"error": {"message": "worker-1 was lost"}}))
    assert main(["prompt", "x"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "ab"
    assert "worker-1 was lost" in printed.err


def test_stream_that_breaks_off_fails(api, capsys):
    api.answers["/v1/chat/completions"] = (200, chat_piece("ab"))
    assert main(["prompt", "x", "--json"]) == 1
    assert "broke off" in capsys.readouterr().err


def test_key_comes_from_the_environment(api, monkeypatch):
    monkeypatch.setenv("TANDEM_API_KEY", "k1")
    main(["prompt", "x"])
    assert api.headers[-1]["Authorization"] == "Bearer k1"


def test_explain_prints_the_choice(api, capsys):
    choice = {
        "strategy": "single-device-cached",
        "reason": "182 prompt tokens are more than 100",
        "prompt_tokens": 182,
        "max_tokens": 50,
        "candidates": [
            {
                "strategy": "tensor-parallel",
                "feasible": False,
                "why_not": "not built",
                "predicted_ttft_s": None,
                "predicted_total_s": None,
            }
        ],
    }
    api.answers["/v1/explain"] = (200, json.dumps(choice).encode())
    assert main(["explain", "x", "--max-tokens", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == choice
    assert api.asked[0] == ("/v1/explain", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 50})
    assert main(["explain", "x"]) == 0
    printed = capsys.readouterr().out
    assert "182 prompt tokens are more than 100" in printed
    assert "not possible: not built" in printed


@pytest.mark.parametrize("state", ["starting", "degraded"])
def test_status_of_a_cluster_that_is_not_ready_has_an_exit_code_of_its_own(api, capsys, state):
    api.answers["/status"] = (200, json.dumps(STATUS | {"state": state}).encode())
    assert main(["status", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == state
    assert main(["status"]) == 3
    assert f"state   {state}" in capsys.readouterr().out


def test_status_of_nothing_has_every_key(capsys):
    assert main(["status", "--json"]) == 3
    status = json.loads(capsys.readouterr().out)
    assert set(status) == set(STATUS)
    assert status["state"] == "stopped"
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == "Nothing is running.\n"


def test_status_after_the_coordinator_died_says_so(home, capsys):
    gone = ProcessIdentity(pid=os.getpid(), create_time=1.0)
    home.write_state(ClusterState(coordinator=gone, api="http://127.0.0.1:1", port=1, started_at=1.0))
    assert main(["status", "--json"]) == 3
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "stopped"
    assert "died" in status["note"]


def test_status_while_the_coordinator_is_started_again_is_starting(home, capsys):
    gone, me = ProcessIdentity(pid=os.getpid(), create_time=1.0), ProcessIdentity.of(os.getpid())
    home.write_state(ClusterState(supervisor=me, coordinator=gone, api="http://127.0.0.1:1", port=1, started_at=1.0))
    assert main(["status", "--json"]) == 3
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "starting"
    assert "note" not in status


@pytest.fixture
def settings(home, api):
    """What the cluster that seems to run was started with."""
    settings = load_settings(
        None, checkout=CHECKOUT, working_directory=CHECKOUT, environment={}, flags=Flags()
    ).settings
    home.write_private(home.settings_file, msgspec.json.encode(settings))
    return settings


@pytest.mark.usefixtures("settings")
def test_start_of_a_running_cluster_says_so(api, capsys):
    assert main(["start"]) == 0
    assert f"Already running at {api.url}" in capsys.readouterr().out


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "9000"], ["api.port is 8420, not 9000"]),
        (["--workers", "3"], ["2 workers, not 3"]),
        (["--allow-mixed"], ["allow_mixed is false, not true"]),
        (["--port", "9000", "--kv-cache", "paged"], ["api.port is", 'kv_cache.kind is "dynamic", not "paged"']),
    ],
)
def test_start_with_other_settings_names_each_and_fails(api, capsys, arguments, words):
    code, sentence = failure(capsys, "start", *arguments)
    assert code == 2
    assert all(word in sentence for word in [*words, api.url, "--replace"])


def test_difference_of_keys_shows_neither(settings):
    with_key = msgspec.structs.replace(settings, api=msgspec.structs.replace(settings.api, api_key="secret-key"))
    assert differences(settings, with_key) == ["api.api_key is another"]
    one, another = (
        msgspec.structs.replace(settings, api=ApiSettings(keys=(KeySettings(name="ann", key=key),)))
        for key in ("secret-a", "secret-b")
    )
    assert differences(one, another) == ["api.keys[0].key is another"]
    assert differences(one, settings) == ["it has 1 [[api.keys]], not 0"]
    assert differences(settings, settings) == []


@pytest.mark.usefixtures("settings")
def test_start_of_a_degraded_cluster_mends_it_and_says_what_it_did(api, capsys):
    degraded = json.dumps(STATUS | {"state": "degraded"}).encode()
    api.answers["/status"] = (200, degraded)
    api.answers["/v1/cluster/mend"] = (202, b'{"mending": ["worker-1"]}')

    def mended(path, _body):
        if path == "/v1/cluster/mend":
            api.answers["/status"] = (200, json.dumps(STATUS).encode())

    api.on_request = mended
    assert main(["start"]) == 0
    assert f"Mended the cluster at {api.url}: started worker-1 again.\n" == capsys.readouterr().out


@pytest.mark.usefixtures("settings")
def test_start_of_a_degraded_cluster_that_cannot_be_mended_says_what_to_do(api, capsys):
    api.answers["/status"] = (200, json.dumps(STATUS | {"state": "degraded"}).encode())
    api.answers["/v1/cluster/mend"] = (202, b'{"mending": []}')
    code, sentence = failure(capsys, "start")
    assert code == 1
    assert "--replace" in sentence


def test_chat_keeps_the_conversation_and_forgets_it_on_clear(api, monkeypatch, capsys):
    lines = iter(["hi", "", "more", "/clear", "anew", "/exit", "never"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["chat"]) == 0
    contents = [[message["content"] for message in body["messages"]] for _, body in api.asked]
    assert contents == [["hi"], ["hi", "Héllo", "more"], ["anew"]]
    conversations = [body["conversation"] for _, body in api.asked]
    assert conversations[0] == conversations[1] != conversations[2]
    assert capsys.readouterr().out == "Héllo\n" * 3


def test_config_shows_values_and_origins_but_no_key(monkeypatch, capsys):
    monkeypatch.setenv("TANDEM_API_KEY", "secret-key")
    assert main(["config", "--port", "9000"]) == 0
    printed = capsys.readouterr().out
    assert "secret-key" not in printed
    assert any(line.split() == ["api.port", "=", "9000", "#", "--port"] for line in printed.splitlines())


def test_logs_of_either_format_are_text(home, capsys):
    home.logs.joinpath("worker-0.log").write_text("".join(json_line(f"step {number}") for number in range(3)))
    assert main(["logs", "worker-0", "-n", "2"]) == 0
    assert [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()] == [
        "000 INFO workers: step 1",
        "000 INFO workers: step 2",
    ]


def json_line(message):
    line = {"time": "2023-11-14T22:13:20+00:00", "level": "INFO", "logger": "workers", "message": message, "more": 1}
    return json.dumps(line) + "\n"


def test_logs_show_the_ends_and_name_what_exists(home, capsys):
    code, sentence = failure(capsys, "logs")
    assert (code, "no logs" in sentence) == (1, True)
    (home.logs / "coordinator.log").write_text("".join(f"line {number}\n" for number in range(30)))
    assert main(["logs", "coordinator", "-n", "2"]) == 0
    assert capsys.readouterr().out == "line 28\nline 29\n"
    code, sentence = failure(capsys, "logs", "worker-9")
    assert code == 2
    assert "coordinator" in sentence


def test_host_that_is_away_has_a_line_that_says_what_mends_it(api, capsys):
    away = [
        STATUS["workers"][0] | {"name": name, "host": "mac2", "why_away": "mac2 does not answer; wake it up"}
        for name in ("mac2-0", "mac2-1")
    ]
    status = STATUS | {"state": "degraded", "workers": [*STATUS["workers"], *away]}
    api.answers["/status"] = (200, json.dumps(status).encode())
    assert main(["status"]) == 3
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing")]
    assert missing == ["missing mac2: mac2 does not answer; wake it up"]


def test_json_answer_without_tandem_is_not_taken_for_ours(api, capsys):
    api.answers["/v1/chat/completions"] = (200, chat_piece("ab", "stop") + b"data: [DONE]\n\n")
    code, sentence = failure(capsys, "prompt", "x", "--json")
    assert code == 1
    assert "usage" in sentence


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_disk_that_takes_nothing_is_a_sentence_that_names_the_place(monkeypatch, capsys, tmp_path, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), "/somewhere/cluster.json")

    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Home, "write_private", fail)
    assert main(["start"]) == 1
    said = capsys.readouterr().err
    assert f"/somewhere/cluster.json cannot be written ({os.strerror(number)}); make room" in said
    assert "report" not in said


@pytest.mark.usefixtures("settings")
def test_replacing_begins_with_the_model_so_that_what_serves_goes_on_without_one(capsys, monkeypatch, tmp_path):
    stopped = []
    monkeypatch.setattr("cluster.cli.mending.stop_cluster", lambda *_: stopped.append(True))
    code, sentence = failure(capsys, "start", "--replace", "--model", str(tmp_path / "tandem-demmo"))
    assert code == 2
    assert "does not exist; did you mean" in sentence
    assert stopped == []


def test_commands_that_calculate_nothing_start_without_numpy():
    asked = "import sys, cluster.cli.models, cluster.cli.hosting, cluster.cli.session; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
