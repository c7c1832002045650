"""LiteLLM: its library, over each of the dialects that Tandem speaks, and its proxy in front of them, asked in two dialects."""

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import httpx
import litellm
import openai
from calls import ANSWER, ASKED, PLAYED, QUESTION, TANDEM, call, make_all, script

OPENAI = {"model": "openai/default", "api_base": f"{TANDEM}/v1", "api_key": "unused"}
ANTHROPIC = {"model": "anthropic/default", "api_base": TANDEM, "api_key": "unused"}
OLLAMA = {"model": "ollama_chat/tandem-demo", "api_base": TANDEM}
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Paris", "Tokyo"]}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}
FORCED = {"type": "function", "function": {"name": "weather"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": PARAMETERS, "strict": True}}
LOOP = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
START_LIMIT_S = 300


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@call
def chat():
    assert litellm.completion(messages=ASKED, **OPENAI).choices[0].message.content.startswith(ANSWER)


@call
def stream():
    assert text_of(litellm.completion(messages=ASKED, stream=True, **OPENAI)).startswith(ANSWER)


@call
def tool_by_name():
    answer = litellm.completion(messages=ASKED, tools=[TOOL], tool_choice=FORCED, **OPENAI)
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["city"] in {"Paris", "Tokyo"}


@call
def structured_output():
    answer = litellm.completion(messages=ASKED, response_format=FORMAT, **OPENAI)
    assert json.loads(answer.choices[0].message.content)["city"] in {"Paris", "Tokyo"}


@call
def text_completion():
    answer = litellm.text_completion(
        model="text-completion-openai/default",
        prompt="Once upon a time",
        max_tokens=4,
        api_base=f"{TANDEM}/v1",
        api_key="unused",
    )
    assert answer.usage.completion_tokens == 4


@call
def responses():
    assert litellm.responses(input=QUESTION, **OPENAI).output[0].content[0].text.startswith(ANSWER)


@call
def embedding():
    assert len(litellm.embedding(input=["one", "two"], **OPENAI).data) == 2


@call
def through_messages():
    assert litellm.completion(messages=ASKED, max_tokens=100, **ANTHROPIC).choices[0].message.content.startswith(ANSWER)
    streamed = litellm.completion(messages=ASKED, max_tokens=100, stream=True, **ANTHROPIC)
    assert text_of(streamed).startswith(ANSWER)


@call
def through_messages_with_tools():
    there = ANTHROPIC | {"api_base": PLAYED}
    messages = [{"role": "user", "content": LOOP}]
    first = litellm.completion(messages=messages, tools=[TOOL], **there).choices[0].message
    (made,) = first.tool_calls
    messages += [first, {"role": "tool", "tool_call_id": made.id, "content": "rain"}]
    assert litellm.completion(messages=messages, tools=[TOOL], **there).choices[0].message.content == "It rains."


@call
def through_ollama():
    assert litellm.completion(messages=ASKED, **OLLAMA).choices[0].message.content.startswith(ANSWER)
    assert text_of(litellm.completion(messages=ASKED, stream=True, **OLLAMA)).startswith(ANSWER)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


KEY = "sk-of-this-proxy-alone-0123456789"
PROXY = f"http://127.0.0.1:{free_port()}"
asking = openai.OpenAI(base_url=f"{PROXY}/v1", api_key=KEY, max_retries=0)


@contextlib.contextmanager
def proxy():
    """LiteLLM's proxy, before Tandem in each of its dialects."""
    models = {"by-openai": OPENAI, "by-anthropic": ANTHROPIC, "by-ollama": OLLAMA}
    listed = [{"model_name": name, "litellm_params": params} for name, params in models.items()]
    file = Path.home() / "proxy.json"  # JSON is YAML
    file.write_text(json.dumps({"model_list": listed}))
    command = ["litellm", "--config", str(file), "--host", "127.0.0.1", "--port", PROXY.rpartition(":")[2]]
    process = subprocess.Popen(command, env=os.environ | {"LITELLM_MASTER_KEY": KEY}, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def proxy_answers():
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{PROXY}/health/liveliness", timeout=5).status_code == 200
    return False


def through_proxy(model):
    asked = {"model": model, "messages": ASKED, "max_tokens": 100}
    assert asking.chat.completions.create(**asked).choices[0].message.content.startswith(ANSWER)
    assert text_of(asking.chat.completions.create(stream=True, **asked)).startswith(ANSWER)


@call
def proxy_starts():
    begun = time.monotonic()
    while not proxy_answers():
        assert time.monotonic() - begun < START_LIMIT_S, "it did not start"
        time.sleep(0.5)


@call
def proxy_before_openai():
    through_proxy("by-openai")


@call
def proxy_before_anthropic():
    through_proxy("by-anthropic")


@call
def proxy_before_ollama():
    through_proxy("by-ollama")


@call
def proxy_asked_as_anthropic():
    for model in ("by-openai", "by-anthropic", "by-ollama"):
        body = {"model": model, "max_tokens": 100, "messages": ASKED}
        answer = httpx.post(f"{PROXY}/v1/messages", json=body, headers={"x-api-key": KEY}, timeout=60)
        assert answer.status_code == 200, f"{model}: {answer.text}"
        assert answer.json()["content"][0]["text"].startswith(ANSWER), f"{model}: {answer.text}"


@call
def proxy_asked_for_a_response():
    assert asking.responses.create(model="by-openai", input=QUESTION).output_text.startswith(ANSWER)


with proxy():
    make_all()
