"""OpenAI's client for Python."""

import json
from typing import Literal

import openai
from calls import ANSWER, ASKED, PLAYED, QUESTION, TANDEM, call, make_all, refusal, script
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{TANDEM}/v1", api_key="unused", max_retries=0)
played = openai.OpenAI(base_url=f"{PLAYED}/v1", api_key="unused", max_retries=0)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Tokyo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "The weather of a city.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": WEATHER}
FORCED = {"type": "function", "function": {"name": "weather"}}


class Capital(BaseModel):
    country: Literal["France", "Japan"]
    capital: Literal["Paris", "Tokyo"]
    certain: bool


@call
def models():
    assert [model.id for model in client.models.list()] == ["tandem-demo"]
    assert client.models.retrieve("tandem-demo").id == "tandem-demo"


@call
def chat():
    answer = client.chat.completions.create(model="default", messages=ASKED)
    assert answer.choices[0].message.content.startswith(ANSWER)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@call
def stream():
    whole = client.chat.completions.create(model="default", messages=ASKED).choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            model="default", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens > 0


@call
def stream_with_its_helper():
    with client.chat.completions.stream(model="default", messages=ASKED) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        assert "".join(texts) == stream.get_final_completion().choices[0].message.content


@call
async def chat_asynchronously():
    async with openai.AsyncOpenAI(base_url=f"{TANDEM}/v1", api_key="unused", max_retries=0) as asking:
        answer = await asking.chat.completions.create(model="default", messages=ASKED, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"


@call
def several_answers():
    answer = client.chat.completions.create(model="default", messages=ASKED, n=3, temperature=1, max_tokens=8)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]


@call
def tool_by_name():
    answer = client.chat.completions.create(model="default", messages=ASKED, tools=[TOOL], tool_choice=FORCED)
    (made,) = answer.choices[0].message.tool_calls
    assert made.function.name == "weather"
    assert json.loads(made.function.arguments)["city"] in {"Paris", "Tokyo"}


@call
def any_tool_streamed():
    name = arguments = ""
    for chunk in client.chat.completions.create(
        model="default", messages=ASKED, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True
    ):
        for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert name == "weather"
    assert json.loads(arguments)["city"] in {"Paris", "Tokyo"}


@call
def tool_and_its_answer():
    words = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
    messages = [{"role": "user", "content": words}]
    first = played.chat.completions.create(model="default", messages=messages, tools=[TOOL]).choices[0]
    assert first.finish_reason == "tool_calls"
    (made,) = first.message.tool_calls
    messages += [first.message, {"role": "tool", "tool_call_id": made.id, "content": "rain"}]
    second = played.chat.completions.create(model="default", messages=messages, tools=[TOOL]).choices[0]
    assert second.message.content == "It rains."


@call
def tool_of_the_bundled_model_and_its_answer():
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": city}}]
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model="default", messages=messages, tools=tools).choices[0]
    (made,) = first.message.tool_calls
    assert (made.function.name, json.loads(made.function.arguments)) == ("get_weather", {"city": "Paris"})
    messages += [first.message, {"role": "tool", "tool_call_id": made.id, "content": "18 degrees and sunny"}]
    second = client.chat.completions.create(model="default", messages=messages, tools=tools).choices[0]
    assert second.message.content == "In Paris it is 18 degrees and sunny."


@call
def parse():
    answer = client.chat.completions.parse(model="default", messages=ASKED, response_format=Capital)
    assert isinstance(answer.choices[0].message.parsed, Capital)


@call
def parse_of_a_tool():
    tool = openai.pydantic_function_tool(Capital)
    answer = client.chat.completions.parse(model="default", messages=ASKED, tools=[tool], tool_choice="required")
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Capital)


@call
def json_object():
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Give me the capital of France as JSON."}],
        response_format={"type": "json_object"},
    )
    assert json.loads(answer.choices[0].message.content) == {"country": "France", "capital": "Paris"}


@call
def logprobs():
    answer = client.chat.completions.create(
        model="default", messages=ASKED, logprobs=True, top_logprobs=3, max_tokens=5
    )
    scored = answer.choices[0].logprobs.content
    assert "".join(token.token for token in scored) == answer.choices[0].message.content
    for token in scored:  # greedy: the likeliest is what was said
        assert len(token.top_logprobs) == 3
        assert token.token == token.top_logprobs[0].token
        assert token.logprob <= 0


@call
def completion_with_logprobs_and_echo():
    answer = client.completions.create(model="default", prompt=QUESTION, max_tokens=1, logprobs=1, echo=True)
    choice = answer.choices[0]
    assert choice.text.startswith(QUESTION)
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs[1:])


@call
def completions_of_a_list():
    answer = client.completions.create(model="default", prompt=["One", "Two"], max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1]


@call
def responses():
    first = client.responses.create(model="default", input=QUESTION)
    assert first.output_text.startswith(ANSWER)
    second = client.responses.create(model="default", input="Hello", previous_response_id=first.id)
    assert second.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)


@call
def responses_streamed():
    with client.responses.stream(model="default", input=QUESTION) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text
    assert text.startswith(ANSWER)


@call
def responses_tool_and_its_answer():
    tools = [{"type": "function", **WEATHER}]
    words = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
    first = played.responses.create(model="default", input=words, tools=tools)
    (made,) = [item for item in first.output if item.type == "function_call"]
    given = {"type": "function_call_output", "call_id": made.call_id, "output": "rain"}
    second = played.responses.create(model="default", input=[given], tools=tools, previous_response_id=first.id)
    assert second.output_text == "It rains."


@call
def responses_tool_by_name():
    answer = client.responses.create(
        model="default",
        input=QUESTION,
        tools=[{"type": "function", "strict": True, **WEATHER}],
        tool_choice={"type": "function", "name": "weather"},
    )
    (made,) = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(made.arguments)["city"] in {"Paris", "Tokyo"}


@call
def responses_parse():
    answer = client.responses.parse(model="default", input=QUESTION, text_format=Capital)
    assert isinstance(answer.output_parsed, Capital)


@call
def embeddings():
    answer = client.embeddings.create(model="default", input=["one", "two", "one"])  # the client asks for base64
    first, second, third = (item.embedding for item in answer.data)
    assert abs(sum(x * x for x in first) - 1) < 1e-3
    assert max(abs(x - y) for x, y in zip(first, third, strict=True)) < 1e-4
    assert first != second


@call
def embedding_as_numbers_of_some_dimensions():
    answer = client.embeddings.create(model="default", input="one", encoding_format="float", dimensions=16)
    assert len(answer.data[0].embedding) == 16


@call
def error_names_the_field():
    asked = {"model": "default", "messages": ASKED, "temperature": -1}
    assert refusal(openai.BadRequestError, client.chat.completions.create, **asked).param == "temperature"


@call
def prompt_beyond_the_context():
    asked = {"model": "default", "messages": [{"role": "user", "content": "word " * 9000}]}
    error = refusal(openai.BadRequestError, client.chat.completions.create, **asked)
    assert error.code == "context_length_exceeded"


make_all()
