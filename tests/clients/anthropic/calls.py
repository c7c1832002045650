"""Anthropic's client for Python."""

import anthropic
from calls import ANSWER, ASKED, PLAYED, TANDEM, call, make_all, refusal, script

client = anthropic.Anthropic(base_url=TANDEM, api_key="unused", max_retries=0)
played = anthropic.Anthropic(base_url=PLAYED, api_key="unused", max_retries=0)
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Tokyo"]}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather of a city.", "input_schema": SCHEMA}
LOOP = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")


@call
def messages():
    answer = client.messages.create(model="default", max_tokens=100, messages=ASKED)
    assert answer.content[0].text.startswith(ANSWER)
    assert answer.stop_reason == "end_turn"


@call
def system_and_blocks():
    answer = client.messages.create(
        model="claude-opus-4",
        max_tokens=5,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    )
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 5


@call
def stream():
    with client.messages.stream(model="default", max_tokens=100, messages=ASKED) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_message().content[0].text
    assert text.startswith(ANSWER)


@call
def tool_by_name():
    answer = client.messages.create(
        model="default",
        max_tokens=100,
        messages=ASKED,
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "weather"},
    )
    (made,) = [block for block in answer.content if block.type == "tool_use"]
    assert made.name == "weather"
    assert made.input["city"] in {"Paris", "Tokyo"}


@call
def any_tool_streamed():
    with client.messages.stream(
        model="default", max_tokens=100, messages=ASKED, tools=[WEATHER], tool_choice={"type": "any"}
    ) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    assert [block.input["city"] in {"Paris", "Tokyo"} for block in answer.content if block.type == "tool_use"] == [True]


@call
def tool_and_its_answer():
    messages = [{"role": "user", "content": LOOP}]
    first = played.messages.create(model="default", max_tokens=100, messages=messages, tools=[WEATHER])
    assert first.stop_reason == "tool_use"
    made = first.content[-1]
    result = {"type": "tool_result", "tool_use_id": made.id, "content": "rain"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = played.messages.create(model="default", max_tokens=100, messages=messages, tools=[WEATHER])
    assert second.content[0].text == "It rains."


@call
def tools_run_by_its_helper():
    asked = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        asked.append(city)
        return "rain"

    runner = played.beta.messages.tool_runner(
        model="default", max_tokens=100, messages=[{"role": "user", "content": LOOP}], tools=[weather]
    )
    assert runner.until_done().content[0].text == "It rains."
    assert asked == ["Paris"]


@call
def tools_of_the_bundled_model_run_by_its_helper():
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name
        """
        return "18 degrees and sunny"

    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    runner = client.beta.messages.tool_runner(model="default", max_tokens=100, messages=asked, tools=[get_weather])
    assert runner.until_done().content[0].text == "In Paris it is 18 degrees and sunny."


@call
def count_tokens():
    counted = client.messages.count_tokens(model="default", messages=ASKED).input_tokens
    assert counted == client.messages.create(model="default", max_tokens=1, messages=ASKED).usage.input_tokens


@call
def models():
    assert [model.id for model in client.models.list()] == ["tandem-demo"]


@call
def error_in_its_form():
    error = refusal(anthropic.BadRequestError, client.messages.create, model="default", max_tokens=0, messages=ASKED)
    assert error.body["error"]["type"] == "invalid_request_error"


make_all()
