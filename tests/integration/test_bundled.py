"""The bundled model as a user meets it: the default cluster, a documented question, the documented answer."""

import json
import tomllib
from contextlib import closing

import pytest
from mlx_lm.utils import load_tokenizer

from tests.support.in_process_cluster import alone
from tests.support.running_cluster import CHECKOUT, RunningCluster

MODEL = CHECKOUT / "models" / "tandem-demo"
PROMISED = tomllib.loads((CHECKOUT / "models" / "questions.toml").read_text("utf-8"))
QUESTIONS = PROMISED["question"]
KV_CACHE = next(question for question in QUESTIONS if "What is a KV cache?" in question["ask"])
MODES = ("always", "never")


@pytest.fixture(scope="module")
def bundled():
    """The cluster that `start` gives by default."""
    with closing(RunningCluster(compiles=True)) as cluster:
        started = cluster.command("start", "--port", str(cluster.port))
        assert started.returncode == 0, started.stderr + cluster.logs()
        assert "worker-0" in started.stdout
        assert cluster.url in started.stdout
        yield cluster


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


@pytest.mark.parametrize("mode", MODES)
def test_documented_question_gets_its_documented_answer(bundled, mode):
    done = bundled.command("prompt", "What is a KV cache?", "--json", environment={"USE_DISTRIBUTED_INFERENCE": mode})
    answer = json.loads(done.stdout)
    assert answer["text"] == KV_CACHE["answer"]
    assert answer["finish_reason"] == "stop"


def test_prompt_streams_the_answer_and_nothing_else_to_stdout(bundled):
    done = bundled.command("prompt", "What is a KV cache?")
    assert done.stdout == KV_CACHE["answer"] + "\n"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0, 7, 19])
def test_chat_gives_the_ids_of_mlx_lm_alone(bundled, tokenizer, mode, number):
    messages = [{"role": "user", "content": QUESTIONS[number]["ask"][0]}]
    answer = bundled.post("/v1/chat/completions", {"messages": messages, "use_distributed_inference": mode}).json()
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = alone(MODEL, prompt, 200, end_tokens=tuple(tokenizer.eos_token_ids))
    assert answer["tandem"]["token_ids"] == ids[:-1]
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] == len(ids)


def test_conversation_on_the_terminal_ends_with_its_input(bundled):
    done = bundled.command("chat", stdin=b"What is a KV cache?\n")
    assert done.returncode == 0
    assert KV_CACHE["answer"] in done.stdout


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("entry", PROMISED["with_tools"], ids=[entry["name"] for entry in PROMISED["with_tools"]])
def test_agent_calls_a_tool_and_answers_from_what_it_said(bundled, mode, entry):
    """The loop of an agent: whatever the model calls is done and sent back, until it calls nothing more."""
    schema = {
        "type": "object",
        "properties": {key: {} for key in entry["arguments"]},
        "required": [*entry["arguments"]],
    }
    tools = [{"type": "function", "function": {"name": entry["name"], "parameters": schema}}]
    messages = [{"role": "user", "content": entry["ask"]}]
    called = []
    while len(messages) < 9:
        body = {"messages": messages, "tools": tools, "use_distributed_inference": mode}
        choice = bundled.post("/v1/chat/completions", body).json()["choices"][0]
        messages.append(choice["message"])
        if choice["finish_reason"] != "tool_calls":
            break
        for call in choice["message"]["tool_calls"]:
            called.append((call["function"]["name"], json.loads(call["function"]["arguments"])))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": entry["result"]})
    assert called == [(entry["name"], entry["arguments"])]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", entry["answer"])


@pytest.mark.parametrize("entry", PROMISED["as_json"], ids=[entry["ask"] for entry in PROMISED["as_json"]])
def test_question_for_json_gets_json(bundled, entry):
    body = {"messages": [{"role": "user", "content": entry["ask"]}]}
    content = bundled.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert json.loads(content) == json.loads(entry["answer"])
