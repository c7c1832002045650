"""The tests with clients of others: what can be known of them without installing any."""

import json
import os
import re
import subprocess
import sys

import openai
import pytest

from tests.clients.installing import HERE, NAMES
from tests.clients.played import played_model
from tests.support.running_cluster import CHECKOUT

CALLS = """
from calls import call, make_all, run, script

@call
def passes(): pass

@call
async def passes_later(): pass

@call
def fails(): assert 1 == 2, "so it is"

make_all()
"""
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def pins(name):
    python, javascript = HERE / name / "requirements.txt", HERE / name / "package.json"
    if python.is_file():
        named = (line.partition(" ;")[0] for line in python.read_text().splitlines())  # behind that: on which system
        return [line.partition("==")[2] for line in named]
    return list(json.loads(javascript.read_text())["dependencies"].values())


@pytest.mark.parametrize("name", NAMES)
def test_client_is_pinned_has_calls_and_its_place_in_the_documents(name):
    assert (HERE / name / "calls.py").is_file() != (HERE / name / "calls.mjs").is_file()
    assert pins(name)
    assert [pin for pin in pins(name) if not re.fullmatch(r"\d+(\.\d+)+", pin)] == []
    page = (CHECKOUT / "docs" / "CLIENTS.md").read_text()
    assert any(pin in line for pin in pins(name) for line in page.splitlines() if line.startswith("## "))


def test_each_call_is_told_passed_or_failed_with_its_line(tmp_path):
    results, script = tmp_path / "results", tmp_path / "calls_of_a_client.py"
    script.write_text(CALLS)
    own = {"PYTHONPATH": str(HERE / "helpers"), "CALLS_RESULTS": str(results), "TANDEM_URL": "", "PLAYED_URL": ""}
    subprocess.run([sys.executable, "-P", str(script)], env=os.environ | own, check=True, capture_output=True)
    told = [json.loads(line) for line in results.read_text().splitlines()]
    assert [result["failure"] is None for result in told] == [True, True, False]
    assert told[1]["call"] == "passes later"
    assert told[2]["failure"].startswith("AssertionError: so it is")


def test_played_model_says_and_calls_what_the_prompt_holds(monkeypatch):
    for name in ("TANDEM_URL", "PLAYED_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.syspath_prepend(HERE / "helpers")
    from calls import script

    words = script([{"call": "weather", "arguments": {"city": "Paris"}}], "It rains.")
    with played_model() as url, openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:

        def answer(*messages, **fields):
            return client.chat.completions.create(model="played", messages=messages, **fields).choices[0].message

        asked = {"role": "user", "content": f'He said "{words}".'}
        (call,) = answer(asked, tools=[TOOL]).tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
        made = {"role": "assistant", "tool_calls": [call.model_dump()]}
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        assert answer(asked, made, result, tools=[TOOL]).content == "It rains."
        assert answer(asked).content == "It rains."
        assert answer({"role": "user", "content": "Hello"}).content == "I am the played model."
