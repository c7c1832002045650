"""LlamaIndex, with its model for what is like OpenAI."""

from typing import Literal

from calls import ANSWER, PLAYED, QUESTION, TANDEM, call, make_all, script
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

SETTINGS = {
    "model": "default",
    "api_key": "unused",
    "is_chat_model": True,
    "is_function_calling_model": True,
    "context_window": 4096,
    "max_retries": 0,
}
llm = OpenAILike(api_base=f"{TANDEM}/v1", **SETTINGS)
played = OpenAILike(api_base=f"{PLAYED}/v1", **SETTINGS)
ASKING = [ChatMessage(role="user", content=QUESTION)]


class Capital(BaseModel):
    """A country's capital."""

    capital: Literal["Paris", "Tokyo"]
    certain: bool


def weather(city: Literal["Paris", "Tokyo"]) -> str:
    """The weather of a city."""
    return f"rain in {city}"


@call
def chat():
    assert llm.chat(ASKING).message.content.startswith(ANSWER)


@call
def stream():
    *_, last = llm.stream_chat(ASKING)
    assert last.message.content.startswith(ANSWER)


@call
def complete():
    assert llm.complete(QUESTION).text.startswith(ANSWER)


@call
def completion_without_a_template():
    raw = OpenAILike(api_base=f"{TANDEM}/v1", **SETTINGS | {"is_chat_model": False, "max_tokens": 4})
    assert isinstance(raw.complete("Once upon a time").text, str)


@call
def tool_that_is_required():
    tool = FunctionTool.from_defaults(weather)
    answer = llm.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    (made,) = llm.get_tool_calls_from_response(answer)
    assert made.tool_kwargs["city"] in {"Paris", "Tokyo"}


@call
async def agent_with_a_tool():
    words = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
    agent = FunctionAgent(tools=[weather], llm=played)
    assert str(await agent.run(words)) == "It rains."


@call
def structured_prediction():
    structured = llm.as_structured_llm(Capital)
    assert isinstance(structured.chat(ASKING).raw, Capital)


@call
def structured_output_by_schema():
    by_schema = OpenAILike(api_base=f"{TANDEM}/v1", should_use_structured_outputs=True, **SETTINGS)
    assert isinstance(by_schema.as_structured_llm(Capital).chat(ASKING).raw, Capital)


make_all()
