"""Simon Willison's llm: its command and its library, with a model of extra-openai-models.yaml."""

import json
import os
from pathlib import Path

import llm
from calls import ANSWER, PLAYED, QUESTION, TANDEM, call, make_all, run, script

MODELS = f"""
- model_id: tandem
  model_name: default
  api_base: {TANDEM}/v1
  api_key_name: tandem
  supports_schema: true
  supports_tools: true
- model_id: played
  model_name: default
  api_base: {PLAYED}/v1
  api_key_name: tandem
  supports_tools: true
"""
folder = Path.home() / "llm"
folder.mkdir()
(folder / "extra-openai-models.yaml").write_text(MODELS)
(folder / "keys.json").write_text('{"tandem": "unused"}')
os.environ["LLM_USER_PATH"] = str(folder)
SCHEMA = {"type": "object", "properties": {"capital": {"enum": ["Paris", "Tokyo"]}}, "required": ["capital"]}


@call
def prompt():
    assert run("llm", "-m", "tandem", QUESTION).startswith(ANSWER)


@call
def prompt_not_streamed():
    assert run("llm", "-m", "tandem", "--no-stream", QUESTION).startswith(ANSWER)


@call
def conversation_continued():
    run("llm", "-m", "tandem", QUESTION)
    assert run("llm", "-c", "Hello")


@call
def schema():
    made = json.loads(run("llm", "-m", "tandem", "--schema", json.dumps(SCHEMA), QUESTION))
    assert made["capital"] in {"Paris", "Tokyo"}


@call
def tools():
    asked = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "rain"

    words = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
    assert llm.get_model("played").chain(words, tools=[weather]).text() == "It rains."
    assert asked == ["Paris"]


@call
def tools_of_the_command():
    code = 'def weather(city: str) -> str:\n    "The weather of a city."\n    return "rain in " + city\n'
    words = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
    assert "It rains." in run("llm", "-m", "played", "--functions", code, words)


make_all()
