"""LangChain's integration of OpenAI."""

from typing import Literal

from calls import ANSWER, PLAYED, QUESTION, TANDEM, call, make_all, script
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

SETTINGS = {"api_key": "unused", "model": "default", "max_retries": 0}
chatting = ChatOpenAI(base_url=f"{TANDEM}/v1", **SETTINGS)
played = ChatOpenAI(base_url=f"{PLAYED}/v1", **SETTINGS)


class Capital(BaseModel):
    """A country's capital."""

    capital: Literal["Paris", "Tokyo"]
    certain: bool


@tool
def weather(city: Literal["Paris", "Tokyo"]) -> str:
    """The weather of a city."""
    return f"rain in {city}"


@call
def chat():
    answer = chatting.invoke(QUESTION)
    assert answer.content.startswith(ANSWER)
    assert answer.usage_metadata["output_tokens"] > 0


@call
def stream():
    assert "".join(chunk.content for chunk in chatting.stream(QUESTION)).startswith(ANSWER)


@call
def batch():
    assert [answer.content.startswith(ANSWER) for answer in chatting.batch([QUESTION] * 3)] == [True] * 3


@call
def completion():
    llm = OpenAI(base_url=f"{TANDEM}/v1", max_tokens=4, **SETTINGS)
    assert isinstance(llm.invoke("Once upon a time"), str)
    assert len(llm.generate(["One", "Two"]).generations) == 2


@call
def tool_that_is_forced():
    (made,) = chatting.bind_tools([weather], tool_choice="weather").invoke(QUESTION).tool_calls
    assert made["args"]["city"] in {"Paris", "Tokyo"}


@call
def tool_and_its_answer():
    bound = played.bind_tools([weather])
    words = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
    first = bound.invoke([HumanMessage(words)])
    result = weather.invoke(first.tool_calls[0])
    assert isinstance(result, ToolMessage)
    assert bound.invoke([HumanMessage(words), first, result]).content == "It rains."


@call
def structured_output_by_schema():
    assert isinstance(chatting.with_structured_output(Capital, method="json_schema").invoke(QUESTION), Capital)


@call
def structured_output_by_tool():
    assert isinstance(chatting.with_structured_output(Capital, method="function_calling").invoke(QUESTION), Capital)


@call
def responses():
    speaking = ChatOpenAI(base_url=f"{TANDEM}/v1", use_responses_api=True, **SETTINGS)
    assert speaking.invoke(QUESTION).text.startswith(ANSWER)


@call
def logprobs():
    scored = chatting.bind(logprobs=True, top_logprobs=2, max_tokens=4).invoke(QUESTION)
    assert len(scored.response_metadata["logprobs"]["content"]) == 4


@call
def embeddings():
    embedding = OpenAIEmbeddings(base_url=f"{TANDEM}/v1", check_embedding_ctx_length=False, **SETTINGS)
    first, second = embedding.embed_documents(["one", "two"])
    assert len(first) == len(second)
    assert len(embedding.embed_query("one")) == len(first)


make_all()
