"""Answers that are held to something, through a whole cluster: cut by a loss inside it, and calls that are forced."""

import json

import pytest

from strategy.situation import Strategy
from tests.support.in_process.asked import PROMPT, STRATEGIES, at_every_step

PAIR = ("alpha", "beta")
SAMPLED = {"temperature": 1.0, "seed": 5}
LISTS = r"\[[1-9][0-9]?(, [1-9][0-9]?){9}\]"
CITY = {"type": "object", "properties": {"n": {"type": "integer"}, "c": {"enum": ["x", "y"]}}, "required": ["n", "c"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY | {"additionalProperties": False}}},
    {
        "type": "function",
        "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}},
    },
]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answer_goes_on_inside_its_grammar(pair_workshop, strategy):
    async def scenario(cluster):
        whole = await cluster.client.answer(PROMPT, 60, strategy=strategy, guided_regex=LISTS, **SAMPLED)
        assert len(json.loads(whole.text)) == 10
        resumed = await at_every_step(
            cluster,
            lambda _: cluster.kill("alpha"),
            counted="alpha",
            every=9,
            count=60,
            strategy=strategy,
            guided_regex=LISTS,
            **SAMPLED,
        )
        assert set(resumed) == {1}

    pair_workshop.run(scenario, *PAIR)


def test_least_number_of_tokens_counts_across_a_loss(pair_workshop):
    async def scenario(cluster):
        fields = {"min_tokens": 20, "logit_bias": {"1": 100}, "strategy": Strategy.SINGLE_DEVICE_CACHED}
        resumed = await at_every_step(cluster, lambda _: cluster.kill("alpha"), counted="alpha", every=7, **fields)
        assert resumed
        reply = await cluster.client.answer(PROMPT, 40, **fields)
        assert (len(reply.ids), reply.finish_reason) == (20, "stop")

    pair_workshop.run(scenario, *PAIR)


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")])
@pytest.mark.parametrize("stream", [False, True])
def test_forced_call_is_made_by_any_model(pair_workshop, choice, reason, stream):
    async def scenario(cluster):
        body = {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 200,
            "tools": TOOLS,
            "tool_choice": choice,
            "stream": stream,
            **SAMPLED,
        }
        response = await cluster.client._http.post("/v1/chat/completions", json=body)
        if stream:
            events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
            choices = [choice for event in events for choice in event["choices"]]
            pieces = [piece for choice in choices for piece in choice["delta"].get("tool_calls", ())]
            name = pieces[0]["function"]["name"]
            arguments = "".join(piece["function"]["arguments"] for piece in pieces)
            assert not any(choice["delta"].get("content") for choice in choices)
        else:
            choices = response.json()["choices"]
            (call,) = choices[0]["message"]["tool_calls"]
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            assert choices[0]["message"]["content"] is None
        assert choices[-1]["finish_reason"] == reason
        if name == "weather":
            found = json.loads(arguments)
            assert (type(found["n"]), found["c"] in ("x", "y"), len(found)) == (int, True, 2)
        else:
            assert (name, json.loads(arguments)) == ("clock", {})
            assert choice == "required"

    pair_workshop.run(scenario, *PAIR)


def test_what_cannot_be_followed_is_a_bad_request_that_names_it(pair_workshop):
    async def scenario(cluster):
        response = await cluster.client._http.post(
            "/v1/completions", json={"prompt": "hi", "max_tokens": 5, "guided_json": {"not": {}}}
        )
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "guided_json")
        assert "not" in error["message"]

    pair_workshop.run(scenario, *PAIR)
