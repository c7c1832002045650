"""Embeddings of a running cluster: mlx-lm's own hidden states on every route, and what clients get."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.support.hidden_states import assert_near, vector_alone
from tests.support.running_cluster import wait_until

PROMPTS = ([30 + 7 * place % 250 for place in range(200)], list(range(30, 60)), [42])
STRATEGIES = ("single-device-cached", "distributed-no-cache", "distributed-cached")


@pytest.fixture(scope="module")
def client(serving):
    return openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_vectors_are_those_of_mlx_lm_s_own_model(serving, tiny_model, strategy):
    epoch = serving.api_status()["epoch"]
    answer = serving.post("/v1/embeddings", {"input": PROMPTS, "strategy": strategy})
    assert serving.api_status()["epoch"] == epoch  # else a route was lost, and others may have answered
    assert answer.headers["X-Tandem-Strategy"] == answer.json()["tandem"]["strategy"] == strategy
    assert answer.json()["usage"] == {"prompt_tokens": 231, "total_tokens": 231}
    for prompt, item in zip(PROMPTS, answer.json()["data"], strict=True):
        assert_near(item["embedding"], vector_alone(tiny_model, prompt))


def test_official_client_embeds_in_base64_and_as_numbers(client, tiny_model):
    """It asks for base64 where nothing is said."""
    texts = client.embeddings.create(model="default", input=["the worker sends", "the head waits"])
    assert [item.index for item in texts.data] == [0, 1]
    assert len(texts.data[0].embedding) == len(texts.data[1].embedding) == 64
    assert texts.data[0].embedding != texts.data[1].embedding
    for how in ({}, {"encoding_format": "float"}):
        found = client.embeddings.create(model="default", input=PROMPTS[1], **how)
        assert_near(found.data[0].embedding, vector_alone(tiny_model, PROMPTS[1]))
        assert found.usage.total_tokens == found.usage.prompt_tokens == 30
        assert found.model_extra["tandem"]["workers"]


def test_official_client_asks_for_fewer_dimensions(client, tiny_model):
    found = client.embeddings.create(model="default", input=PROMPTS[1], dimensions=8)
    first = vector_alone(tiny_model, PROMPTS[1])[:8]
    assert_near(found.data[0].embedding, first / (first @ first) ** 0.5)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="default", input=PROMPTS[1], dimensions=65)
    assert refused.value.param == "dimensions"


def test_official_client_learns_which_text_is_too_long(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="default", input=[[30], [30] * 5000])
    assert (refused.value.param, refused.value.code) == ("input[1]", "context_length_exceeded")


def test_ollama_s_paths_give_the_same_vectors(serving, client):
    text = "the worker sends"
    wanted = client.embeddings.create(model="default", input=text, encoding_format="float").data[0].embedding
    many = serving.post("/api/embed", {"model": "default", "input": [text, "word " * 5000]}).json()
    assert_near(many["embeddings"][0], wanted)
    assert len(many["embeddings"]) == 2
    assert serving.post("/api/embeddings", {"model": "default", "prompt": text}).json()["embedding"] == pytest.approx(
        wanted
    )


def test_many_texts_beside_answers_are_what_they_are_alone(serving, tiny_model):
    prompts = [list(range(30 + number, 40 + 3 * number)) for number in range(40)]
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(serving.complete, PROMPTS[1], 30, strategy=strategy) for strategy in STRATEGIES]
        embedded = [
            pool.submit(serving.post, "/v1/embeddings", {"input": prompts, "strategy": name})
            for name in STRATEGIES[::2]
        ]
    assert len({tuple(answer.result()["tandem"]["token_ids"]) for answer in answers}) == 1
    for each in embedded:
        for prompt, item in zip(prompts, each.result().json()["data"], strict=True):
            assert_near(item["embedding"], vector_alone(tiny_model, prompt))


def test_client_that_leaves_stops_costing_compute(serving):
    body = {"input": [PROMPTS[0] * 15] * 200, "strategy": "distributed-no-cache"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{serving.url}/v1/embeddings", json=body, timeout=0.5)
    wait_until(lambda: serving.api_status()["requests"]["running"] == 0, "the texts end", 5)
    wait_until(
        lambda: all(worker["load"]["steps_per_s"] == 0 for worker in serving.api_status()["workers"]),
        "the workers come to rest",
        5,
    )
