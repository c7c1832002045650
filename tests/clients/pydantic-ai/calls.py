"""Pydantic AI, with its models for OpenAI's chats and responses."""

from typing import Literal

from calls import ANSWER, PLAYED, QUESTION, TANDEM, call, make_all, script
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder, NativeOutput, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

tandem = OpenAIProvider(base_url=f"{TANDEM}/v1", api_key="unused")
played = OpenAIProvider(base_url=f"{PLAYED}/v1", api_key="unused")
model = OpenAIChatModel("default", provider=tandem)
WORDS = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")


class Capital(BaseModel):
    """A country's capital."""

    capital: Literal["Paris", "Tokyo"]
    certain: bool


def with_weather(model):
    """An agent with a tool, and what the tool was asked."""
    agent, asked = Agent(model), []

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "rain"

    return agent, asked


@call
async def chat():
    assert (await Agent(model).run(QUESTION)).output.startswith(ANSWER)


@call
async def stream():
    async with Agent(model).run_stream(QUESTION) as answer:
        assert (await answer.get_output()).startswith(ANSWER)


@call
async def structured_output():
    assert isinstance((await Agent(model, output_type=Capital).run(QUESTION)).output, Capital)


@call
async def structured_output_by_tool():
    assert isinstance((await Agent(model, output_type=ToolOutput(Capital)).run(QUESTION)).output, Capital)


@call
async def structured_output_by_schema():
    assert isinstance((await Agent(model, output_type=NativeOutput(Capital)).run(QUESTION)).output, Capital)


@call
async def tools():
    agent, asked = with_weather(OpenAIChatModel("default", provider=played))
    assert (await agent.run(WORDS)).output == "It rains."
    assert asked == ["Paris"]


@call
async def tools_of_the_bundled_model():
    agent = Agent(model)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return "18 degrees and sunny"

    answer = await agent.run("What is the weather in Paris?")
    assert answer.output == "In Paris it is 18 degrees and sunny."


@call
async def responses():
    assert (await Agent(OpenAIResponsesModel("default", provider=tandem)).run(QUESTION)).output.startswith(ANSWER)


@call
async def responses_with_tools():
    agent, asked = with_weather(OpenAIResponsesModel("default", provider=played))
    assert (await agent.run(WORDS)).output == "It rains."
    assert asked == ["Paris"]


@call
async def embeddings():
    embedder = Embedder(OpenAIEmbeddingModel("default", provider=tandem))
    assert len((await embedder.embed_documents(["one", "two"])).embeddings) == 2


make_all()
