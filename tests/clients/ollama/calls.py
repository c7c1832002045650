"""Ollama's client for Python."""

import json

import ollama
from calls import ANSWER, ASKED, PLAYED, QUESTION, TANDEM, call, make_all, script

client = ollama.Client(host=TANDEM)
played = ollama.Client(host=PLAYED)
FORMAT = {"type": "object", "properties": {"capital": {"enum": ["Paris", "Tokyo"]}}, "required": ["capital"]}


@call
def chat():
    answer = client.chat(model="default", messages=ASKED)
    assert answer.message.content.startswith(ANSWER)
    assert answer.done


@call
def chat_streamed():
    parts = list(client.chat(model="tandem-demo:latest", messages=ASKED, stream=True))
    assert "".join(part.message.content or "" for part in parts).startswith(ANSWER)
    assert parts[-1].eval_count > 0


@call
def chat_with_options():
    answer = client.chat(
        model="default", messages=ASKED, options={"num_predict": 4, "num_ctx": 2048, "temperature": 0}, keep_alive="5m"
    )
    assert answer.done_reason == "length"
    assert answer.eval_count == 4


@call
def chat_with_tools():
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return f"rain in {city}"

    messages = [{"role": "user", "content": script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")}]
    first = played.chat(model="default", messages=messages, tools=[weather])
    (made,) = first.message.tool_calls
    assert dict(made.function.arguments) == {"city": "Paris"}
    messages += [first.message, {"role": "tool", "tool_name": "weather", "content": weather("Paris")}]
    assert played.chat(model="default", messages=messages, tools=[weather]).message.content == "It rains."


@call
def chat_in_a_format():
    answer = client.chat(model="default", messages=ASKED, format=FORMAT)
    assert json.loads(answer.message.content)["capital"] in {"Paris", "Tokyo"}


@call
def generate():
    assert client.generate(model="default", prompt=QUESTION).response.startswith(ANSWER)
    parts = list(client.generate(model="default", prompt=QUESTION, stream=True))
    assert "".join(part.response for part in parts).startswith(ANSWER)


@call
def tags():
    assert [model.model for model in client.list().models] == ["tandem-demo"]


@call
def show():
    shown = client.show("tandem-demo")
    assert "completion" in shown.capabilities
    assert shown.modelinfo


@call
def ps():
    assert [model.model for model in client.ps().models] == ["tandem-demo"]


@call
def embed():
    one = client.embed(model="default", input="one").embeddings
    several = client.embed(model="default", input=["one", "two"]).embeddings
    assert (len(one), len(several)) == (1, 2)
    assert len(one[0]) == len(several[1])


make_all()
